import math

import pytest
import torch

from diffprobe.core.errors import RunFailed
from diffprobe.metrics.auroc import auroc
from diffprobe.probes.null_distribution import Null
from diffprobe.probes.shuffled_labels import ShuffledLabels, hash_keys

KEYS = [f"sample-{i}" for i in range(60)]
LABEL = torch.tensor([i % 4 - 1 for i in range(60)])


def test_the_order_of_the_samples_does_not_matter():
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    one = ShuffledLabels(hash_keys(KEYS), LABEL, seed=0, target="label")
    two = ShuffledLabels(hash_keys([KEYS[i] for i in order]), LABEL[order], seed=0, target="label")
    assert one.of(hash_keys(KEYS)).equal(two.of(hash_keys(KEYS)))


def test_it_is_a_permutation_of_the_known_labels_that_moves_them():
    got = ShuffledLabels(hash_keys(KEYS), LABEL, seed=0, target="label").of(hash_keys(KEYS))
    assert (got[LABEL < 0] == -1).all()
    assert torch.bincount(got[LABEL >= 0]).equal(torch.bincount(LABEL[LABEL >= 0]))
    assert (got[LABEL >= 0] != LABEL[LABEL >= 0]).sum() > 15  # 2 of 3 move on average


def test_single_samples_are_permuted_as_they_always_were():
    """The control of a set without groups is the one of all earlier runs."""
    alone = ShuffledLabels(hash_keys(KEYS), LABEL, seed=0, target="label", n_draws=2)
    first, second = alone.draws_of(hash_keys(KEYS[:16])).T.tolist()
    assert first == [-1, 1, 0, 2, -1, 1, 2, 0, -1, 0, 0, 1, -1, 2, 2, 0]
    assert second == [-1, 1, 1, 1, -1, 1, 1, 1, -1, 1, 2, 0, -1, 1, 2, 2]
    none = ShuffledLabels(hash_keys(KEYS), LABEL, seed=0, target="label", group=torch.full((60,), -1))
    assert none.of(hash_keys(KEYS[:16])).tolist() == first


def test_seed_target_and_draw_give_other_permutations():
    def drawn(seed=0, target="label"):
        found = ShuffledLabels(hash_keys(KEYS), LABEL, seed=seed, target=target, n_draws=2)
        return found.draws_of(hash_keys(KEYS))

    first, second = drawn().T
    assert not first.equal(second)
    assert not drawn(seed=1)[:, 0].equal(first) and not drawn(target="group")[:, 0].equal(first)
    alone = ShuffledLabels(hash_keys(KEYS), LABEL, seed=0, target="label").of(hash_keys(KEYS))
    assert alone.equal(first)  # however many are drawn


FAMILY = torch.arange(60) // 5
"""Twelve families of five samples."""


def by_family(label, order=None, family=FAMILY, **settings):
    order = torch.arange(60) if order is None else order
    keys = [KEYS[i] for i in order]
    made = ShuffledLabels(
        hash_keys(keys), label[order], group=family[order], seed=settings.pop("seed", 0), target="label",
        group_by="family", **settings
    )  # fmt: skip
    return made, made.draws_of(hash_keys(KEYS))


def test_a_label_of_whole_families_moves_with_them():
    label = FAMILY % 3
    made, found = by_family(label, n_draws=20)
    families = found.reshape(12, 5, 20)
    assert (families == families[:, :1]).all()
    assert (families[:, 0].sort(0).values == (torch.arange(12) % 3).sort().values[:, None]).all()
    assert not (families[:, 0] == families[:, 0, :1]).all()
    assert made.describe() == {
        "group_by": "family", "groups_permuted_whole": 12, "groups_permuted_within": 0, "changed": made.changed
    }  # fmt: skip
    assert made.changed == float((found[:, 0] != label).double().mean()) > 0.3


def test_a_label_that_varies_stays_inside_its_family():
    label = torch.arange(60) % 5
    made, found = by_family(label, n_draws=20)
    assert (found.reshape(12, 5, 20).sort(1).values == torch.arange(5)[None, :, None]).all()
    assert (made.permutation.n_between, made.permutation.n_within) == (0, 12) and made.changed > 0.5


def test_mixed_families_move_both_ways_and_unlabelled_samples_stay():
    label = torch.where(FAMILY < 6, FAMILY % 2, torch.arange(60) % 2)
    label[::7] = -1
    made, found = by_family(label, n_draws=10)
    assert (found[label < 0] == -1).all() and (found[label >= 0] >= 0).all()
    assert (made.permutation.n_between, made.permutation.n_within) == (6, 6)
    for family in range(12):
        inside = found[(family == FAMILY) & (label >= 0)]
        if family < 6:
            assert (inside == inside[:1]).all()
        else:
            assert (inside.sum(0) == label[(family == FAMILY) & (label >= 0)].sum()).all()


@pytest.mark.parametrize("label", [FAMILY % 3, torch.arange(60) % 4 - 1], ids=["between", "within"])
def test_order_and_numbers_of_the_families_do_not_matter(label):
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    renumbered = (FAMILY * 7 + 3) % 12
    for seed in range(3):
        _, one = by_family(label, n_draws=2, seed=seed)
        _, two = by_family(label, order, renumbered, n_draws=2, seed=seed)
        assert one.equal(two)


def test_the_spread_of_a_score_is_that_of_families_not_of_samples():
    label = FAMILY % 2
    _, found = by_family(label, n_draws=1000)
    accuracy = (found == label[:, None]).double().mean(0)
    assert float(accuracy.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(accuracy.std()) == pytest.approx(math.sqrt(1 / 11) / 2, rel=0.1)
    alone = ShuffledLabels(hash_keys(KEYS), label, seed=0, target="label", n_draws=1000).draws_of(hash_keys(KEYS))
    assert float((alone == label[:, None]).double().mean(0).std()) < 0.075  # sqrt(1 / 59) / 2: less than half of it


def share_below_a_tenth(group: torch.Tensor | None, n: int = 300) -> float:
    """Return how often p of a mean difference is at most 0.1 where labels of families mean nothing."""
    family, generator = torch.arange(96) // 8, torch.Generator().manual_seed(0)
    hashes = hash_keys([f"sample-{i}" for i in range(96)])
    found = 0
    for seed in range(n):
        train, test = (  # what families share, and what each sample has by itself
            torch.cat(
                [2 * torch.randn(12, 2, generator=generator)[family], torch.randn(96, 100, generator=generator)], 1
            )
            for _ in range(2)
        )
        label, held_out = (torch.randperm(12, generator=generator)[family] % 2 for _ in range(2))
        shuffled = ShuffledLabels(hashes, label, group=group, seed=seed, target="kind", n_draws=19)
        sides = torch.cat([label[:, None], shuffled.draws_of(hashes)], 1).float()
        directions = train.T @ sides / sides.sum(0) - train.T @ (1 - sides) / (1 - sides).sum(0)
        areas = auroc(test @ directions, held_out == 1).double().numpy()
        found += Null(observed=float(areas[0]), values=areas[1:], n_permutations=19).p <= 0.1
    return found / n


@pytest.mark.slow
def test_p_of_a_direction_is_calibrated_by_group_and_not_by_sample():
    assert share_below_a_tenth(torch.arange(96) // 8) == pytest.approx(0.1, abs=0.05)  # three standard errors
    assert share_below_a_tenth(None) > 0.15


def test_unknown_and_double_keys_are_errors():
    with pytest.raises(RunFailed, match="did not"):
        ShuffledLabels(hash_keys(KEYS), LABEL, seed=0, target="label").of(hash_keys(["other"]))
    with pytest.raises(RunFailed, match="duplicate key"):
        ShuffledLabels(hash_keys(["a", "a"]), torch.tensor([0, 1]), seed=0, target="label")
