import numpy as np
import pytest
import torch

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.direction.base import moments_of
from diffprobe.probes.direction.pca import Config, estimate
from tests.probes.direction.test_ridge import confounded


def axis(x, positive, component=1):
    return estimate(moments_of(x, positive, gram=True), Config(positive="", component=component))[:, 0]


@pytest.mark.parametrize("component", [1, 2, 5])
def test_equals_scikit_learn_up_to_the_sign(component):
    decomposition = pytest.importorskip("sklearn.decomposition")
    x, positive = confounded(n=300)
    expected = decomposition.PCA(5, svd_solver="full").fit(x.double().numpy()).components_[component - 1]
    found = axis(x, positive, component).numpy()
    assert abs(found @ expected) == pytest.approx(1, abs=1e-9)


def test_labels_fix_the_sign_and_nothing_else():
    x, positive = confounded(n=300)
    found = axis(x, positive)
    assert float((x[positive].double().mean(0) - x[~positive].double().mean(0)) @ found) > 0
    torch.testing.assert_close(axis(x, ~positive), -found)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(axis(x[order], positive[order]), found)
    noise = torch.rand(300, generator=torch.Generator().manual_seed(2)) > 0.5
    assert abs(float(axis(x, noise) @ found)) == pytest.approx(1)


def test_bad_input():
    with pytest.raises(ConfigError, match="component=0"):
        Config(positive="a", component=0)
    x, positive = confounded(n=50)
    with pytest.raises(ConfigError, match="5 components"):
        axis(x, positive, 6)
    with pytest.raises(EmptyClass):
        axis(x, torch.ones(50, dtype=torch.bool))
    with pytest.raises(ConfigError, match="0 components"):
        axis(torch.zeros(4, 3), torch.tensor([True, False, True, False]))
    assert np.isfinite(axis(x, positive, 5).numpy()).all()
