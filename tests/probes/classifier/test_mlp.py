import pytest
import torch
from torch import nn

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier import ClassifierProbe
from diffprobe.probes.classifier.bank import make_bank
from diffprobe.probes.classifier.base import make_head
from diffprobe.probes.classifier.mlp import Config


def test_it_is_linear_relu_linear():
    head = make_head("mlp", Config(hidden=6, layers=2), 5, 3, seed=0)
    kinds = [type(part) for part in head]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    assert sum(p.numel() for p in head.parameters()) == (5 * 6 + 6) + (6 * 6 + 6) + (6 * 3 + 3)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_bank_equals_its_heads_one_by_one_with_gradients(layers):
    config = Config(hidden=6, layers=layers)
    bank = make_bank("mlp", config, 5, [3, 2, 3], seeds=[0, 1, 0])
    x = torch.randn(11, 5)
    found = bank(x)
    sum(part.square().sum() for part in found).backward()
    for i, (logits, count, seed) in enumerate(zip(found, [3, 2, 3], [0, 1, 0], strict=True)):
        alone = make_head("mlp", config, 5, count, seed=seed)
        expected = alone(x)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
        expected.square().sum().backward()
        for ours, theirs in zip(bank.heads[i].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_banks_together_equal_each_alone_whatever_their_widths():
    banks = [
        make_bank("mlp", Config(hidden=h), 5, counts, seeds=[i, i + 9])
        for i, (h, counts) in enumerate([(6, [3, 2]), (4, [2, 2]), (6, [4, 3])])
    ]
    x = torch.randn(8, 5)
    for bank, logits in zip(banks, type(banks[0]).together(banks, x), strict=True):
        for own, expected in zip(logits, bank(x), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_it_learns_what_no_linear_classifier_can(tmp_path):
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    probe = ClassifierProbe("mlp", Config(hidden=16)).fit(x, y)
    assert probe.score(x, y) > 0.95 > 0.7 > ClassifierProbe("linear").fit(x, y).score(x, y)
    probe.save_pretrained(tmp_path)
    assert ClassifierProbe.from_pretrained(tmp_path).logits(x).equal(probe.logits(x))


def test_values_out_of_range():
    for bad in ({"hidden": 0}, {"layers": 0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(bad))}="):
            Config(**bad)
    with pytest.raises(ConfigError, match="dropout"):
        ClassifierProbe("mlp", Config(dropout=0.5)).fit(torch.randn(6, 2), torch.arange(6) % 2)
