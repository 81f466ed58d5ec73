import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite, UnknownName
from diffprobe.core.registry import probes
from diffprobe.features.batch import FeatureBatch
from diffprobe.probes.classifier.linear import Config
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import WIDTHS, Families

CPU = {"accelerator": "cpu", "enable_progress_bar": False}


def run(
    toy,
    tmp_path,
    cells=None,
    targets=("label", "style"),
    controls=("shuffled_labels",),
    name="linear",
    params=None,
    metrics=(),
    batch_size=16,
    more=(),
    **settings,
):
    source = toy(batch_size=batch_size, **({"cells": cells} if cells else {}))
    config = TrainerConfig(**{**CPU, "max_epochs": 6, "weight_decay": 0.01, **settings})
    classes = {t: (*(source.classes if t == "label" else source.attributes[t]), *more) for t in targets}
    params = probes("classifier").load(name).Config(controls=controls, **(params or {}))
    module = ClassifierModule(name, params, widths=source.widths, classes=classes, metrics=metrics, settings=config)
    with quiet():
        trainer = make_trainer(config, run_dir=tmp_path)
        trainer.fit(module, datamodule=source)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
    return module


@pytest.mark.slow
def test_learns_the_labels_and_its_control_does_not(toy, tmp_path):
    module = run(toy, tmp_path, max_epochs=30, learning_rate=0.02)
    for record in module.records("val"):
        if record.name == "accuracy" and record.target == "label" and record.cell.startswith("mid"):
            assert record.value > 0.75 > 0.5 > record.controls["shuffled_labels"]
            assert record.controls["chance"] < 0.45 and record.probe == "linear"
    assert len(module.records("test")) == 2 * 2 * 2
    known = int((toy().table("test").label >= 0).sum())
    assert {r.n for r in module.records("test") if r.target == "label"} == {known}


def test_classes_that_the_split_lacks_are_counted_apart(toy, tmp_path):
    module = run(toy, tmp_path, targets=("style",), controls=(), more=("absent",), max_epochs=1)
    for record in module.records("test"):
        assert record.detail == {"n_classes": 4, "n_classes_held": 3}
        if record.name == "balanced_accuracy":
            assert record.controls["chance"] == pytest.approx(1 / 3)


def test_shuffled_labels_keep_families(tmp_path):
    module = run(Families, tmp_path, cells=(next(iter(WIDTHS)),), targets=("style", "kind"), max_epochs=1)
    table = Families().table("train")
    labels = module._task_labels(table.take(torch.arange(len(table))))
    (_, style), (true, kind) = labels[:2], labels[2:]
    assert not kind.equal(true)
    for family in range(len(table) // 4):
        inside = table.attributes["family"] == family
        assert len(kind[inside].unique()) == 1
        if len(table.attributes["style"][inside].unique()) > 1:
            assert style[inside].sort().values.equal(table.attributes["style"][inside].sort().values)
    for record in module.records("test"):
        found = record.detail["shuffled_labels"]
        assert found["group_by"] == "family" and found["changed"] > 0.2
        assert (found["groups_permuted_within"] == 0) == (record.target == "kind")


def test_a_group_that_the_data_lack_is_named(tmp_path):
    class Renamed(Families):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.request.shard_set.group = "author"

    with pytest.raises(UnknownName, match="author"):
        run(Renamed, tmp_path, max_epochs=1)


@pytest.mark.slow
def test_a_bank_equals_separate_runs(toy, tmp_path):
    bank = run(toy, tmp_path / "bank")
    for cell in bank.cells:
        for target in ("label", "style"):
            alone = run(toy, tmp_path / cell / target, cells=(cell,), targets=(target,), controls=())
            one, many = alone.probe(cell, target), bank.probe(cell, target)
            torch.testing.assert_close(one.weight, many.weight, rtol=1e-4, atol=1e-6)
            assert one.weight.abs().max() > 0.01  # it did move
            mine = next(r for r in bank.records("test") if (r.cell, r.target, r.name) == (cell, target, "accuracy"))
            assert alone.records("test")[0].value == mine.value


def test_standardisation_is_that_of_the_whole_training_set(toy, tmp_path):
    module = run(toy, tmp_path, max_epochs=1, batch_size=13)
    for cell, bank in zip(module.cells, module.banks, strict=True):
        x = toy().table("train").features[cell].double()
        torch.testing.assert_close(bank.mean, x.mean(0).float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(bank.inverse_std, 1 / x.std(0, unbiased=False).float(), rtol=1e-5, atol=1e-6)


def test_bf16_runs_and_agrees_roughly(toy, tmp_path):
    full, half = run(toy, tmp_path / "a"), run(toy, tmp_path / "b", precision="bf16-mixed")
    assert half.probe(half.cells[0], "label").weight.dtype == torch.float32
    for a, b in zip(full.records("val"), half.records("val"), strict=True):
        assert b.value == pytest.approx(a.value, abs=0.15)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_features_that_are_no_numbers_are_named(toy, tmp_path, split):
    class Spoilt(toy):
        def table(self, asked):
            table = super().table(asked)
            if asked == split:
                table.features[self.cells[1]][5, 1] = float("inf")
            return table

    with pytest.raises(NonFinite, match=rf"cell 'up_blocks.*' has NaN .* in 1 samples, the first is '{split}/5'"):
        run(Spoilt, tmp_path, max_epochs=1)


def test_under_bf16_the_accuracy_is_that_of_the_float32_probe():
    module = ClassifierModule(
        "linear", Config(controls=()), widths={"c": 2}, classes={"label": "ab"}, settings=TrainerConfig(**CPU)
    )
    with torch.no_grad():
        module.banks[0].weight.copy_(torch.tensor([[256.0, 0.0], [257.0, 0.0]]))  # bf16 has no 257
    batch = FeatureBatch({"c": torch.tensor([[1.0, 0.0]])}, ["one"], torch.tensor([1]), {})
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        module.test_step(batch, 0)
    assert module.probe("c", "label").predict(batch.features["c"]).tolist() == [1]
    assert module.confusion.compute()[0].tolist() == [[0, 0], [0, 1]]


def test_clipping_is_refused(toy):
    settings = TrainerConfig(gradient_clip=1.0)
    with pytest.raises(ConfigError, match="gradient_clip"):
        ClassifierModule("linear", Config(), widths={"c": 2}, classes={"label": "ab"}, settings=settings)
