"""Ridge with a cross-validated penalty equals scikit-learn's, fold by fold, and its settings are checked."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.direction import Direction
from diffprobe.probes.direction.base import moments_of
from diffprobe.probes.direction.ridge_cv import Config, estimate_cv

ALPHAS = (3.0, 0.1, 0.003)


def data(n=120, d_in=9, n_columns=3):
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(n, n_columns, generator=generator) > 0.4).long()
    x = torch.randn(n, d_in, generator=generator) * torch.logspace(-2, 2, d_in) + 5
    x[:, 3] += 0.4 * y[:, 0]
    x[:, 7] = 2.5  # constant
    return x, y, torch.randint(0, 4, (n,), generator=generator)


def by_hand(x, y, fold):
    """Scale, fit and score each fold and penalty with scikit-learn."""
    errors = np.zeros((len(ALPHAS), y.shape[1]))
    for k in range(4):
        train, held_out = fold != k, fold == k
        scaler = StandardScaler().fit(x[train])
        for i, alpha in enumerate(ALPHAS):
            model = Ridge(alpha=alpha * int(train.sum())).fit(scaler.transform(x[train]), y[train])
            errors[i] += ((model.predict(scaler.transform(x[held_out])) - y[held_out]) ** 2).sum(0) / len(x)
    scaler = StandardScaler().fit(x)
    whole = [Ridge(alpha=alpha * len(x)).fit(scaler.transform(x), y).coef_ / scaler.scale_ for alpha in ALPHAS]
    return errors, whole


def test_it_is_scikit_learns_ridge_in_every_fold():
    x, y, fold = data()
    errors, whole = by_hand(x.double().numpy(), y.numpy(), fold.numpy())
    parts = [moments_of(x[fold == k], y[fold == k], gram=True) for k in range(4)]
    found, chosen = estimate_cv(parts, Config(positive="a", alphas=(0.1, 3.0, 0.003), folds=4))
    assert chosen[0].path == ALPHAS
    for column, one in enumerate(chosen):
        np.testing.assert_allclose(one.errors, errors[:, column], rtol=1e-7)
        best = int(errors[:, column].argmin())
        assert one.alpha == ALPHAS[best] and one.at_edge == (best != 1)
        expected = whole[best][column]
        np.testing.assert_allclose(found[:, column].numpy()[expected != 0], expected[expected != 0], rtol=1e-6)
    assert found[7].abs().max() == 0
    assert len({one.alpha for one in chosen}) > 1  # each column is tuned by itself


def test_groups_in_memory_stay_together():
    """Copies of a sample in several folds would ask for too small a penalty."""
    generator = torch.Generator().manual_seed(1)
    base, side = torch.randn(24, 20, generator=generator), torch.arange(24) % 2
    x = (base.repeat_interleave(6, 0) + 0.01 * torch.randn(144, 20, generator=generator)).double()
    y, names = side.repeat_interleave(6), [f"g{i // 6}" for i in range(144)]
    grouped = Direction.fit(x, y, estimator="ridge_cv", groups=names, alphas=(100.0, 1e-4))
    single = Direction.fit(x, y, estimator="ridge_cv", alphas=(100.0, 1e-4))
    small = Direction.fit(x, y, estimator="ridge_cv", alphas=(1e-4,))
    assert torch.equal(single.vector, small.vector) and not torch.allclose(grouped.vector, small.vector, atol=0.05)
    order = torch.randperm(144, generator=generator)
    shuffled = Direction.fit(
        x[order], y[order], estimator="ridge_cv", groups=[names[i] for i in order], alphas=(100.0, 1e-4)
    )
    torch.testing.assert_close(shuffled.vector, grouped.vector, rtol=1e-5, atol=1e-6)


def test_faults_are_named():
    for bad, said in (
        ({"alphas": ()}, "at least one"),
        ({"alphas": (1.0, 1.0)}, "each once"),
        ({"alphas": (0.0,)}, "above 0"),
        ({"folds": 1}, "at least 2"),
    ):
        with pytest.raises(ConfigError, match=said):
            Config(positive="a", **bad)
    x, y, fold = data()
    with pytest.raises(EmptyClass):
        estimate_cv(
            [moments_of(x[fold == k], 0 * y[fold == k], gram=True) for k in range(4)], Config(positive="a", folds=4)
        )
    with pytest.raises(ConfigError, match="constant"):
        estimate_cv(
            [moments_of(0 * x[fold == k], y[fold == k], gram=True) for k in range(4)], Config(positive="a", folds=4)
        )
    with pytest.raises(ConfigError, match="2 groups for 5 folds"):
        Direction.fit(x, y[:, 0], estimator="ridge_cv", groups=["a", "b"] * 60)
    with pytest.raises(ConfigError, match="no effect"):
        Direction.fit(x, y[:, 0], estimator="ridge", groups=["a"] * 120)
    with pytest.raises(ConfigError, match="2 groups for 120 samples"):
        Direction.fit(x, y[:, 0], estimator="ridge_cv", groups=["a", "b"])
