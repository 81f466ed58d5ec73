"""Rates are realised, random numbers are fixed, and worlds share them."""

from collections.abc import Callable

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.shards.scenes.factors import (
    background_table,
    colour_table,
    counterfactual_scenes,
    fractions,
    joint_table,
    rates,
    sample,
)
from diffprobe.shards.scenes.spec import FACTORS, STRIPED, WorldSpec

N = 120_000
SEED = 11


def within(successes: np.ndarray, trials: np.ndarray, p: np.ndarray | float) -> None:
    """Five standard errors, so that 500 comparisons fail together in fewer than one of a thousand seeds."""
    error = 5 * np.sqrt(np.maximum(p * (1 - np.asarray(p)), 1e-9) / trials)
    assert (np.abs(successes / trials - p) <= error + 1e-12).all()


@pytest.mark.parametrize("world", ["planted", "permuted"])
def test_rates_are_realised_within_binomial_error(spec: WorldSpec, world: str) -> None:
    scenes = sample(spec, SEED, np.arange(N), world=world)
    role, texture, colour = (scenes.factors[name] for name in ("role", "texture", "colour"))
    number, n_roles = spec.world(world), len(spec.roles)
    by_role = np.bincount(role, minlength=n_roles)
    within(by_role, np.full(n_roles, N), np.full(n_roles, 1 / n_roles))
    within(np.bincount(role, weights=texture, minlength=n_roles), by_role, rates(spec, number))
    counts = np.zeros((n_roles, 2, len(spec.colours)))
    np.add.at(counts, (role, texture, colour), 1)
    within(counts, np.full(counts.shape, N), joint_table(spec, number))
    backgrounds = np.zeros((n_roles, len(spec.backgrounds)))
    np.add.at(backgrounds, (role, scenes.factors["background"]), 1)
    within(backgrounds, np.tile(by_role[:, None], (1, backgrounds.shape[1])), background_table(spec))
    within(np.bincount(scenes.factors["object"]), np.full(4, N), np.array(spec.object_probabilities))
    for name in ("build", "size", "pose", "place", "side"):
        k = len(spec.values[name])
        within(np.bincount(scenes.factors[name]), np.full(k, N), np.full(k, 1 / k))


@pytest.mark.parametrize("world", [0, 1])
def test_colour_depends_on_role_and_texture_together_only(spec: WorldSpec, world: int) -> None:
    joint = joint_table(spec, world)
    assert joint.sum() == pytest.approx(1)
    assert joint.sum(axis=(0, 1)) == pytest.approx(np.full(5, 0.2))
    by_role, by_texture = joint.sum(axis=1), joint.sum(axis=0)
    assert by_role / by_role.sum(axis=1, keepdims=True) == pytest.approx(np.full((24, 5), 0.2))
    assert by_texture / by_texture.sum(axis=1, keepdims=True) == pytest.approx(np.full((2, 5), 0.2))
    table = colour_table(spec, world)
    baker, shepherd = spec.code("role", "baker"), spec.code("role", "shepherd")
    assert table[baker, STRIPED, 0] == pytest.approx(0.35) and table[shepherd, STRIPED, 0] == pytest.approx(0.05)
    assert (table >= 0).all() and table.sum(axis=2) == pytest.approx(np.ones((24, 2)))


@pytest.mark.parametrize("world", [0, 1])
def test_held_out_combinations_leave_the_rates_of_train_as_planted(spec: WorldSpec, world: int) -> None:
    joint = joint_table(spec, world, train=True)
    given = joint.sum(axis=2)
    assert given[:, STRIPED] / given.sum(axis=1) == pytest.approx(rates(spec, world), abs=1e-12)


def test_a_scene_depends_on_seed_and_index_alone(spec: WorldSpec) -> None:
    every, some = sample(spec, 4, np.arange(100)), sample(spec, 4, [70, 3])
    for name in FACTORS:
        assert (every.factors[name][[70, 3]] == some.factors[name]).all(), name
    for name, numbers in every.offsets.items():
        assert (numbers[[70, 3]] == some.offsets[name]).all(), name
    other = sample(spec, 5, np.arange(100))
    assert (every.factors["role"] != other.factors["role"]).any()


def test_the_worlds_share_all_but_texture_and_colour(spec: WorldSpec) -> None:
    planted, permuted = (sample(spec, 4, np.arange(5000), world=world) for world in spec.worlds)
    differ = {name for name in FACTORS if (planted.factors[name] != permuted.factors[name]).any()}
    assert differ == {"texture"}  # the roles of the interaction keep their rate
    assert all((numbers == permuted.offsets[name]).all() for name, numbers in planted.offsets.items())


def test_random_numbers_are_fixed_and_independent(spec: WorldSpec) -> None:
    found = fractions(spec, 0, "role", np.arange(3))
    assert (found * 2**53).astype(np.int64).tolist() == GOLDEN
    numbers = np.stack([fractions(spec, seed, name, np.arange(20_000)) for seed in (0, 1) for name in ("a", "b")])
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(np.corrcoef(numbers) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(numbers[0, 1:], numbers[0, :-1])[0, 1]) < 0.03
    assert np.bincount((numbers[0] * 10).astype(int)) == pytest.approx(np.full(10, 2000), abs=5 * 42)


def test_a_counterfactual_changes_one_factor(spec: WorldSpec) -> None:
    scenes = sample(spec, 0, np.arange(50))
    changed = counterfactual_scenes(scenes, "texture", STRIPED)
    assert (changed.factors["texture"] == STRIPED).all()
    assert all(changed.factors[name] is codes for name, codes in scenes.factors.items() if name != "texture")
    assert changed.offsets is scenes.offsets


@pytest.mark.parametrize(
    ("wrong", "error", "fact"),
    [
        (lambda spec: sample(spec, -1, [0]), ConfigError, "seed -1"),
        (lambda spec: sample(spec, 2**63, [0]), ConfigError, "seed"),
        (lambda spec: sample(spec, 0, [-1]), ConfigError, "index"),
        (lambda spec: sample(spec, 0, [2**48]), ConfigError, "index"),
        (lambda spec: sample(spec, 0, [0], world="other"), UnknownName, "other"),
    ],
)
def test_numbers_out_of_range_are_refused(
    spec: WorldSpec, wrong: Callable[[WorldSpec], object], error: type[Exception], fact: str
) -> None:
    with pytest.raises(error, match=fact):
        wrong(spec)


GOLDEN = [961326970443494, 173348370361957, 5652579017551499]
