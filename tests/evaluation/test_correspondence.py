"""`eval correspondence` on rendered scenes and a tiny pipeline: pairs, records, resuming, mirrored targets, tables."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffprobe.config.compose import load
from diffprobe.config.parse import parse
from diffprobe.config.schema import PublishedConfig
from diffprobe.core.errors import ConfigError, DiffprobeError, SampleError, SchemaError, UnknownName
from diffprobe.core.result import read_result
from diffprobe.evaluation import correspondence
from diffprobe.evaluation.correspondence import MATCHES, evaluate_correspondence
from diffprobe.evaluation.correspondence_mixture import MIXTURES
from diffprobe.evaluation.correspondence_records import FLIP_SWAP, SIDE_CONFUSION, summary_lines
from diffprobe.evaluation.correspondence_settings import CorrespondenceEvaluation, MixtureTraining
from diffprobe.runs.tables import build_table
from diffprobe.shards import dense_truth
from diffprobe.shards.datasets import scenes
from diffprobe.shards.dense_truth import PointSample

CELLS = ("up_blocks.0@t20:empty:none", "up_blocks.1@t20:empty:none")
CONTROLS = {"pixels", "vae_latents", "random_weights", "same_place", "chance"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.build(out=folder, n=160, seed=4)
    return folder


@pytest.fixture(scope="module")
def config(tiny_sd: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> CorrespondenceEvaluation:
    tree: dict[str, Any] = {
        "experiment": "tiny/correspondence",
        "backbone": {"path": str(tiny_sd), "device": "cpu"},
        "data": {"path": str(shards), "batch_size": 6},
        "features": {"taps": ["up_blocks.0", "up_blocks.1"], "timesteps": [20], "pool": "none", "seed": 5},
        "fuse": list(CELLS),
        "n_pairs": 4,
        "differ": ["role"],
        "points": ["head", "left_foot", "right_foot"],
        "sides": [["left_foot", "right_foot"]],
        "box_parts": [2, 3, 4, 5, 6, 7],
        "output": str(tmp_path_factory.mktemp("runs")),
    }
    return parse(CorrespondenceEvaluation, tree)


@pytest.fixture(scope="module")
def evaluated(config: CorrespondenceEvaluation) -> Path:
    return evaluate_correspondence(config)


@pytest.mark.slow
def test_all_cells_are_compared_on_val_and_the_best_is_scored_on_test(
    evaluated: Path, config: CorrespondenceEvaluation
) -> None:
    result = read_result(evaluated)
    assert result.kind == "correspondence" and result.seeds == {"noise": 5, "pairs": 0, "bootstrap": 0}
    assert set(result.artifacts) == {"input/shards", "input/backbone"}
    val = [record for record in result.metrics if record.split == "val"]
    assert [record.cell for record in val[:: len(config.variants)]] == [*CELLS, None]
    assert val[-1].detail["cells"] == list(CELLS)
    best = max((record for record in val if record.name == config.selecting.name), key=lambda record: record.value)
    test = [record for record in result.metrics if record.split == "test"]
    assert {record.cell for record in test} == {best.cell}
    assert [record.name for record in test] == [*(variant.name for variant in config.variants), SIDE_CONFUSION]
    for record in test[:-1]:
        assert record.n == 12 and set(record.controls) == CONTROLS and record.detail["n_clusters"] == 4
        assert set(record.detail["differences"]) == CONTROLS - {"chance"}
        assert set(record.detail["by_point"]) == {"head", "left_foot", "right_foot"}
        low, high = record.detail["interval"]
        assert low <= record.value <= high
    assert test[-1].n == 8
    assert any(line.startswith("  minus pixels: ") for line in summary_lines(result))


def test_pairs_hold_the_conditions_and_share_no_image(config: CorrespondenceEvaluation) -> None:
    opened = correspondence._open(config)
    pairs = opened.pairs("train")
    keys = [one.sample.key for pair in pairs.pairs for one in pair]
    assert len(set(keys)) == 8
    assert all(one.sample.class_name != other.sample.class_name for one, other in pairs.pairs)
    alike = dataclasses.replace(config, differ=(), same=("hat", "texture"))
    for one, other in correspondence._open(alike).pairs("train").pairs:
        assert all(one.sample.attributes[name] == other.sample.attributes[name] for name in ("hat", "texture"))


@pytest.mark.slow
def test_batches_and_the_order_of_cells_change_no_match(config: CorrespondenceEvaluation, evaluated: Path) -> None:
    features = dataclasses.replace(config.features, taps=("up_blocks.1", "up_blocks.0"))
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=2), features=features)
    again = read_result(evaluate_correspondence(other))
    values = {(record.cell, record.name): record.value for record in again.metrics if record.split == "val"}
    for record in read_result(evaluated).metrics:
        if record.split == "val":
            assert values[record.cell, record.name] == pytest.approx(record.value, abs=0.1)  # rounding may move a match


@pytest.mark.slow
def test_a_repeated_call_computes_nothing_and_other_pairs_are_refused(
    config: CorrespondenceEvaluation, evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_result(evaluated).metrics

    def fail(*args: object) -> None:
        raise AssertionError("matched again")

    monkeypatch.setattr(correspondence, "_compute", fail)
    assert read_result(evaluate_correspondence(config)).metrics == before
    folder = evaluated.parent / MATCHES
    own = folder / "own-val.safetensors"
    kept = own.read_bytes()
    own.write_bytes((folder / "own-test.safetensors").read_bytes())
    with pytest.raises(SchemaError, match="own-val"):
        evaluate_correspondence(config)
    own.unlink()
    with pytest.raises(AssertionError, match="matched again"):
        evaluate_correspondence(config)
    own.write_bytes(kept)


def test_mirrored_targets_move_the_points_and_swap_the_sides(config: CorrespondenceEvaluation) -> None:
    plain = correspondence._open(config).pairs("test")
    mirrored = correspondence._open(dataclasses.replace(config, mirror=True)).pairs("test")
    side = plain.resolution
    for (one, other), (same, turned) in zip(plain.pairs, mirrored.pairs, strict=True):
        assert same == one and turned.sample.key == other.sample.key
        x, y = other.points["left_foot"]
        assert turned.points["right_foot"] == (side - x, y)
        assert turned.points["head"] == (side - other.points["head"][0], other.points["head"][1])
        turned_pixels = np.asarray(turned.sample.image)
        assert np.array_equal(turned_pixels, np.asarray(other.sample.image)[:, ::-1])


def test_points_of_a_mirrored_target_are_compared_under_their_new_names(
    config: CorrespondenceEvaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = dense_truth.read_point_samples

    def with_left_alone(*args: Any, **options: Any) -> Iterator[PointSample]:
        for number, one in enumerate(read(*args, **options)):
            name = ("left_foot", "right_foot")[number % 2]
            yield dataclasses.replace(one, points={name: one.points[name]})

    monkeypatch.setattr(dense_truth, "read_point_samples", with_left_alone)
    turned = dataclasses.replace(config, mirror=True, points=("left_foot", "right_foot"))
    pairs = correspondence._open(turned).pairs("train")
    assert all(len(names) == 1 for names in pairs.names)
    assert all(set(one.points) == set(other.points) for one, other in pairs.pairs)


def test_the_same_image_is_matched_with_itself(config: CorrespondenceEvaluation) -> None:
    opened = correspondence._open(config)
    pairs = opened.pairs("train")
    alike = dataclasses.replace(pairs, pairs=[(one, one) for one, _ in pairs.pairs])
    maps = correspondence._network_maps(correspondence._loaded(opened.request))

    class Bar:
        def update(self, n: int = 1) -> None: ...

    found = correspondence._compute(maps, alike, (), 4, Bar())
    expected = np.concatenate([alike.points(number).floor().numpy() + 0.5 for number in range(4)])
    finest = found[CELLS[1]]
    assert np.abs(finest - expected).max() < 3  # the noise is that of the key, so both maps are equal


@pytest.mark.slow
def test_the_pairs_of_a_benchmark_are_taken_as_they_are(
    config: CorrespondenceEvaluation, evaluated: Path, tmp_path: Path
) -> None:
    opened, file = correspondence._open(config), tmp_path / "pairs.json"
    pairs = {
        split: [[one.sample.key, other.sample.key] for one, other in opened.pairs(split).pairs]
        for split in ("val", "test")
    }
    file.write_text(json.dumps(pairs), "utf-8")
    metric = config.selecting.name
    listed = dataclasses.replace(
        config, pairs_file=str(file), differ=(), output=str(tmp_path),
        published=PublishedConfig(metric=metric, value=0.5, tolerance=0.1, source="Table 1", provenance="read in it"),
    )  # fmt: skip
    result = read_result(evaluate_correspondence(listed))
    assert "input/pairs" in result.artifacts
    values = [(record.name, record.value) for record in result.metrics]
    assert values == [(record.name, record.value) for record in read_result(evaluated).metrics]
    assert any("published 0.5 (Table 1), delta" in line for line in summary_lines(result))
    for tree, fact in (({"val": pairs["val"]}, "test"), ({**pairs, "test": [["a", "b"]] * 2}, "'a'"), ([], "val")):
        file.write_text(json.dumps(tree), "utf-8")
        with pytest.raises((ConfigError, UnknownName), match=fact):
            evaluate_correspondence(listed)
    with pytest.raises(ConfigError, match="missing.json"):
        evaluate_correspondence(dataclasses.replace(listed, pairs_file=str(tmp_path / "missing.json")))


def test_an_image_matched_with_its_mirror_image_shows_whether_sides_are_known(
    config: CorrespondenceEvaluation, tmp_path: Path
) -> None:
    flipped = dataclasses.replace(config, flip=True, differ=(), fuse=(), controls=("pixels",), output=str(tmp_path))
    pairs = correspondence._open(flipped).pairs("train").pairs
    assert len({one.sample.key for one, _ in pairs}) == 4
    for one, other in pairs:
        assert one.sample.key == other.sample.key
        x, y = one.points["left_foot"]
        assert other.points["right_foot"] == (32 - x, y)
    test = [record for record in read_result(evaluate_correspondence(flipped)).metrics if record.split == "test"]
    assert test[-1].name == FLIP_SWAP and test[-1].n == 8 and set(test[-1].controls) == {"pixels", "same_place"}
    swapped = []
    for one, _ in correspondence._open(flipped).pairs("test").pairs:
        for name, other in (("left_foot", "right_foot"), ("right_foot", "left_foot")):
            place, copy, goal = np.array([one.points[name], one.points[name], one.points[other]])
            copy[0], goal[0] = 32 - copy[0], 32 - goal[0]  # where the mirror image has the point itself, and its name
            swapped.append(np.linalg.norm(place - copy) < np.linalg.norm(place - goal))
    assert test[-1].controls["same_place"] == pytest.approx(np.mean(swapped))


@pytest.fixture(scope="module")
def everything(
    config: CorrespondenceEvaluation, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CorrespondenceEvaluation, Path]:
    """The same pairs beside CleanDIFT (another tiny model), fusions, mixtures, and a single draw."""
    from diffprobe.backbones.families import sd_unet

    clean = tmp_path_factory.mktemp("clean")
    sd_unet.tiny(clean, seed=3)
    changed = dataclasses.replace(
        config,
        features=dataclasses.replace(config.features, draws=2),
        controls=("pixels", "single_draw"),
        cleandift=str(clean),
        fuse=(),
        fuse_with=("pixels", "cleandift"),
        fuse_weights=(0.25, 0.5),
        mixture=MixtureTraining(n_pairs=3, steps=3, batch=2, width=32, groups=2, every=2),
        massive="clip",
        massive_ratio=1.5,
        output=str(tmp_path_factory.mktemp("everything")),
    )
    return changed, evaluate_correspondence(changed)


@pytest.mark.slow
def test_other_features_have_records_of_their_own(everything: tuple[CorrespondenceEvaluation, Path]) -> None:
    config, path = everything
    result = read_result(path)
    assert set(result.artifacts) == {"input/shards", "input/backbone", "input/cleandift"}
    test = [record for record in result.metrics if record.split == "test" and record.name == config.selecting.name]
    names = ["nearest_neighbour", "cleandift", "fusion_pixels", "fusion_cleandift", *MIXTURES]
    assert [record.probe for record in test] == names
    own, *others = test
    assert set(own.controls) == {"pixels", "single_draw", "same_place", "chance"}
    assert set(own.detail["massive_channels"]) == set(CELLS)
    assert any(own.detail["massive_channels"].values())
    for record in others:
        above, low, high = record.detail["above_nearest_neighbour"]
        assert above == pytest.approx(record.value - own.value) and low <= above <= high
        assert record.controls["nearest_neighbour"] == own.value
    by_probe = {str(record.probe): record for record in others}
    assert by_probe["cleandift"].cell in {cell.replace("t20", "t0") for cell in CELLS}
    assert by_probe["fusion_pixels"].detail["choice"] in ("0.25", "0.5")
    weights = by_probe["hyperfeatures"].detail["weights"]
    assert set(weights) == set(CELLS) and sum(weights.values()) == pytest.approx(1)
    assert by_probe["hyperfeatures"].detail["choice"] in ("step2", "step3")
    assert set(by_probe["hyperfeatures_equal"].detail["weights"].values()) == {0.5}
    assert set(by_probe["hyperfeatures_single"].detail["weights"]) == {own.cell}
    assert any("minus the chosen cell" in line for line in summary_lines(result))


@pytest.mark.slow
def test_a_repeated_call_trains_nothing_and_mixtures_of_other_pairs_are_refused(
    everything: tuple[CorrespondenceEvaluation, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = everything

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("computed again")

    before = read_result(path).metrics
    monkeypatch.setattr(correspondence, "_training_pairs", fail)
    assert read_result(evaluate_correspondence(config)).metrics == before
    monkeypatch.setattr(correspondence.PairedPoints, "digest", "other", raising=True)
    (path.parent / MATCHES).rename(path.parent / "kept")
    with pytest.raises(SchemaError, match="hyperfeatures"):
        evaluate_correspondence(config)


def test_a_table_shows_the_chosen_cell_and_the_grid_where_it_is_asked_for(evaluated: Path) -> None:
    chosen = build_table([evaluated.parent]).to_markdown()
    assert "pck@0.1 per point box" in chosen and "VAE latents" in chosen and "same place" in chosen
    grid = build_table([evaluated.parent], where={"split": "val"}).to_markdown()
    assert all(cell.partition("@")[0] in grid for cell in CELLS)


def test_a_set_without_points_and_wrong_settings_are_refused(
    config: CorrespondenceEvaluation, tiny_shards: Path, tmp_path: Path
) -> None:
    there = dataclasses.replace(config, output=str(tmp_path))
    cases: list[tuple[dict[str, Any], type[DiffprobeError], str]] = [
        ({"data": dataclasses.replace(config.data, path=str(tiny_shards)), "differ": ()}, SampleError, "points.json"),
        ({"points": ("heads",)}, UnknownName, "heads"),
        ({"differ": ("rank",)}, UnknownName, "rank"),
        ({"n_pairs": 500}, ConfigError, "500"),
        ({"fuse": (CELLS[0], "mid_block@t20:empty:none")}, UnknownName, "mid_block"),
        ({"box_parts": (99,)}, SampleError, "99"),
    ]
    for changes, error, fact in cases:
        with pytest.raises(error, match=fact):
            evaluate_correspondence(dataclasses.replace(there, **changes))


def test_the_experiment_of_scenes_is_valid() -> None:
    found = load("scenes/correspondence", [], kinds=("evaluate_correspondence",))
    assert isinstance(found, CorrespondenceEvaluation) and found.selecting.name == "pck@0.1_per_point_box"
