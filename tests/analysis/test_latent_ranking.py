"""The ranking of latents against a dense computation, in any order and split of the stream."""

import numpy as np
import pytest
import torch

from diffprobe.analysis.latent_ranking import LatentActivity
from diffprobe.core.errors import ConfigError, EmptyClass

N, K, N_LATENTS = 200, 5, 20


@pytest.fixture
def codes():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-2, 6, (N, K), generator=generator).float() / 3
    indices = torch.stack([torch.randperm(N_LATENTS, generator=generator)[:K] for _ in range(N)])
    return values, indices


def ranked(codes, order, size, **settings):
    activity = LatentActivity(N_LATENTS)
    for rows in order.split(size):
        activity.update(codes[0][rows], codes[1][rows])
    return activity.rank(**settings)


def test_it_equals_the_dense_computation(codes):
    dense = torch.zeros(N, N_LATENTS).scatter_(1, codes[1], codes[0]).relu().numpy()
    n_active = (dense > 0).sum(0)
    more_than = int(np.median(n_active))
    mean = dense.sum(0) / n_active
    expected = sorted((latent for latent in range(N_LATENTS) if n_active[latent] > more_than),
                      key=lambda latent: (-np.float32(mean[latent]), latent))  # fmt: skip
    found = ranked(codes, torch.arange(N), 64, more_than=more_than, n=5)
    assert found.latents.tolist() == expected[:5]
    assert (found.n_eligible, found.n_latents, found.n_images) == (len(expected), N_LATENTS, N)


def test_order_and_batches_do_not_matter(codes):
    whole = ranked(codes, torch.arange(N), N, more_than=10, n=N_LATENTS).latents
    for seed, size in ((1, 1), (2, 7), (3, 64)):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        assert ranked(codes, order, size, more_than=10, n=N_LATENTS).latents.tolist() == whole.tolist()


def test_equal_means_are_ordered_by_number():
    activity = LatentActivity(4)
    activity.update(torch.ones(3, 4), torch.tensor([[3, 1, 0, 2]] * 3))
    assert activity.rank(more_than=2, n=3).latents.tolist() == [0, 1, 2]


def test_what_cannot_be_ranked_is_named(codes, no_shape_checks):
    with pytest.raises(EmptyClass, match=r"20 latents(.|\n)*more than 200 of 200 images(.|\n)*most active: \d+"):
        ranked(codes, torch.arange(N), N, more_than=N, n=3)
    with pytest.raises(ConfigError, match="n_latents=0"):
        LatentActivity(0)
    with pytest.raises(ConfigError, match=r"\(2, 3\)(.|\n)*\(2, 2\)"):
        LatentActivity(4).update(torch.ones(2, 3), torch.ones(2, 2, dtype=torch.long))
