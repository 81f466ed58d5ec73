"""Ranks count ties against the right candidate; what all images share is corrected for."""

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.probes.score.candidate_ranks import curve, is_chosen, ranks, shuffled_positives, without_prior

INF = float("inf")


def test_ranks_are_those_of_a_sort_and_do_not_depend_on_the_order() -> None:
    errors = torch.rand(50, 9, generator=torch.Generator().manual_seed(0))
    right = torch.randint(9, (50,), generator=torch.Generator().manual_seed(1))
    found = ranks(errors, right)
    assert found.tolist() == [
        sorted(row).index(row[at]) for row, at in zip(errors.tolist(), right.tolist(), strict=True)
    ]
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    assert torch.equal(ranks(errors[:, order], order.argsort()[right]), found)


def test_a_tie_is_wrong_at_every_position_and_a_pruned_right_one_too() -> None:
    for position in range(3):
        right = torch.tensor([position])
        assert not is_chosen(torch.ones(1, 3), right).any() and ranks(torch.ones(1, 3), right).tolist() == [2]
    assert not is_chosen(torch.full((1, 1), INF), torch.tensor([0])).any()
    assert ranks(torch.tensor([[INF, 1.0, INF]]), torch.tensor([0])).tolist() == [2]


def test_a_candidate_that_helps_all_images_alike_wins_only_without_the_correction() -> None:
    errors = torch.rand(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right = torch.arange(40)
    errors[right, right] -= 2.0
    errors[:, 7] -= 10.0  # a caption that fits everything
    assert float(is_chosen(errors, right).double().mean()) == 1 / 40
    corrected = without_prior(errors)
    assert is_chosen(corrected, right).all()
    plain = errors[3, 5] - (errors[:, 5].sum() - errors[3, 5]) / 39
    assert float(corrected[3, 5]) == pytest.approx(float(plain))


@pytest.mark.parametrize("errors", [torch.zeros(1, 3), torch.tensor([[1.0, INF], [1.0, 1.0]])])
def test_a_correction_without_other_images_is_refused(errors: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="prior_correction"):
        without_prior(errors)


def test_shuffled_positives_are_uniform_over_the_candidates_and_fixed_by_seed_and_key() -> None:
    offered = torch.ones(3000, 5, dtype=torch.bool)
    offered[:, 1] = False
    keys = [f"k{i}" for i in range(3000)]
    drawn = shuffled_positives(offered, keys, 0)
    counts = torch.bincount(drawn, minlength=5)
    assert counts[1] == 0 and all(650 < count < 850 for count in counts[[0, 2, 3, 4]].tolist())
    assert torch.equal(shuffled_positives(offered[100:], keys[100:], 0), drawn[100:])
    assert not torch.equal(shuffled_positives(offered, keys, 1), drawn)


def test_the_curve_counts_the_passes_that_were_made() -> None:
    errors = torch.ones(2, 3, 5, dtype=torch.float64)
    errors[:, 0, 0] = 2.0  # the right one is worst first and best later
    errors[:, 0, 1:] = 0.0
    errors[1, 2, 3:] = torch.nan  # pruned
    points = curve(errors, torch.tensor([0, 0]), torch.ones(5, dtype=torch.float64))
    assert [point.n_timesteps for point in points] == [1, 2, 4, 5]
    assert [point.passes for point in points] == [3.0, 6.0, 11.5, 14.0]
    assert [point.accuracy for point in points] == [0.0, 0.0, 1.0, 1.0]
