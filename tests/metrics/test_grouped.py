import warnings

import pytest
import torch

from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName
from diffprobe.metrics.fvu import Fvu, fvu
from diffprobe.metrics.grouped import Grouped
from diffprobe.metrics.latent_usage import LatentUsage

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR) + 3
X_HAT = X + 0.5 * torch.randn(60, 4, generator=GENERATOR)
T = torch.tensor([25, 200, 500])[torch.randint(0, 3, (60,), generator=GENERATOR)]


def test_each_group_is_measured_as_if_it_were_alone():
    metric = Grouped(Fvu(4), [25, 200, 500])
    for rows in torch.arange(60).split(13):
        metric.update_rows(T[rows], X[rows], X_HAT[rows])
    found = metric.compute()
    assert list(found) == [25, 200, 500]
    for t, value in found.items():
        assert float(value) == pytest.approx(fvu(X[T == t], X_HAT[T == t]), rel=1e-12)
    assert int(metric[200].n) == int((T == 200).sum())


def test_names_may_hold_dots_and_batches_be_of_one_group():
    cells = ["up_blocks.1@t25", "mid_block@t25"]
    metric = Grouped(LatentUsage(3), cells)
    metric.update(cells[0], torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.int64))
    metric.update_rows([cells[1], cells[0]], torch.ones(2, 1), torch.tensor([[1], [2]]))
    found = metric.compute()
    assert found[cells[0]].tolist() == [0.8, 0, 0.2]
    assert found[cells[1]].tolist() == [0, 1, 0]


def test_a_group_without_samples_is_named():
    metric = Grouped(Fvu(4), [25, 200])
    metric.update(25, X, X_HAT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(EmptyClass, match="1 of 2 groups .* 200"):
            metric.compute()
        assert list(metric.present()) == [25]


def test_reset_discards_all():
    metric = Grouped(Fvu(4), [25])
    metric.update(25, X, X_HAT)
    metric.reset()
    assert metric.present() == {}
    metric.update(25, X[:9], X_HAT[:9])
    assert float(metric.compute()[25]) == fvu(X[:9], X_HAT[:9])


def test_faults():
    metric = Grouped(Fvu(4), [25, 200])
    with pytest.raises(UnknownName, match="unknown group '26'"):
        metric.update(26, X, X_HAT)
    with pytest.raises(ConfigError, match="2 groups for rows of length"):
        metric.update_rows([25, 200], X, X_HAT)
    for groups in ([], [25, 25]):
        with pytest.raises(ConfigError, match=r"got \[(25, 25)?\]"):
            Grouped(Fvu(4), groups)
