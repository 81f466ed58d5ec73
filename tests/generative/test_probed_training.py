"""Probes during training: they change nothing, are those of saved weights, continue after an interruption."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.config.schema import LoggerConfig
from diffprobe.core.errors import ConfigError, UnknownName, UnknownTap
from diffprobe.core.result import MetricRecord, read_result
from diffprobe.generative.architectures import DenoiserShape
from diffprobe.generative.denoiser import DenoiserModule
from diffprobe.generative.flow_transformer import TransformerShape
from diffprobe.generative.image_table import load_table
from diffprobe.generative.objectives.base import ObjectiveConfig
from diffprobe.generative.probed_training import TrainingProbesConfig, _draw
from diffprobe.probes.ridge_classifier import ridge_predictions
from diffprobe.runs.train_generative import train_generative
from tests.toy_generative import toy_trainings

PROBES = TrainingProbesConfig(
    attributes=("group", "colour"), taps=("mid_block", "up_blocks.0"), timesteps=(100, 700), steps=(1, 3)
)


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def config(tiny_shards: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny denoiser with dropout: two epochs of two steps."""
    plain = toy_trainings(tiny_shards, tiny_teacher, tmp_path_factory.mktemp("autoencoder"))["denoiser"]
    trainer = dataclasses.replace(plain.trainer, checkpoint_every_steps=1)
    return dataclasses.replace(plain, model=dataclasses.replace(plain.model, dropout=0.3), trainer=trainer)


@pytest.fixture(scope="module")
def probed(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with probes and snapshots."""
    output = str(tmp_path_factory.mktemp("probed"))
    logger = LoggerConfig(kind="csv")
    return train_generative(
        dataclasses.replace(config, probes=PROBES, snapshot_every_steps=2, output=output, logger=logger)
    ).parent


def probe_records(folder: Path) -> list[MetricRecord]:
    return [record for record in read_result(folder / "result.json").metrics if record.probe == "ridge"]


@pytest.mark.slow
def test_trained_weights_are_equal_bit_for_bit_without_probes(config: Any, probed: Path, tmp_path: Path) -> None:
    plain = train_generative(dataclasses.replace(config, output=str(tmp_path))).parent
    one, two = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (plain, probed))
    for part in ("state_dict", "current_model_state"):
        assert one[part].keys() == two[part].keys() and one[part]
        assert all(torch.equal(value, two[part][name]) for name, value in one[part].items())
    assert [record.name for record in read_result(plain / "result.json").metrics] == ["mse"]
    assert not (plain / "probes.csv").exists()


@pytest.mark.slow
def test_a_record_has_the_curve_and_its_controls(probed: Path) -> None:
    records = probe_records(probed)
    assert [(record.cell, record.target) for record in records] == [
        (f"{tap}@t{t}:empty:mean", attribute)
        for tap in PROBES.taps for t in PROBES.timesteps for attribute in PROBES.attributes
    ]  # fmt: skip
    for record in records:
        assert record.detail["steps"] == [0, 1, 3, 4] and record.n == 4 and record.split == "val"
        assert record.controls.keys() == {"random_weights", "raw_pixels", "chance"}
        assert record.controls["random_weights"] == record.detail["curve"][0]
        assert record.value == record.detail["curve"][-1]
        assert record.detail["interval"][0] <= record.value <= record.detail["interval"][1]
        assert record.detail["rise"][0] == [0, 0] and len(record.detail["rise"]) == 4
    with (probed / "probes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(records)
    assert [float(row["accuracy"]) for row in rows[:4]] == records[0].detail["curve"]
    (curves,) = probed.rglob("metrics.csv")
    with curves.open(encoding="utf-8", newline="") as file:
        logged = [(int(row["step"]), row["probe/group/mid_block@t100"]) for row in csv.DictReader(file)]
    found = [(step, float(accuracy)) for step, accuracy in logged if accuracy]
    assert found == list(zip((0, 1, 3, 4), records[0].detail["curve"], strict=True))


@pytest.mark.slow
def test_the_last_accuracy_is_that_of_the_saved_weights(config: Any, probed: Path) -> None:
    reader = DiffusionFeatures.from_pretrained(
        str(probed / "weights"), taps=["mid_block"], timesteps=[700], device="cpu"
    )
    rows, labels = [], []
    for split in ("train", "val"):
        table = _draw(load_table(config.data, split, resolution=16), PROBES.attributes, 2000, split)
        rows.append(reader(table.to_float(slice(None)), keys=table.keys)["mid_block@t700:empty:mean"])
        labels.append(torch.tensor([["blue green red".split().index(s["colour"])] for s in table.attributes]))
    found = ridge_predictions(rows[0], labels[0], rows[1], n_classes=[3])
    accuracy = float((found == labels[1]).double().mean())
    (record,) = (r for r in probe_records(probed) if r.cell == "mid_block@t700:empty:mean" and r.target == "colour")
    assert record.value == accuracy


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 3])
def test_an_interrupted_run_continues_its_curve(
    stop_at: int, config: Any, probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, probes=PROBES, snapshot_every_steps=2, output=str(tmp_path))
    original = DenoiserModule.training_step

    def stopping(module: Any, *args: Any) -> Any:
        if module.global_step == stop_at:
            raise Interrupted
        return original(module, *args)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(DenoiserModule, "training_step", stopping)
        train_generative(config)
    folder = train_generative(config).parent
    assert read_result(folder / "result.json").metrics == read_result(probed / "result.json").metrics
    assert (folder / "probes.csv").read_bytes() == (probed / "probes.csv").read_bytes()
    for snapshot in ("step-2", "step-4"):
        one, two = (load_file(f / "snapshots" / snapshot / "unet/diffusion_pytorch_model.safetensors")
                    for f in (folder, probed))  # fmt: skip
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_cannot_be_measured_is_refused_before_the_first_step(config: Any, tmp_path: Path) -> None:
    for change, error, message in (
        ({"steps": (5,)}, ConfigError, "probes.steps=5 is never reached: the training has 4 steps"),
        ({"every_n_steps": 9}, ConfigError, "probes.every_n_steps=9 is never reached"),
        ({"attributes": ("shade",)}, UnknownName, "shade"),
        ({"taps": ("mid_blocks",)}, UnknownTap, "mid_blocks"),
    ):
        probes = dataclasses.replace(PROBES, **change)
        with pytest.raises(error, match=message):
            train_generative(dataclasses.replace(config, probes=probes, output=str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": ()}, "at least one"),
        ({"taps": ("mid_block", "mid_block")}, "each once"),
        ({"steps": (0, 5)}, "ascending whole numbers from 1"),
        ({"steps": (5, 2)}, "ascending whole numbers from 1"),
        ({"every_n_steps": 0}, "every_n_steps=0 is out of range"),
        ({"n_train": 9}, "n_train=9 is out of range"),
        ({"pool": "tokens4"}, "one row per image"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PROBES, **change)


def test_measured_steps_are_those_listed_and_the_multiples() -> None:
    config = dataclasses.replace(PROBES, every_n_steps=4)
    assert [step for step in range(1, 10) if config.measures(step)] == [1, 3, 4, 8]


@pytest.mark.slow
def test_a_flow_transformer_is_probed_and_kept_too(config: Any, tmp_path: Path) -> None:
    flow = dataclasses.replace(
        config, model=DenoiserShape(text_width=16, text_layers=2, text_heads=2, vocab_size=540, max_tokens=16),
        transformer=TransformerShape(layers=2, heads=2, head_width=8), noise=None,
        objective=ObjectiveConfig(name="flow_matching"), output=str(tmp_path), snapshot_every_steps=2,
        probes=dataclasses.replace(PROBES, taps=("transformer_blocks.0",), steps=(1,)),
    )  # fmt: skip
    folder = train_generative(flow).parent
    assert [record.cell for record in probe_records(folder)][0] == "transformer_blocks.0@t100:empty:mean"
    kept = DiffusionFeatures.from_pretrained(
        str(folder / "snapshots/step-2"), taps=["transformer_blocks.1"], timesteps=[100], device="cpu"
    )
    assert kept(torch.zeros(1, 3, 16, 16), keys=["a"])["transformer_blocks.1@t100:empty:mean"].shape == (1, 16)
