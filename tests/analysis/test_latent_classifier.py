import numpy as np
import pytest
import torch

from diffprobe.analysis.latent_classifier import fit_latent_classifier
from diffprobe.core.errors import ConfigError, EmptyClass


def latents(n, seed=0, side=4):
    return torch.randn(n, 2, side, side, generator=torch.Generator().manual_seed(seed))


def labelled(n, seed=0):
    """Class 2 where the first channel is bright, else class 0; every fifth sample has no label."""
    x = latents(n, seed)
    labels = np.where(x[:, 0].mean((1, 2)).numpy() > 0, 2, 0)
    labels[::5] = -1
    return x, labels


def test_what_is_in_the_latents_is_read_from_new_ones():
    x, labels = labelled(120)
    found = fit_latent_classifier(x, labels, list(range(120)), n_classes=3, what="style")
    assert found.n_train == 96 and found.weight.shape == (3, 32) and torch.isinf(found.bias[1])
    new, expected = labelled(100, seed=1)
    known = expected >= 0
    assert (found.predict(new)[known] == expected[known]).mean() > 0.85


def test_large_latents_are_averaged_to_sixteen_places_a_side():
    x = latents(12, side=4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    labels = np.arange(12) % 2
    found = fit_latent_classifier(x, labels, list(range(12)), n_classes=2, what="style")
    assert found.weight.shape == (2, 2 * 16 * 16)


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(EmptyClass, match=r"'style' has 1 value(.|\n)*classifier_limit"):
        fit_latent_classifier(latents(9), np.zeros(9, dtype=np.int64), list(range(9)), n_classes=2, what="style")
    with pytest.raises(ConfigError, match="2 groups.*5 folds|folds"):
        fit_latent_classifier(latents(8), np.arange(8) % 2, ["a", "b"] * 4, n_classes=2, what="style")
