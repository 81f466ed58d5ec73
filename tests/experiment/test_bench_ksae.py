import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.experiment.bench_ksae import bench_ksae, measure, planted

SHAPE = (64, 32, 128, 8)


def test_ours_learns_what_the_dense_step_learns() -> None:
    ours, dense = (measure(name, "float32", SHAPE, 6, torch.get_num_threads()) for name in ("ours", "dense"))
    assert ours.fvu == pytest.approx(dense.fvu, rel=1e-4)
    untrained = measure("ours", "float32", SHAPE, 2, torch.get_num_threads())
    assert ours.fvu < untrained.fvu < 1.5


def test_the_features_are_sparse_sums_about_a_large_mean() -> None:
    x = planted(500, 32, seed=0)
    assert torch.equal(x, planted(500, 32, seed=0)) and not torch.equal(x, planted(500, 32, seed=1))
    assert x.mean(0).norm() > 2 * x.std(0).norm()


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="k at most the latents"):
        bench_ksae(((8, 4, 4, 5),))
