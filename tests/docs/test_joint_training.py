"""The tables of docs/users/joint-training.md are those of the recorded results, and the script runs at tiny size."""

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.docs.markdown import ROOT
from tests.docs.test_numbers import script

PAGE = ROOT / "docs/users/joint-training.md"
record_joint: Any = script("record_diffdis_joint")
MARKERS = ("joint-compute", "joint-generation", "joint-retrieval")


def shown(text: str, marker: str) -> list[str]:
    lines = text.partition(f"<!-- table: {marker} -->\n")[2].splitlines()
    return list(takewhile(lambda line: line.startswith("|"), lines))


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((record_joint.RESULTS / record_joint.DIFFERENCES).read_text("utf-8"))
    return found


def test_the_tables_are_those_of_the_recorded_results() -> None:
    text, results = PAGE.read_text("utf-8"), record_joint.recorded()
    assert results
    for marker, lines in record_joint.tables(list(results.values()), rows()).items():
        assert lines and shown(text, marker) == lines


def test_the_recorded_models_had_equal_compute_and_the_settings_of_the_page() -> None:
    from diffprobe.generative.alignment import steps_of_equal_compute

    command = next(line for line in PAGE.read_text("utf-8").splitlines() if "record_diffdis_joint.py" in line)
    results = record_joint.recorded()
    assert f"--seeds {' '.join(map(str, results))} " in command
    for seed, one in results.items():
        facts = {name: one[name].metrics[0].detail["trained"] for name in record_joint.MODELS}
        steps = steps_of_equal_compute(facts["joint"]["max_steps"], facts["joint"]["flops_per_sample"])
        assert steps == {name: facts[name]["max_steps"] for name in steps}
        assert f"trainer.max_steps={facts['joint']['max_steps']}" in command
        channels = one["joint-training"].config["model"]["channels"]
        assert f"model.channels={channels}".replace(" ", "") in command
        assert f"n_per_role={one['joint'].config['n_per_role']}" in command
        assert {one[f"{name}-training"].config["seed"] for name in record_joint.MODELS} == {seed}


def test_the_text_is_that_of_the_results() -> None:
    results, found = record_joint.recorded(), rows()
    assert len(found) == 26 and all(len(row["by_seed"]) == 3 and max(row["by_seed"]) < 0 for row in found)
    assert {row["name"] for row in found if row["high"] >= 0} == {"role_accuracy"}
    steps = [results[0][name].metrics[0].detail["trained"]["max_steps"] for name in record_joint.MODELS]
    text = " ".join(PAGE.read_text("utf-8").split())
    assert f"The joint model has {steps[0]} steps for each task, the others {steps[1]} and {steps[2]:,}" in text


def test_differences_are_paired_by_image() -> None:
    generator = np.random.default_rng(0)
    easy = (generator.random(200) < 0.5).astype(float)
    better = np.maximum(easy, (np.arange(200) % 10 == 0).astype(float))
    groups = [str(number) for number in range(200)]
    samples = {
        "joint": {"one_step": {"groups": groups, "m": better.tolist()}, "generated": {"a": easy.tolist()}},
        "alignment": {"one_step": {"groups": groups, "m": easy.tolist()}},
        "generation": {"generated": {"a": easy.tolist()}},
    }
    found = {(row["model"], row["name"]): row for row in record_joint.differences([samples])}
    row = found["alignment", "m"]
    assert row["estimate"] == pytest.approx((better - easy).mean()) and 0 < row["low"] < row["estimate"] < row["high"]
    assert row["high"] - row["low"] < 0.1  # two unpaired shares of 200 have an interval of 0.2
    same = found["generation", "a"]
    assert same["estimate"] == same["low"] == same["high"] == 0


def test_differences_of_several_seeds_are_of_their_mean_by_image() -> None:
    def samples(gain: float) -> dict[str, Any]:
        return {
            "joint": {"generated": {"a": [gain] * 40}, "one_step": {"m": [gain] * 40}},
            "alignment": {"one_step": {"m": [0.0] * 40}}, "generation": {"generated": {"a": [0.0] * 40}},
        }  # fmt: skip

    for row in record_joint.differences([samples(0.5), samples(-0.25)]):
        assert row["by_seed"] == [0.5, -0.25]
        assert row["estimate"] == row["low"] == row["high"] == pytest.approx(0.125)


@pytest.mark.slow
def test_the_script_runs_at_tiny_size_and_a_second_call_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKL

    from diffprobe.generative.scene_reader import SceneReader
    from diffprobe.runs import train_generative as training
    from diffprobe.shards.datasets import scenes
    from diffprobe.shards.scenes.world import load_world

    scenes.build(tmp_path / "scenes", n=400, seed=0)
    SceneReader(load_world(), resolution=32).save(tmp_path / "reader")
    torch.manual_seed(0)
    vae: Any = AutoencoderKL(
        sample_size=32, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- table: {marker} -->\n\n" for marker in MARKERS), "utf-8")
    monkeypatch.setattr(record_joint, "PAGE", page)
    monkeypatch.setattr(record_joint, "RESULTS", tmp_path / "results")
    evaluation = [f"reader={tmp_path / 'reader'}", "n_per_role=1", "sampling_steps=1", "limit=20", "ddim_steps=2"]
    evaluation += ["n_resamples=20", f"output={tmp_path / 'runs'}"]
    command = [
        *(word for setting in evaluation for word in ("--evaluation", setting)), "--seeds", "0", "1", "--",
        f"autoencoder={tmp_path / 'vae'}", f"data.path={tmp_path / 'scenes'}", "data.batch_size=8", "data.limit=60",
        "model.channels=[8,16]", "model.cross_attention=[false,true]", "model.heads=2", "model.norm_groups=4",
        "trainer.max_steps=2", "trainer.enable_progress_bar=false", "warmup_steps=1", "trainer.precision=32-true",
        "logger=none", f"output={tmp_path / 'runs'}",
    ]  # fmt: skip
    record_joint.main(command)
    text = page.read_text("utf-8")
    assert len(shown(text, "joint-compute")) == 5 and len(shown(text, "joint-generation")) == 6
    assert len(shown(text, "joint-retrieval")) == 2 + 24
    assert " to " in shown(text, "joint-generation")[2]  # the range over seeds
    assert sorted(path.name for path in (tmp_path / "results").glob("seed-*")) == ["seed-0", "seed-1"]
    cost = [float(line.split("|")[6]) for line in shown(text, "joint-compute")[2:]]
    steps = [int(line.split("|")[2].replace(",", "")) for line in shown(text, "joint-compute")[2:]]
    assert len(cost) == 3 and steps[0] == 2 < min(steps[1:])

    def refuse(config: Any) -> Path:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train_generative", refuse)
    record_joint.main(command)
    assert page.read_text("utf-8") == text
