"""Matching equals upsampling both maps and taking the largest cosine, and finds what was moved."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate, normalize

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.dense import correspondence
from diffprobe.probes.dense.correspondence import interpolation, joined, match_points


def plain(source: torch.Tensor, target: torch.Tensor, points: torch.Tensor, resolution: int) -> torch.Tensor:
    """The recipe as it is written: both maps at the size of the image, then all cosines, [point, y, x]."""
    up = [
        interpolate(one[None].double(), size=(resolution, resolution), mode="bilinear")[0] for one in (source, target)
    ]
    queries = torch.stack([up[0][:, y, x] for x, y in points.floor().long().tolist()])
    return torch.einsum("nd,dyx->nyx", normalize(queries, dim=1), normalize(up[1], dim=0))


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 24]))
def test_matches_are_those_of_upsampled_maps(seed: int, height: int, width: int, resolution: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(5, height, width, generator=generator)
    target = torch.randn(5, width, height, generator=generator)
    points = torch.rand(4, 2, generator=generator, dtype=torch.float64) * resolution
    found = match_points(source, target, points, resolution=resolution)
    cosines = plain(source, target, points, resolution)
    for (x, y), of_point in zip(found.floor().long().tolist(), cosines, strict=True):
        assert of_point[y, x] >= of_point.max() - 1e-6  # a border of equal places: rounding decides


def test_rows_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(6, 7, 7, generator=generator) for _ in range(2))
    points = torch.rand(9, 2, generator=generator, dtype=torch.float64) * 31
    whole = match_points(source, target, points, resolution=31)
    monkeypatch.setattr(correspondence, "_ROWS", 6 * 31 * 4)  # four rows
    assert torch.equal(match_points(source, target, points, resolution=31), whole)


def test_a_moved_map_moves_its_matches_and_the_scale_of_features_does_not() -> None:
    source = torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(3))
    target = 7 * source.roll((2, -3), (1, 2))
    points = torch.tensor([[8.5, 4.5], [5.5, 9.5]], dtype=torch.float64)
    assert match_points(source, target, points, resolution=16).tolist() == [[5.5, 6.5], [2.5, 11.5]]


def test_the_first_of_equal_places_wins() -> None:
    ones = torch.ones(3, 4, 4)
    assert match_points(ones, ones, torch.tensor([[3.5, 3.5]], dtype=torch.float64), resolution=4).tolist() == [
        [0.5, 0.5]
    ]


@given(st.integers(1, 40), st.integers(1, 40))
def test_weights_are_those_of_torch(size: int, resolution: int) -> None:
    row = torch.randn(1, 1, size, generator=torch.Generator().manual_seed(size))
    expected = interpolate(row, size=resolution, mode="linear")[0, 0]
    torch.testing.assert_close(interpolation(size, resolution, row) @ row[0, 0], expected, atol=1e-5, rtol=1e-5)


def test_joined_maps_count_equally_whatever_their_scale() -> None:
    one, other = torch.randn(3, 4, 4), 1000 * torch.randn(5, 2, 2)
    found = joined([one, other])
    assert found.shape == (8, 4, 4)
    torch.testing.assert_close(found.norm(dim=0), torch.ones(4, 4))
    torch.testing.assert_close(found[:3].norm(dim=0), found[3:].norm(dim=0))


def test_the_cosine_of_joined_maps_is_the_weighted_mean_of_their_cosines() -> None:
    one, other = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    source, target = (joined([one[i], other[i]], [0.8, 0.2]) for i in (0, 1))
    cosine = torch.nn.functional.cosine_similarity
    expected = 0.8 * cosine(one[0], one[1], dim=0) + 0.2 * cosine(other[0], other[1], dim=0)
    torch.testing.assert_close(cosine(source, target, dim=0), expected)
    for weights in ([0.8, 0.3], [1.0, 0.0], [1.0]):
        with pytest.raises(ConfigError, match="sum 1"):
            joined([one[0], other[0]], weights)


@pytest.mark.parametrize(
    ("width", "x", "value", "error", "fact"),
    [
        (4, 3.5, 1.0, ConfigError, "3 and 4"),
        (3, 4.0, 1.0, ConfigError, "4 x 4"),
        (3, 1.0, float("nan"), NonFinite, "target"),
    ],
)
def test_wrong_maps_and_points_are_refused(
    width: int, x: float, value: float, error: type[Exception], fact: str, no_shape_checks: None
) -> None:
    points = torch.tensor([[x, 1.0]], dtype=torch.float64)
    with pytest.raises(error, match=fact):
        match_points(torch.ones(3, 4, 4), torch.full((width, 4, 4), value), points, resolution=4)
