"""Paired gains over the ladder: which runs beside a run are its rungs, and the differences from each."""

import copy
import json
import shutil

import pytest
import torch

from diffprobe.cli.main import main
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import RunFailed, SchemaError
from diffprobe.core.result import MetricRecord, StartTime, make_result, write_result
from diffprobe.probes.predictions import KeptHead, Predictions, class_scores, save_predictions
from diffprobe.runs.rescore import Bootstrap, compare, load_run
from diffprobe.runs.rescore_ladder import compare_ladder, rungs_of

IDS = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1], [0, 2], [1, 2]])
CELLS = ("mid_block@t20:empty:mean", "mid_block@t200:empty:mean")
CONFIG = {
    "backbone": {"path": "toy", "random_weights": False, "random_seed": 0},
    "data": {"path": "shards"},
    "features": {"taps": ["mid_block"], "timesteps": [20, 200], "pool": "mean", "seed": 0},
    "probe": {"name": "linear"},
    "seed": 0,
}
WRONG = {"none": 0, "raw_pixels": 3, "vae_latents": 2, "random_weights": 1}
"""Control -> samples that the first head of its run gets wrong."""


def write(folder, control="none", *, cells=CELLS, **changes):
    """Write a finished run of a classifier; `changes` replace settings, by dotted key with __ for the dot."""
    config = {**copy.deepcopy(CONFIG), "control": control}
    for key, value in changes.items():
        section, _, last = key.rpartition("__")
        (config[section] if section else config)[last] = value
    tensors, heads = {"ids": IDS}, []
    for i, cell in enumerate(cells):
        heads.append(KeptHead(kind="classes", probe="linear", cell=cell, target="label"))
        logits = torch.nn.functional.one_hot(IDS[:, 0], 2).float()
        logits[: WRONG[control] + i] = logits[: WRONG[control] + i].flip(1)
        tensors |= {f"{name}.{i}": part for name, part in class_scores(logits, IDS[:, 0]).items()}
    values = {"label": ("cat", "dog"), "family": ("a", "b", "c")}
    kept = Predictions(
        split="test", keys=tuple("abcdef"), values=values, heads=tuple(heads), tensors=tensors, group="family"
    )
    path = folder / "predictions-test.safetensors"
    save_predictions(kept, path)
    result = make_result(
        run=folder.name, experiment="toy", kind="classifier", config=config, seeds={"run": config["seed"]},
        metrics=[MetricRecord(name="accuracy", value=0.5, split="test", n=6, cell=cells[0], target="label")],
        started_at=StartTime.now(), artifacts={path.name: digest_file(path), "input/shards": "s"},
    )  # fmt: skip
    write_result(result, folder / "result.json")
    return folder


@pytest.fixture
def run(tmp_path):
    """A run with three of its rungs, and runs beside it that are none."""
    folder = tmp_path / "toy"
    write(folder / "pixels", "raw_pixels", cells=["pixels@t0:empty:mean"])
    write(folder / "latents", "vae_latents", cells=["latents@t0:empty:mean"])
    write(folder / "random", "random_weights")
    write(folder / "other-seed", "random_weights", seed=1)
    write(folder / "other-noise", "random_weights", features__seed=1)
    write(folder / "other-draw", "random_weights", backbone__random_seed=1)
    write(folder / "other-data", "raw_pixels", cells=["pixels@t0:empty:mean"], data__path="more")
    write(folder / "other-probe", "random_weights", probe__name="linear_cv")
    write(folder / "other-model", "vae_latents", cells=["latents@t0:empty:mean"], backbone__path="large")
    write(folder / "other-pool", "random_weights", features__pool="max")
    return write(folder / "itself")


def test_rungs_have_the_settings_and_seeds_of_the_run(run):
    found = rungs_of(run)
    assert list(found) == ["raw_pixels", "vae_latents", "random_weights"]
    assert [folder.name for folder in found.values()] == ["pixels", "latents", "random"]
    assert rungs_of(run / "result.json") == found


def test_differences_are_those_from_each_rung(run):
    drawn = Bootstrap(resamples=50)
    found = compare_ladder(load_run(run), rungs_of(run), metrics=["accuracy"], bootstrap=drawn)
    values = [(r.detail["against"]["rung"], r.cell, r.value) for r in found]
    expected = [
        ("raw_pixels", (3 - 0) / 6, (3 - 1) / 6),
        ("vae_latents", 2 / 6, 1 / 6),
        ("random_weights", 1 / 6, 1 / 6),
    ]
    assert values == [
        (rung, cell, pytest.approx(gain)) for rung, *gains in expected for cell, gain in zip(CELLS, gains, strict=True)
    ]
    alone = compare(load_run(run), load_run(run.parent / "pixels"), metrics=["accuracy"], bootstrap=drawn)
    assert [r.detail["interval"] for r in found[:2]] == [r.detail["interval"] for r in alone]


def test_of_several_pixels_the_run_s_own_are_taken(run):
    """Pixels are the same whatever cells a run reads, so those of another run could serve too."""
    write(
        run.parent / "wider", "raw_pixels", cells=["pixels@t0:empty:mean"], features__taps=["mid_block", "up_blocks.0"]
    )
    assert rungs_of(run)["raw_pixels"].name == "pixels"
    shutil.rmtree(run.parent / "pixels")
    assert rungs_of(run)["raw_pixels"].name == "wider"
    write(run.parent / "narrow", "raw_pixels", cells=["pixels@t0:empty:mean"], features__timesteps=[5])
    with pytest.raises(RunFailed, match=r"2 rungs raw_pixels(.|\n)*narrow(.|\n)*wider(.|\n)*--against RUN"):
        rungs_of(run)


def test_a_run_without_rungs_or_that_is_one_is_refused(run, tmp_path):
    with pytest.raises(RunFailed, match=r"'pixels' is a control itself \(raw_pixels\)"):
        rungs_of(run.parent / "pixels")
    alone = write(tmp_path / "alone" / "itself")
    with pytest.raises(RunFailed, match=r"no rung(.|\n)*experiment=toy control=ladder"):
        rungs_of(alone)


def test_a_result_that_cannot_be_read_is_not_passed_over(run):
    (run.parent / "random" / "result.json").write_text("{")
    with pytest.raises(SchemaError, match="random"):
        rungs_of(run)


def test_the_command_names_the_rungs_and_those_that_are_not_there(run, capsys):
    command = ["rescore", str(run), "--ladder", "--metric", "accuracy", "--interval", "bootstrap", "--resamples", "20"]
    assert main([*command, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert [record["detail"]["against"]["rung"] for record in json.loads(out)][::2] == [
        "raw_pixels", "vae_latents", "random_weights",
    ]  # fmt: skip
    assert "no run of these rungs is beside it: text_encoder" in err
    assert main(command) == 0
    assert "against_rung" in capsys.readouterr().out
    assert main([*command, "--against", str(run)]) == 2
    assert "--ladder" in capsys.readouterr().err
