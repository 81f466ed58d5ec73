"""The mixture trained through pairs: its loss against plain loops, and that it finds the cell that has the points."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.dense.mixture import (
    TEMPERATURE,
    PairMixture,
    TrainingPair,
    make_mixture,
    pair_loss,
    places,
    train_mixture,
)

KNOWS, NOISE = "up_blocks.0@t20:empty:none", "up_blocks.1@t20:empty:none"
N_POINTS, SIDE = 4, 8


def pair(seed: int) -> TrainingPair:
    """Make a pair whose points have a code of their own in one cell, and noise alone in the other."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(N_POINTS, 8, generator=torch.Generator().manual_seed(99)) * 3
    knows = torch.randn(2, 8, SIDE, SIDE, generator=generator) * 0.5
    points = []
    for image in range(2):
        chosen = torch.randperm(SIDE * SIDE, generator=generator)[:N_POINTS]
        knows[image].view(8, -1)[:, chosen] += codes.T
        points.append(torch.stack([chosen % SIDE, chosen // SIDE], dim=1).double() * 2 + 1)
    noise = torch.randn(2, 6, SIDE, SIDE, generator=generator)
    return TrainingPair({KNOWS: knows, NOISE: noise}, (points[0], points[1]))


PAIRS = [pair(seed) for seed in range(12)]


def trained(pairs: list[TrainingPair], *, seed: int = 0, learn: bool = True) -> tuple[PairMixture, list[float]]:
    mixture = make_mixture(pairs, [KNOWS, NOISE], width=32, groups=2, learn_weights=learn, seed=seed)
    losses = [
        loss
        for _, loss in train_mixture(
            mixture, pairs, resolution=2 * SIDE, steps=60, batch=3, learning_rate=3e-3, seed=seed, every=20
        )
    ]
    return mixture, losses


def test_the_loss_is_that_of_plain_loops() -> None:
    one, other = torch.randn(5, 4, 4), torch.randn(5, 4, 4)
    points = (torch.tensor([[0.5, 0.5], [15.0, 3.9]]).double(), torch.tensor([[8.0, 8.0], [4.0, 12.0]]).double())

    def direction(a: Tensor, b: Tensor, here: list[tuple[int, int]], there: list[tuple[int, int]]) -> float:
        total = 0.0
        for (x, y), goal in zip(here, there, strict=True):
            scores = {
                (i, j): float(F.cosine_similarity(a[:, y, x], b[:, j, i], dim=0)) / TEMPERATURE
                for i in range(4)
                for j in range(4)
            }
            total += math.log(sum(map(math.exp, scores.values()))) - scores[goal]
        return total / len(here)

    here, there = [(0, 0), (3, 0)], [(2, 2), (1, 3)]
    expected = (direction(one, other, here, there) + direction(other, one, there, here)) / 2
    assert float(pair_loss(one, other, points, resolution=16)) == pytest.approx(expected, rel=1e-5)
    assert places(points[0], (4, 4), 16).tolist() == [0, 3]


def test_training_finds_the_cell_that_has_the_points() -> None:
    mixture, losses = trained(PAIRS)
    assert losses[-1] < 0.7 * losses[0] < math.log(SIDE * SIDE)
    weights = mixture.weights()
    assert sum(weights.values()) == pytest.approx(1) and weights[KNOWS] > weights[NOISE]
    equal, _ = trained(PAIRS, learn=False)
    assert equal.weights() == {KNOWS: 0.5, NOISE: 0.5}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_the_scale_of_a_cell_counts_for_nothing() -> None:
    first, second = (trained(PAIRS)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    scaled = [TrainingPair({cell: 1000 * maps for cell, maps in one.maps.items()}, one.points) for one in PAIRS]
    other = trained(scaled)[0]
    torch.testing.assert_close(other.mixing, first["mixing"], atol=1e-3, rtol=1e-3)


def test_the_mixture_of_an_image_does_not_depend_on_its_batch() -> None:
    mixture = make_mixture(PAIRS, [KNOWS, NOISE], width=32, groups=2, learn_weights=True, seed=0).eval()
    alone = mixture(PAIRS[0].maps)
    both = mixture({cell: torch.cat([PAIRS[1].maps[cell], PAIRS[0].maps[cell]]) for cell in (KNOWS, NOISE)})
    torch.testing.assert_close(both[2:], alone, atol=1e-5, rtol=1e-5)


def test_maps_that_are_not_finite_and_groups_that_do_not_divide_are_refused() -> None:
    broken = TrainingPair({KNOWS: PAIRS[0].maps[KNOWS] * math.inf, NOISE: PAIRS[0].maps[NOISE]}, PAIRS[0].points)
    mixture = make_mixture(PAIRS, [KNOWS, NOISE], width=32, groups=2, learn_weights=True, seed=0)
    with pytest.raises(NonFinite, match="0 steps"):
        list(train_mixture(mixture, [broken], resolution=16, steps=2, batch=1, learning_rate=1e-3, seed=0, every=1))
    with pytest.raises(ConfigError, match="groups=3"):
        make_mixture(PAIRS, [KNOWS], width=32, groups=3, learn_weights=True, seed=0)
