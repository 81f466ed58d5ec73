import numpy as np
import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.metrics.moments import RunningMoments
from diffprobe.probes.caption.base import FoldSums
from diffprobe.probes.caption.ridge import Config, estimate_cv, make


def data(n=120, noise=0.5):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=draw, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.2, 1.0, 2.0]) + 7
    y = x @ torch.randn(5, 4, generator=draw, dtype=torch.float64) - 3
    return x, y + noise * torch.randn(n, 4, generator=draw, dtype=torch.float64)


def sums(x, y):
    joint, own = RunningMoments(5, 4, gram=True), RunningMoments(4)
    joint.update(x, y)
    own.update(y)
    return FoldSums(joint.compute(), own.compute().square)


def by_hand(x, y, alpha):
    from sklearn.linear_model import Ridge

    mean, std = x.mean(0), x.std(0)
    fitted = Ridge(alpha=alpha * len(x)).fit((x - mean) / std, y)
    return lambda other: fitted.predict((other - mean) / std), fitted.coef_.T / std[:, None]


def test_weights_and_errors_are_those_of_scikit_learn():
    x, y = data()
    fold = np.arange(len(x)) % 3
    parts = [sums(x[fold == k], y[fold == k]) for k in range(3)]
    config = Config(alphas=(3.0, 0.3, 0.03, 0.001), folds=3)
    weights, chosen = estimate_cv(parts, config)
    a, b = x.numpy(), y.numpy()
    for alpha, error in zip(chosen.path, chosen.errors, strict=True):
        expected = 0.0
        for k in range(3):
            predict, _ = by_hand(a[fold != k], b[fold != k], alpha)
            expected += ((b[fold == k] - predict(a[fold == k])) ** 2).sum()
        assert error == pytest.approx(expected / len(x), rel=1e-8)
    assert chosen.alpha == chosen.path[int(np.argmin(chosen.errors))]
    np.testing.assert_allclose(weights.numpy(), by_hand(a, b, chosen.alpha)[1], rtol=1e-8)


def test_pure_noise_takes_the_largest_penalty():
    x, _ = data()
    y = torch.randn(len(x), 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights, chosen = estimate_cv([sums(x[::2], y[::2]), sums(x[1::2], y[1::2])], Config(folds=2))
    assert chosen.alpha == 10 and chosen.at_edge and float(weights.norm()) < 0.1


def test_the_map_has_no_parameter_to_train_and_starts_at_zero():
    found = make(Config(), 3, 2, seed=0)
    assert not any(part.requires_grad for part in found.parameters()) and not found(torch.ones(1, 3)).any()


@pytest.mark.parametrize("params", [{"alphas": ()}, {"alphas": (1.0, 1.0)}, {"alphas": (0.0,)}, {"folds": 1}])
def test_settings_out_of_range_are_refused(params):
    with pytest.raises(ConfigError, match=next(iter(params))):
        Config(**params)
