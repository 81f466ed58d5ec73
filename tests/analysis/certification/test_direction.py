"""Agreement, ceiling and selectivity of directions, on features with a known direction."""

import numpy as np
import pytest

from diffprobe.analysis.certification.check import Check
from diffprobe.analysis.certification.direction import (
    DirectionRules,
    PairFeatures,
    agreement,
    direction_checks,
    split_half,
)
from diffprobe.analysis.certification.intervals import jackknife_interval
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite

D = 40
TRUE = np.eye(D)[0]


def pairs(n: int = 60, *, noise: float = 0.3, seed: int = 0, length: float = 1.0) -> PairFeatures:
    """Pairs whose own factor moves the first axis, and whose other factor moves the second."""
    generator = np.random.default_rng(seed)
    negative = generator.normal(size=(n, D)) * 0.2
    own = length * TRUE + noise * generator.normal(size=(n, D))
    other = np.eye(D)[1] + noise * generator.normal(size=(n, D)) * 0.1
    return PairFeatures(own=own, negative=negative, positive=negative + own, others={"size": other})


def of(checks: tuple[Check, ...], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_the_true_direction_passes_and_wrong_ones_fail() -> None:
    rules = DirectionRules(n_random=199, n_resamples=200)
    found = direction_checks(5 * TRUE, pairs(), rules)
    assert all(check.passed for check in found)
    assert {check.name for check in found} == {"split_half", "agreement", "auroc", "selectivity"}
    null = of(found, "agreement").null
    assert null is not None and null["p"] == null["smallest_p"] == 1 / 200
    for wrong in (np.eye(D)[1], np.ones(D), -TRUE):
        assert not of(direction_checks(wrong, pairs(), rules), "agreement").passed
    assert not of(direction_checks(np.eye(D)[1], pairs(), rules), "selectivity").passed


def test_agreement_is_relative_to_the_ceiling() -> None:
    """The plain cosine of the true direction with a noisy mean is below .9; relative to the ceiling it is 1."""
    changes = pairs(n=40, noise=0.7, seed=3).own
    mean = changes.mean(0)
    plain = mean[0] / np.linalg.norm(mean)
    values = [agreement(TRUE, pairs(n=40, noise=0.7, seed=seed).own)[0] for seed in range(60)]
    assert plain < 0.9
    assert np.mean(values) == pytest.approx(1.0, abs=0.08)


def test_the_jackknife_of_the_agreement_leaves_out_each_pair() -> None:
    changes = pairs(n=7).own
    _, left_out = agreement(np.ones(D), changes)
    assert left_out == pytest.approx([agreement(np.ones(D), np.delete(changes, i, 0))[0] for i in range(7)])


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_interval_of_the_agreement_covers(noise: float) -> None:
    direction = TRUE + 0.75 * np.eye(D)[1]  # cosine .8
    covered = 0
    for seed in range(300):
        value, left_out = agreement(direction, pairs(n=50, noise=noise, seed=seed).own)
        low, high = jackknife_interval(value, left_out, 0.95)
        covered += low <= 0.8 <= high
    assert covered / 300 >= 0.92


def test_pairs_without_a_direction_fail_at_the_ceiling() -> None:
    nothing = pairs(length=0.0, noise=1.0)
    found = direction_checks(TRUE, nothing, DirectionRules(n_random=99, n_resamples=50))
    assert not of(found, "split_half").passed and not of(found, "agreement").passed
    assert abs(split_half(nothing.own, n_halves=50, seed=0).mean()) < 0.3


@pytest.mark.parametrize(
    ("direction", "error", "fact"),
    [
        (np.ones(3), ConfigError, "40"),
        (np.zeros(D), ConfigError, "zero"),
        (np.full(D, np.nan), NonFinite, "not finite"),
    ],
)
def test_wrong_vectors_are_refused(direction: np.ndarray, error: type[Exception], fact: str) -> None:
    with pytest.raises(error, match=fact):
        direction_checks(direction, pairs(), DirectionRules())


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(EmptyClass, match="2 pairs"):
        agreement(TRUE, pairs(n=2).own)
