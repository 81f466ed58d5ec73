"""The sweep of scenes/long_tail: which runs it has, their budgets, paired differences, and the whole at tiny size."""

import csv
import importlib.util
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sweep():
    spec = importlib.util.spec_from_file_location("record_long_tail", ROOT / "docs/record_long_tail.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_recorded_numbers(sweep):
    with sweep.OUT.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    block = sweep.PAGE.read_text("utf-8").partition(sweep.marker(sweep.OUT))[2].partition("\n\n")[0]
    assert block.splitlines() == sweep.lines(rows)
    assert {row["seed"] for row in rows} == {"0", "1", "2"}
    assert {row["variant"] for row in rows} >= {"plain", "diffrop", "cbdm", "oc"}


def test_the_statements_are_those_of_the_recorded_numbers(sweep):
    with sweep.OUT.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found, thirds = sweep.differences(rows), ("many", "medium", "few")

    def sides(variant, budget, metric, target):
        one = found[variant, budget, metric, target]
        return one.low > 0, one.high < 0

    assert found["diffrop", sweep.STEPS, "class_overlap", "all"].high < 0  # in every seed
    assert found["cbdm", sweep.STEPS, "class_overlap", "all"].low > 0
    assert sides("diffrop", sweep.STEPS, "role_accuracy", "many") == (True, False)
    assert sides("diffrop", sweep.STEPS, "role_accuracy", "few") == (False, False)
    for target in thirds:
        assert sides("diffrop", sweep.COMPUTE, "role_accuracy", target) == (False, True)
        assert sides("cbdm", sweep.COMPUTE, "role_accuracy", target) == (False, True)
    for variant in ("cbdm", "oc"):
        assert sides(variant, sweep.STEPS, "role_accuracy", "few") == (False, True)
    gains = {key: one for key, one in found.items() if key[3] == "few" and one.low > 0 and key[2] != "frechet_distance"}
    (((variant, budget, metric, _), one),) = gains.items()
    assert (variant, budget, metric) == ("oc", sweep.STEPS, "coverage")
    assert f"(+{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}])".replace("0.", ".") in sweep.PAGE.read_text("utf-8")
    for variant in ("diffrop", "cbdm", "oc"):
        for metric in ("precision", "density", "recall"):
            assert sides(variant, sweep.STEPS, metric, "few") == (False, False)
    rendered = {(row["metric"], row["target"]): float(row["rendered"]) for row in rows if row["rendered"]}
    assert all(rendered["role_accuracy", target] == 1 for target in thirds)
    assert {round(rendered["frechet_distance", target]) for target in thirds} == {126, 128, 140}


def test_coral_and_capacity_have_their_recorded_numbers_and_statements(sweep):
    path = sweep.OUT.with_name("long-tail-coral-capacity.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    block = sweep.PAGE.read_text("utf-8").partition(sweep.marker(path))[2].partition("\n\n")[0]
    assert block.splitlines() == sweep.lines(rows)
    assert {(row["variant"], row["seed"]) for row in rows} == {
        (variant, seed) for variant in ("plain", "coral", "capacity") for seed in "012"
    }
    found = sweep.differences(rows)
    shown = {key: one.low > 0 for key, one in found.items() if key[2:] in sweep.SHOWN and (one.low > 0 or one.high < 0)}
    coral = {key[2:]: up for key, up in shown.items() if key[0] == "coral"}
    assert coral == {("role_accuracy", "many"): True, ("recall", "few"): False, ("class_overlap", "all"): False}
    steps = {key[2:]: up for key, up in shown.items() if key[:2] == ("capacity", sweep.STEPS)}
    assert steps == {("frechet_distance", "few"): True}
    for target in ("many", "medium", "few"):
        assert found["capacity", sweep.COMPUTE, "role_accuracy", target].high < 0
    intervals = [key for key in found if key[:2] == ("coral", sweep.STEPS) and key[3] != "all"]
    assert sum(key[2] != "frechet_distance" for key in intervals) == 15


def test_each_seed_has_all_variants_and_both_budgets(sweep):
    found = sweep.cells([0, 1, 2])
    assert len(found) == len(set(found)) == 27
    assert [(cell.variant, cell.budget) for cell in found[:6]] == [
        ("plain", "equal steps"), ("diffrop", "equal steps"), ("diffrop", "equal compute"),
        ("cbdm", "equal steps"), ("cbdm", "equal compute"), ("oc", "equal steps"),
    ]  # fmt: skip


def test_equal_compute_has_half_the_steps_for_two_passes(sweep):
    settings = ["autoencoder=scenes-sd", "trainer.max_steps=100"]
    steps = [
        sweep.config_of(sweep.Cell(name, budget, 0), settings).trainer.max_steps
        for name, budget in (("plain", sweep.STEPS), ("diffrop", sweep.STEPS), ("diffrop", sweep.COMPUTE))
    ]
    assert steps == [100, 100, 50]


def test_differences_are_paired_by_seed_and_their_intervals_resample_classes(sweep):
    row = {"budget": sweep.STEPS, "metric": "recall", "target": "few"}
    rows = [
        {**row, "variant": v, "seed": s, "class": name, "value": value}
        for v, s, name, value in (
            ("plain", 0, "", 0.1), ("plain", 1, "", 0.5), ("oc", 0, "", 0.3), ("oc", 1, "", 0.6), ("oc", 2, "", 0.9),
            ("plain", 0, "cook", 0.1), ("plain", 1, "cook", 0.2), ("oc", 0, "cook", 0.2), ("oc", 1, "cook", 0.3),
            ("plain", 0, "judge", 0.0), ("plain", 1, "judge", 0.0), ("oc", 0, "judge", 0.3), ("oc", 1, "judge", 0.1),
        )
    ]  # fmt: skip
    ((key, found),) = sweep.differences(rows).items()
    assert key == ("oc", sweep.STEPS, "recall", "few")
    assert found.mean == pytest.approx(0.15) and found.by_seed == pytest.approx((0.2, 0.1))  # seed 2 has no partner
    assert found.low <= 0.1 and found.high >= 0.2  # resamples of two classes: .1, .15 or .2; widened for so few
    ((_, found),) = sweep.differences([one for one in rows if not one["class"]]).items()
    assert (found.low, found.high) == pytest.approx((0.1, 0.2))  # of seeds


def test_the_table_has_plain_and_paired_differences(sweep):
    plain, coral = ({"variant": v, "budget": sweep.STEPS} for v in ("plain", "coral"))
    rows = [
        {**row, "seed": seed, "metric": metric, "target": target, "class": "",
         "value": value + (0.1 if row is coral else 0.0)}
        for row in (plain, coral)
        for seed, value in enumerate((0.2, 0.4))
        for metric, target in sweep.SHOWN
    ]  # fmt: skip
    _, _, first, second = sweep.lines(rows)
    assert first.startswith("| plain | equal steps | 0.300 [0.200, 0.400] | 0.300")
    assert second.startswith("| coral | equal steps | +0.100 [+0.100, +0.100] | +0.100")


@pytest.mark.slow
def test_the_sweep_runs_at_tiny_size_and_a_second_call_trains_nothing(sweep, tmp_path, monkeypatch, capsys):
    from diffusers import AutoencoderKL

    from diffprobe.generative.scene_reader import SceneReader
    from diffprobe.runs import train_generative as training
    from diffprobe.shards.datasets import scenes
    from diffprobe.shards.scenes.world import load_world

    scenes.build(tmp_path / "scenes", n=600, seed=0)
    SceneReader(load_world(), resolution=32).save(tmp_path / "reader")
    torch.manual_seed(0)
    AutoencoderKL(
        sample_size=32, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    evaluation = [f"reader={tmp_path / 'reader'}", "n_per_class=6", "sampling_steps=1", "overlap_images=1"]
    evaluation += ["overlap_timesteps=[100]", "n_resamples=20", f"output={tmp_path / 'runs'}"]
    command = [
        "--autoencoder", str(tmp_path / "vae"), "--seeds", "0", "--out", str(tmp_path / "table.csv"),
        *(word for setting in evaluation for word in ("--evaluation", setting)),
        f"data.path={tmp_path / 'scenes'}", "data.batch_size=8", "data.limit=400",
        "model={channels: [8, 16], cross_attention: [true, false], heads: 2, norm_groups: 4, text_width: 16, "
        "text_layers: 1, text_heads: 2, vocab_size: 540, max_tokens: 16}",
        "classes.imbalance=0.2", "classes.min_images=2", "trainer.max_steps=2", "trainer.enable_progress_bar=false",
        "warmup_steps=1", "trainer.precision=32-true", "logger=none", f"output={tmp_path / 'runs'}",
    ]  # fmt: skip
    sweep.main(command)
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["variant"], row["budget"]) for row in rows} == {(c.variant, c.budget) for c in sweep.cells([0])}
    assert {row["metric"] for row in rows} == set(sweep.METRICS)
    assert "diffrop, equal compute: recall of few" in capsys.readouterr().out

    def refuse(config):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train_generative", refuse)
    sweep.main(command)
    with (tmp_path / "table.csv").open() as file:
        assert list(csv.DictReader(file)) == rows
