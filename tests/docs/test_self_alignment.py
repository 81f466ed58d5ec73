"""The comparison of flow models with and without self-alignment: budgets, pairing, and the whole at tiny size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.docs.test_numbers import script

SCRIPT = script("record_self_alignment")
SETTINGS = ["autoencoder=scenes-sd", "trainer.max_steps=600"]


def test_the_page_has_the_recorded_numbers() -> None:
    tree, page = json.loads(SCRIPT.OUT.read_text("utf-8")), SCRIPT.PAGE.read_text("utf-8")
    assert all(marker in page for marker in SCRIPT.MARKERS) and SCRIPT.with_tables(page, tree) == page
    models = {name: one["steps"] for name, one in tree["models"].items()}
    assert models == {"plain": 600, "equal steps": 600, "equal compute": 470}
    assert tree["seeds"] == [0, 1, 2] and tree["images"] == 2000


def test_the_statements_are_those_of_the_recorded_numbers() -> None:
    accuracy = json.loads(SCRIPT.OUT.read_text("utf-8"))["accuracy"]
    found = {(one["target"], one["block"]): one for one in accuracy}

    def sign(target: str | None, block: int | None, model: str) -> int:
        name = None if block is None else f"transformer_blocks.{block}"
        low, high = found[target, name][model]["interval"]
        return (low > 0) - (high < 0)

    assert sign(None, None, SCRIPT.STEPS) == 0 and sign(None, None, SCRIPT.COMPUTE) == -1
    assert [sign(None, block, SCRIPT.STEPS) for block in range(6)] == [0, 1, 0, 0, -1, -1]
    first = found[None, "transformer_blocks.1"][SCRIPT.STEPS]
    assert min(first["by_seed"]) > 0 and f"(+{100 * first['difference']:.1f})" in SCRIPT.PAGE.read_text("utf-8")
    config = SCRIPT.config_of(SCRIPT.STEPS, 0, SETTINGS).self_alignment
    assert (config.student_block, config.teacher_block) == (1, 4)
    factors = [one[SCRIPT.COMPUTE]["difference"] for one in accuracy if one["target"] is not None]
    assert found["build", None][SCRIPT.COMPUTE]["difference"] == min(factors)


def test_at_equal_compute_the_steps_are_divided_by_the_passes() -> None:
    """Five of six blocks run again, without gradient: 1 + 2 + 5/6 passes for 1 + 2."""
    steps = [SCRIPT.config_of(model, 1, SETTINGS).trainer.max_steps for model in SCRIPT.MODELS]
    assert steps == [600, 600, round(600 / (23 / 18))]
    plain, aligned = (SCRIPT.config_of(model, 1, SETTINGS) for model in (SCRIPT.PLAIN, SCRIPT.STEPS))
    assert plain.self_alignment is None and aligned.self_alignment.teacher_block == 4
    assert plain.seed == aligned.seed == 1 and plain.transformer == aligned.transformer


def test_a_difference_is_paired_by_image_and_by_seed() -> None:
    plain = [np.array([0.0, 1.0, 0.5, 0.5]), np.array([1.0, 1.0, 0.0, 0.0])]
    other = [np.array([0.5, 1.0, 1.0, 0.5]), np.array([1.0, 1.0, 0.0, 1.0])]
    found = SCRIPT.compared(plain, other, "abcd")
    assert found["by_seed"] == [0.25, 0.25] and found["difference"] == 0.25
    low, high = found["interval"]
    assert 0 <= low < 0.25 < high <= 0.5  # of the images .25, 0, .25 and .5, resampled
    same = SCRIPT.compared(plain, plain, "abcd")
    assert same["interval"] == [0, 0]


def test_parts_average_over_what_they_do_not_name() -> None:
    none = np.array([0.0, 0.0])
    hits = {("side", "b0"): none + [1, 0], ("side", "b1"): none, ("build", "b0"): none + 0.5}
    assert SCRIPT.parts(hits) == [("side", None), ("build", None), (None, "b0"), (None, "b1"), (None, None)]
    models = dict.fromkeys(SCRIPT.MODELS, [hits])

    def plain(target: str | None, tap: str | None) -> float:
        (value,) = SCRIPT.entry(models, ["one", "two"], target=target, tap=tap)["plain"]
        return float(value)

    assert (plain("side", None), plain(None, "b0"), plain(None, None)) == pytest.approx((0.25, 0.5, 1 / 3))


def test_the_tables_of_a_page_are_replaced_below_their_markers() -> None:
    images = np.array([0.0, 1.0])
    hits = {model: [{("side", "b0"): images + 0.5}] for model in SCRIPT.MODELS}
    parts = [("side", None), (None, "b0")]
    tree = {"accuracy": [SCRIPT.entry(hits, ["one", "two"], target=target, tap=tap) for target, tap in parts]}
    page = f"before\n\n{SCRIPT.MARKERS[0]}| old |\n\nafter"
    found = SCRIPT.with_tables(page, tree)
    assert found.startswith("before\n\n") and found.endswith("\n\nafter") and "| old |" not in found
    assert "| side | 100.0 [100.0, 100.0] | +0.0 [+0.0, +0.0] (+0.0) |" in found and "`b0`" not in found
    assert SCRIPT.with_tables(found, tree) == found


def test_a_training_without_steps_is_refused() -> None:
    with pytest.raises(SystemExit):
        SCRIPT.main(["--seeds", "0", "--", "autoencoder=scenes-sd"])


@pytest.mark.slow
def test_the_script_runs_at_tiny_size_and_a_second_call_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import AutoencoderKL

    from diffprobe.runs import train_generative as training
    from diffprobe.shards.datasets import scenes

    scenes.build(tmp_path / "scenes", n=120, seed=0)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        sample_size=32, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    readouts = [f"data.path={tmp_path / 'scenes'}", "data.batch_size=8", "probe.targets=[side]",
                "features.timesteps=[200]", f"output={tmp_path / 'runs'}", "logger=none"]  # fmt: skip
    command = [
        "--seeds", "0", "--out", str(tmp_path / "found.json"),
        *(word for setting in readouts for word in ("--readouts", setting)),
        "--", f"autoencoder={tmp_path / 'vae'}", f"data.path={tmp_path / 'scenes'}", "data.batch_size=8",
        "model={text_width: 16, text_layers: 1, text_heads: 2, max_tokens: 16}",
        "transformer={layers: 2, heads: 2, head_width: 8}", "self_alignment={student_block: 0, teacher_block: 1}",
        "trainer.max_steps=4", "trainer.precision=32-true", "trainer.enable_progress_bar=false", "logger=none",
        f"output={tmp_path / 'runs'}",
    ]  # fmt: skip
    SCRIPT.main(command)
    tree = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert {name: one["steps"] for name, one in tree["models"].items()} == {
        "plain": 4, "equal steps": 4, "equal compute": 3
    }  # fmt: skip
    assert [one["target"] for one in tree["accuracy"]] == ["side", None, None, None] and tree["images"] > 0
    assert "| side |" in capsys.readouterr().out

    def trained(*_: object) -> None:
        raise AssertionError("finished trainings are kept")

    monkeypatch.setattr(training, "train_generative", trained)
    SCRIPT.main(command)
    assert json.loads((tmp_path / "found.json").read_text("utf-8")) == tree
