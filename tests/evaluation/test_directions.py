"""`eval directions` on a tiny pipeline with random weights: every number is there, whatever it is."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffprobe.backbones.families import sd_unet
from diffprobe.backbones.testing import tiny_text
from diffprobe.core.errors import BadTimestep, ConfigError, UnknownName, UnknownTap
from diffprobe.core.result import RunResult, read_result
from diffprobe.evaluation.directions import DirectionsEvaluation, evaluate_directions
from diffprobe.evaluation.prompt_directions import PromptDirectionConfig, make_directions
from diffprobe.probes.direction.base import Direction

ENDS: dict[str, tuple[str, ...]] = {"texture": ("striped", "plain"), "side": ("right", "left")}
TAPS, TIMESTEPS = ("mid_block", "up_blocks.0"), (499, 999)


def config_of(model: Path, output: Path, **settings: object) -> DirectionsEvaluation:
    config = DirectionsEvaluation(
        experiment="mine/directions", model=str(model), factors=tuple(ENDS), ends=ENDS, taps=TAPS, timesteps=TIMESTEPS,
        sampling_steps=2, seeds=2, n_pairs=12, n_random=19, n_resamples=10, n_halves=5, device="cpu",
        output=str(output), guidance=0.0,
    )  # fmt: skip
    return replace(config, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline whose prompts may be as long as the captions of scenes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_text, "_LENGTH", 128)
        return sd_unet.tiny(tmp_path_factory.mktemp("tiny"), channels=(8, 16))


@pytest.fixture(scope="module")
def evaluated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    output = tmp_path_factory.mktemp("runs")
    path = evaluate_directions(config_of(model, output))
    return path, read_result(path)


@pytest.mark.slow
def test_each_factor_reading_and_cell_has_its_numbers(evaluated: tuple[Path, RunResult]) -> None:
    path, result = evaluated
    of = {(r.name, r.target, r.cell, r.detail.get("reading")): r for r in result.metrics}
    for factor in ENDS:
        for t in TIMESTEPS:
            for reading, condition in (("conditional", "caption"), ("re-read", "empty")):
                for tap in TAPS:
                    cell = f"{tap}@t{t}:{condition}:grid2"
                    record = of["agreement", factor, cell, reading]
                    assert record.detail["truth_cell"] == f"{tap}@t{t}:empty:grid2"
                    if record.detail["defined"]:
                        low, high = record.detail["interval"]
                        assert low < record.value < high and len(record.detail["by_seed"]) == 2
                        assert record.detail["null"]["smallest_p"] == 0.05 <= record.detail["q"]
                    assert 0 <= of["auroc", factor, cell, reading].value <= 1
                    for name in ("split_half_truth", "split_half_prompts"):
                        assert abs(of[name, factor, cell, reading].value) <= 1
        assert ("agreement", factor, "latents@t0:empty:mean", "vae_latents") in of
    key = ("side", "pixels@t0:empty:mean", "raw_pixels")  # stripes have a random phase; an object changes its place
    assert of["agreement", *key].detail["defined"] and of["split_half_truth", *key].value > 0.5
    (about,) = (r for r in result.metrics if r.name == "captioned_factors")
    assert set(about.detail["not_applicable"]) == {"build", "pose", "background", "text encoder"}
    assert about.value == 7 and about.n == 10
    tables = (path.parent / "tables.md").read_text()
    assert tables.count("| texture | mid_block |") == 5 and "| t = 499 | t = 999 |" in tables
    assert "build, pose, background" in tables


@pytest.mark.slow
def test_a_second_call_samples_nothing_and_repeats_the_numbers(evaluated: tuple[Path, RunResult], model: Path) -> None:
    path, result = evaluated
    output = path.parents[3]
    stores = {file: file.stat().st_mtime_ns for file in (output / "stores").rglob("*.safetensors")}
    again = read_result(evaluate_directions(config_of(model, output)))
    assert stores and {file: file.stat().st_mtime_ns for file in stores} == stores
    assert [(r.name, r.cell, r.value) for r in again.metrics] == [(r.name, r.cell, r.value) for r in result.metrics]


@pytest.mark.slow
def test_its_stores_give_the_same_directions_as_the_verb(evaluated: tuple[Path, RunResult]) -> None:
    path, result = evaluated
    stores = [store.parent for store in (path.parents[3] / "stores").glob("*/manifest.json")]
    cell, found = "mid_block@t499:empty:grid2", []
    for store in stores:
        config = PromptDirectionConfig(target="side", positive="right", negative="left", cells=(cell,))
        try:
            made = make_directions(store, config, output=path.parents[3] / "verb")
        except UnknownName:
            continue  # the store of another factor
        found.append(Direction.load(made.parent / "probes" / "side" / cell.replace(":", ".")))
    (direction,) = found
    (own,) = (r for r in result.metrics if (r.name, r.target, r.cell) == ("agreement", "side", cell))
    detail = read_result(made).metrics[0].detail
    assert detail["contexts"] == own.detail["contexts"] and detail["seeds"] == 2 and direction.scale > 0


def test_what_cannot_be_measured_is_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    for settings, error, fact in (
        ({"factors": ("build",), "ends": {"build": ("slim", "round")}}, ConfigError, "build"),
        ({"factors": ("hue",), "ends": {"hue": ("a", "b")}}, UnknownName, "hue"),
        ({"ends": {**ENDS, "side": ("right", "up")}}, UnknownName, "up"),
        ({"ends": {**ENDS, "side": ("right", "right")}}, ConfigError, "right"),
        ({"world": "planed"}, UnknownName, "planted"),
        ({"taps": ("mid_blok",)}, UnknownTap, "mid_block"),
        ({"timesteps": (500,)}, BadTimestep, "499"),
    ):
        with pytest.raises(error, match=fact):
            evaluate_directions(config_of(model, tmp_path, **settings))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"seeds": 1}, "seeds=1"),
        ({"n_pairs": 7}, "n_pairs=7"),
        ({"pool": "none"}, "pool=none"),
        ({"taps": ()}, "taps"),
        ({"timesteps": (499, 499)}, "499"),
        ({"ends": {"texture": ("striped", "plain")}}, "ends.side"),
        ({"ends": {**ENDS, "side": ("left",)}}, "ends.side"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"guidance": -1.0}, "guidance=-1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        config_of(Path("model"), Path("runs"), **settings)


@pytest.mark.slow
def test_directions_of_a_flow_model_agree_with_the_truth(tmp_path: Path) -> None:
    """The shipped one draws sizes as captions state them."""
    config = config_of(
        Path("scenes-flow"), tmp_path, factors=("size",), ends={"size": ("large", "small")}, timesteps=(334,),
        taps=("transformer_blocks.3",), sampling_steps=4, guidance=2.0, n_pairs=24,
    )  # fmt: skip
    records = read_result(evaluate_directions(config)).metrics
    found = [r.value for r in records if r.name == "agreement" and (r.cell or "").startswith("transformer_blocks")]
    assert len(found) == 2 and min(found) > 0.7
