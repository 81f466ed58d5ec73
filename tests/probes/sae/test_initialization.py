import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprobe.probes.sae import initialization
from diffprobe.probes.sae.initialization import blend_datapoints, geometric_median


def test_the_median_is_where_no_step_makes_the_distances_smaller():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double() + 4
    centre = geometric_median(x, tolerance=1e-12)
    pull = torch.nn.functional.normalize(centre - x, dim=1).sum(0)
    assert pull.norm() < 1e-4


def test_a_majority_of_equal_samples_is_the_median_and_equal_samples_are_their_own():
    x = torch.tensor([[1.0, 2.0]] * 5 + [[9.0, 9.0], [-4.0, 0.0]])
    torch.testing.assert_close(geometric_median(x), torch.tensor([1.0, 2.0]).double(), atol=1e-4, rtol=0)
    assert geometric_median(x[:5]).tolist() == [1, 2]


def test_blended_rows_have_unit_norm_and_repeat_where_samples_are_few():
    generator = torch.Generator().manual_seed(0)
    random = torch.nn.functional.normalize(torch.randn(7, 4, generator=generator), dim=1)
    samples = torch.randn(3, 4, generator=generator)
    rows = blend_datapoints(random, samples, 0.8, seed=0)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(7))
    near = (rows @ torch.nn.functional.normalize(samples, dim=1).T).max(1)
    assert near.values.min() > 0.9 and near.indices.bincount(minlength=3).min() >= 2
    assert len({tuple(row.tolist()) for row in rows}) == 7
    assert blend_datapoints(random, samples, 0.0, seed=0).allclose(random)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 90),
    d_in=st.sampled_from([1, 3, 5, 16, 20]),
    ends=st.tuples(st.integers(0, 90), st.integers(0, 90)),
)
def test_a_part_of_a_random_dictionary_is_that_of_the_whole_one_bit_for_bit(n, d_in, ends):
    start, stop = sorted(min(end, n) for end in ends)
    if start == stop:
        start, stop = 0, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialization, "DRAWN", 16 * d_in)
        part = initialization.random_rows(n, d_in, seed=4, rows=range(start, stop))
    assert part.equal(initialization.random_rows(n, d_in, seed=4)[start:stop])
