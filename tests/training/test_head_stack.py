"""A stack computes what its heads compute one by one: losses, gradients, predictions; interruption changes nothing."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import NonFinite
from diffprobe.core.registry import probes
from diffprobe.metrics.confusion import ConfusionCounts
from diffprobe.training.classifier_bank import ClassifierBankModule, MemberSpec
from diffprobe.training.head_stack import HeadStack, summed_cross_entropy
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import CLASSES, STYLES, WIDTHS, Families

CELLS = tuple(WIDTHS)
POINTS = [
    ({"learning_rate": 0.01}, CELLS, 0),
    ({"learning_rate": 0.03, "label_fraction": 0.4, "label_seed": 2}, CELLS[1:], 0),
    ({"learning_rate": 0.02, "label_fraction": 0.4}, CELLS, 3),
]
UNLIKE = {"linear": {"class_weight": "balanced", "l2": 0.1}, "mlp": {"hidden": 5}, "batchnorm_linear": {}}
SETTINGS = TrainerConfig(accelerator="cpu", enable_progress_bar=False, max_epochs=4)


class Interrupted(Exception):
    """Ends a run in the middle."""


def make(name: str, batched: bool = True) -> ClassifierBankModule:
    config = probes("classifier").load(name).Config
    small = {"hidden": 8} if name == "mlp" else {}
    found = [(config(**small, **params), cells, seed) for params, cells, seed in POINTS]
    found.append((config(**{**small, **UNLIKE[name]}), CELLS, 0))
    specs = [MemberSpec(name=f"m{i}", config=c, cells=cells, seed=s) for i, (c, cells, s) in enumerate(found)]
    classes = {"label": CLASSES, "style": STYLES}
    return ClassifierBankModule(name, specs, widths=WIDTHS, classes=classes, settings=SETTINGS, batched=batched)


def fitted(name: str, folder: Path, batched: bool = True) -> ClassifierBankModule:
    module = make(name, batched)
    with quiet():
        make_trainer(SETTINGS, run_dir=folder).fit(module, datamodule=Families())
    return module.train()


@pytest.mark.parametrize("name", ["linear", "mlp", "batchnorm_linear"])
def test_loss_and_gradients_are_those_of_the_members(name: str, tmp_path: Path) -> None:
    module = fitted(name, tmp_path)
    batch = Families().table("train").take(torch.arange(30))
    stacks = [HeadStack(module.members, joined=joined) for joined in (True, False)]
    found = []
    for loss in (module._loss_of_each, *(stack.loss for stack in stacks)):
        module.zero_grad()
        value = loss(batch)
        value.backward()
        gradients = [weight.grad.clone() for weight in module.parameters() if weight.grad is not None]
        found.append((value.detach(), gradients))
    assert len(found[0][1]) == len(list(module.parameters()))
    for value, gradients in found[1:]:
        torch.testing.assert_close(value, found[0][0])
        torch.testing.assert_close(gradients, found[0][1], rtol=1e-5, atol=1e-6)


def test_a_head_that_ended_leaves_the_others_their_gradients(tmp_path: Path) -> None:
    module = fitted("linear", tmp_path)
    batch, stack = Families().table("train").take(torch.arange(30)), HeadStack(module.members, joined=True)
    stack.loss(batch).backward()
    before = [weight.grad.clone() for weight in module.parameters()]
    broken = module.members[1].banks[0]
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan  # the first class of the first head
    module.zero_grad()
    assert torch.isfinite(stack.loss(batch)) and stack.has_failed
    assert module.members[1].ends.failed.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert not any(member.ends.failed.any() for i, member in enumerate(module.members) if i != 1)
    with pytest.warns(UserWarning, match=r"m1: the loss of 1 of 4 heads became NaN or infinite"):
        stack.loss(batch).backward()
    for (name, weight), old in zip(module.named_parameters(), before, strict=True):
        rows = slice(len(CLASSES), None) if name.startswith("member_1._banks.0.") else slice(None)
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad[rows], old[rows])
    assert not broken.weight.grad[: len(CLASSES)].any()


def test_predictions_are_counted_and_kept_as_those_of_each_probe(tmp_path: Path) -> None:
    module, source = fitted("mlp", tmp_path).eval(), Families()
    with quiet():
        trainer = make_trainer(SETTINGS, run_dir=tmp_path)
        trainer.test(module, datamodule=source, verbose=False)
    table = source.table("test")
    for member in module.members:
        records = {(r.cell, r.target): r for r in member.records("test") if r.name == "accuracy"}
        assert len(records) == 2 * len(member.cells)
        for (cell, target), record in records.items():
            truth = table.label if target == "label" else table.attributes[target]
            known = truth >= 0
            predicted = member.probe(cell, target).predict(table.features[cell])
            assert record.value == pytest.approx(float((predicted == truth)[known].double().mean()))
            kept = member.predictions["test"]
            (number,) = [i for i, h in enumerate(kept.heads) if (h.cell, h.target, h.control) == (cell, target, "none")]
            order = sorted(range(len(table)), key=table.keys.__getitem__)
            assert kept.of("predicted", number).tolist() == predicted[order].tolist()


def test_features_that_are_not_finite_are_named(tmp_path: Path) -> None:
    module = fitted("linear", tmp_path)
    batch = Families().table("train").take(torch.arange(30))
    batch.features[CELLS[1]] = batch.features[CELLS[1]].clone()
    batch.features[CELLS[1]][4, 0] = torch.inf
    stack = HeadStack(module.members, joined=True)
    with pytest.raises(NonFinite, match=f"{CELLS[1]}.*{batch.keys[4]}"):
        stack.loss(batch)
    with pytest.raises(NonFinite, match=f"{CELLS[1]}.*{batch.keys[4]}"):
        stack.score(batch, "val", ConfusionCounts([2]))


@pytest.mark.parametrize("name", ["linear", "batchnorm_linear"])
def test_an_interrupted_bank_ends_as_one_in_one_go(name: str, tmp_path: Path) -> None:
    whole = fitted(name, tmp_path / "whole")

    class Stop(ClassifierBankModule):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 2:
                raise Interrupted

    cut = make(name)
    cut.__class__ = Stop
    with quiet(), pytest.raises(Interrupted):
        make_trainer(SETTINGS, run_dir=tmp_path / "cut").fit(cut, datamodule=Families())
    again = make(name)
    with quiet():
        trainer = make_trainer(SETTINGS, run_dir=tmp_path / "cut")
        last = tmp_path / "cut" / "last.ckpt"
        trainer.fit(again, datamodule=Families(), ckpt_path=last, weights_only=True)
    for key, value in whole.state_dict().items():
        assert value.equal(again.state_dict()[key]), key


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_that_of_torch(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 50, generator=generator, requires_grad=True)
    label = torch.randint(-1, 4, (3, 50), generator=generator)
    weight = torch.rand(3, 4, generator=generator) if weighted else None
    found = summed_cross_entropy(logits, label, weight)
    for i in range(3):
        own = None if weight is None else weight[i]
        expected = F.cross_entropy(logits[:, i].T, label[i], weight=own, ignore_index=-1, reduction="sum")
        torch.testing.assert_close(found[i], expected)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert not gradient.permute(1, 2, 0)[label < 0].any() and torch.isfinite(gradient).all()
