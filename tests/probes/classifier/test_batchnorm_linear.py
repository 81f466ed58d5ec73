import pytest
import torch
from torch import nn

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier import ClassifierProbe
from diffprobe.probes.classifier.bank import make_bank
from diffprobe.probes.classifier.base import make_head
from diffprobe.probes.classifier.batchnorm_linear import Config


def test_it_is_batchnorm_without_parameters_and_a_linear_layer():
    head = make_head("batchnorm_linear", Config(), 7, 3, seed=0)
    assert sum(p.numel() for p in head.parameters()) == 7 * 3 + 3
    plain = nn.Sequential(nn.BatchNorm1d(7, affine=False, eps=1e-6), nn.Linear(7, 3))
    with torch.no_grad():
        for own, other in zip(head.parameters(), plain.parameters(), strict=True):
            own.copy_(torch.randn_like(own))
            other.copy_(own)
    for _ in range(3):
        x = 1 + 4 * torch.randn(11, 7)
        torch.testing.assert_close(head(x), plain(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-5)


def test_a_head_of_the_bank_is_what_it_would_be_alone():
    bank = make_bank("batchnorm_linear", Config(), 5, [3, 2], seeds=[0, 1])
    with torch.no_grad():
        bank.weight.copy_(torch.randn(5, 5))
        bank.standardise(torch.ones(5), torch.full((5,), 4.0))
    x = torch.randn(9, 5)
    bank(x)  # the running statistics move
    found = bank.eval()(x)
    for i, logits in enumerate(found):
        torch.testing.assert_close(bank.head(i)(x), logits, rtol=1e-5, atol=1e-6)
    together = type(bank).together([bank, bank], x)
    assert [len(part) for part in together] == [2, 2]
    torch.testing.assert_close(together[1][0], found[0], rtol=1e-5, atol=1e-6)


def test_it_comes_back_from_its_folder(tmp_path):
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    x[:, 0] += 3 * y
    probe = ClassifierProbe("batchnorm_linear").fit(x, y)
    probe.save_pretrained(tmp_path)
    assert ClassifierProbe.from_pretrained(tmp_path).logits(x).equal(probe.logits(x))


def test_rates_and_shares_out_of_range():
    for bad in ({"learning_rate": 0.0}, {"label_fraction": 0.0}, {"label_fraction": 1.5}, {"label_seed": 3}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Config(**bad)
