import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.metrics.dense_fraction import DenseFraction, density_histogram


def test_by_hand():
    found = density_histogram(torch.tensor([0, 0, 1, 2, 31, 32, 999, 1000]), 1000, decades=2, bins_per_decade=2)
    assert found.edges.tolist() == [-2, -1.5, -1, -0.5, 0]
    assert found.counts.tolist() == [1, 1, 0, 2]  # 10^-1.5 is 0.0316: 31 lies below, 32 above
    assert (found.n_never, found.n_below) == (2, 2)


def test_dense_latents_are_those_of_a_tenth_of_the_samples_or_more():
    active = torch.tensor([0, 1, 99, 100, 101, 1000])
    assert density_histogram(active, 1000, decades=2, bins_per_decade=3).dense_fraction == 0.5
    assert density_histogram(active, 10**7, decades=1).dense_fraction == 0


def test_frequencies_at_an_edge_belong_to_the_bin_above():
    found = density_histogram(torch.tensor([1, 10, 100, 1000]), 1000, decades=3, bins_per_decade=1)
    assert found.counts.tolist() == [1, 1, 2] and found.n_below == 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 5))
def test_no_latent_is_lost(active, decades, bins):
    found = density_histogram(torch.tensor(active), 50, decades=decades, bins_per_decade=bins)
    assert int(found.counts.sum()) + found.n_never + found.n_below == len(active)
    assert len(found.edges) == len(found.counts) + 1 == decades * bins + 1


def test_batches_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    values, indices = torch.randn(90, 3, generator=generator), torch.randint(0, 20, (90, 3), generator=generator)
    one, two = DenseFraction(20, decades=2), DenseFraction(20, decades=2)
    one.update(values, indices)
    for i in range(0, 90, 40):
        two.update(values[i : i + 40], indices[i : i + 40])
    assert [x.tolist() if torch.is_tensor(x) else x for x in one.histogram()] == [
        x.tolist() if torch.is_tensor(x) else x for x in two.histogram()
    ]


def test_nothing_counted_is_an_error():
    with pytest.raises(EmptyClass, match="no sample"):
        density_histogram(torch.zeros(3, dtype=torch.int64), 0)
    with pytest.raises(ConfigError, match="decades=0"):
        density_histogram(torch.ones(3, dtype=torch.int64), 1, decades=0)
