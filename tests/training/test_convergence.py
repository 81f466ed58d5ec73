"""A classifier that stops far from a minimum says so; the ratio is that of exact gradients."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from diffprobe.config.schema import TrainerConfig
from diffprobe.probes.classifier.bank import HeadBank
from diffprobe.probes.classifier.linear import Config
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.convergence import FAR, ratios, warn_of_distance
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import STYLES, WIDTHS, Toy

CELL = next(iter(WIDTHS))


def trained(tmp_path, **settings):
    fixed = {"accelerator": "cpu", "enable_progress_bar": False, **settings}
    config = TrainerConfig(**fixed)
    widths, classes = {CELL: WIDTHS[CELL]}, {"style": STYLES}
    module = ClassifierModule("linear", Config(controls=()), widths=widths, classes=classes, settings=config)
    source = Toy(batch_size=91, cells=(CELL,))
    with quiet(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(config, run_dir=tmp_path)
        trainer.fit(module, datamodule=source)
        trainer.test(module, datamodule=source, verbose=False)
    return module, [str(one.message) for one in caught if "convergence" in str(one.message)]


@pytest.mark.slow
def test_a_short_run_is_far_and_a_long_one_is_not(tmp_path):
    module, warned = trained(tmp_path / "short", max_epochs=3)
    (record, *_) = module.records("test")
    assert record.detail["far_from_convergence"] is True and record.detail["gradient_ratio"] > 0.5
    (text,) = warned
    assert "1 of 1 classifiers" in text and f"'style' in {CELL}" in text and "trainer.max_epochs" in text
    module, warned = trained(tmp_path / "long", max_epochs=150, learning_rate=0.1)
    (record, *_) = module.records("test")
    assert record.detail["far_from_convergence"] is False and record.detail["gradient_ratio"] < 0.03 < FAR
    assert warned == []
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in module.parameters())


def test_the_ratio_is_that_of_the_gradients_of_the_whole_training_set(tmp_path):
    module, _ = trained(tmp_path, max_epochs=3)
    table, probe = Toy(cells=(CELL,)).table("train"), module.probe(CELL, "style")
    x = (table.features[CELL] - probe.mean) * probe.inverse_std
    norms = []
    for weight, bias in ((probe.weight, probe.bias), (torch.zeros(3, 12), torch.zeros(3))):
        weight, bias = weight.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
        loss = F.cross_entropy(F.linear(x, weight, bias), table.attributes["style"])
        parts = torch.autograd.grad(loss, (weight, bias))
        norms.append(torch.cat([part.flatten() for part in parts]).norm())
    assert next(iter(module.gradient_ratios.values())) == pytest.approx(float(norms[0] / norms[1]), rel=1e-4)


def test_what_has_another_minimum_is_not_judged(tmp_path):
    module, warned = trained(tmp_path, max_epochs=1, weight_decay=0.1)
    assert warned == [] and "gradient_ratio" not in module.records("test")[0].detail


def test_ratios_of_starts_without_a_gradient():
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert ratios([zero, one, one, None], [zero, zero, 2 * one, one]) == [0.0, None, 0.5, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_distance({"a": None, "b": FAR})


def test_gradients_are_divided_among_any_heads():
    bank = HeadBank("linear", Config(), 4, [2, 3], [0, 1])
    values = [torch.full_like(weight, i) for i, weight in enumerate(bank.parameters())]
    assert [[int(part.flatten()[0]) for part in head] for head in bank.by_head(values)] == [[0, 1], [2, 3]]
