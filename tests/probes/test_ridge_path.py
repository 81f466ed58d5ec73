"""Ridge in closed form: scikit-learn's Ridge and RidgeClassifier along a path, also with few samples."""

import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.ridge_path import one_hot_targets, ridge_path

PATH = torch.tensor([10.0, 0.1, 1e-3], dtype=torch.float64)


def _data(n: int = 80, d: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=made, dtype=torch.float64) * 3 + 7
    y = torch.randn(n, 2, generator=made, dtype=torch.float64) + x[:, :2]
    return x, y, torch.rand(n, generator=made, dtype=torch.float64)


@pytest.mark.parametrize("n", [80, 8])
def test_every_point_of_the_path_is_scikit_learns_ridge(n: int) -> None:
    x, y, weights = _data(n)
    scaler = StandardScaler().fit(x.numpy())
    found, offset = ridge_path(x, y, PATH, weights=weights)
    for i, l2 in enumerate(PATH.tolist()):
        model = Ridge(alpha=l2 * float(weights.sum())).fit(scaler.transform(x.numpy()), y.numpy(), weights.numpy())
        theirs = torch.tensor(model.predict(scaler.transform(x.numpy())))
        assert torch.allclose(x @ found[i].T + offset[i], theirs, atol=1e-8)


def test_the_classifier_is_scikit_learns_and_samples_without_weight_do_not_count() -> None:
    x, y, _ = _data()
    labels = y.argmax(1) + (y[:, 0] > 8)
    used = torch.arange(len(x)) % 4 != 0
    found, offset = ridge_path(x, one_hot_targets(labels, 3), PATH[:1], weights=used.double())
    scaler = StandardScaler().fit(x[used].numpy())
    model = RidgeClassifier(alpha=10 * float(used.sum())).fit(scaler.transform(x[used].numpy()), labels[used].numpy())
    theirs = torch.tensor(model.decision_function(scaler.transform(x.numpy())))
    assert torch.allclose(x @ found[0].T + offset[0], theirs, atol=1e-8)


def test_a_constant_dimension_gets_no_weight() -> None:
    x, y, _ = _data()
    x[:, 3] = 0.1
    assert (ridge_path(x, y, PATH)[0][:, :, 3] == 0).all()


def test_unusable_input_is_refused() -> None:
    x, y, weights = _data()
    with pytest.raises(ConfigError, match="l2"):
        ridge_path(x, y, torch.tensor([0.0]))
    with pytest.raises(ConfigError, match="weight"):
        ridge_path(x, y, PATH, weights=weights * 0)
    x[0, 0] = torch.inf
    with pytest.raises(NonFinite):
        ridge_path(x, y, PATH)
