"""Scores and gains of predictions with a known answer."""

import numpy as np
import pytest

from diffprobe.analysis.certification.check import Check
from diffprobe.analysis.certification.readout import ReadoutRules, readout_checks, score_of
from diffprobe.core.errors import ConfigError, EmptyClass

RULES = ReadoutRules(n_permutations=99, n_resamples=100)
LABELS = np.repeat([0, 1, 2], [100, 60, 40])


def predicted(share: float, *, seed: int = 0) -> np.ndarray:
    """Predictions of which a share is right, and the others are of the next class."""
    wrong = np.random.default_rng(seed).uniform(size=len(LABELS)) >= share
    return (LABELS + wrong) % 3


def measured(own: np.ndarray, rung: np.ndarray, **settings: object) -> dict[str, Check]:
    rules = ReadoutRules(**{"n_permutations": 99, "n_resamples": 100, **settings})  # type: ignore[arg-type]
    return {check.name: check for check in readout_checks(own, {"raw_pixels": rung}, LABELS, rules)}


def test_a_readout_far_above_its_rung_passes_and_the_rung_fails() -> None:
    found = measured(predicted(0.95), predicted(0.5, seed=1))
    assert all(check.passed for check in found.values())
    assert found["balanced_accuracy"].value == pytest.approx(0.95, abs=0.05)
    assert found["gain"].value == pytest.approx(0.45, abs=0.1) and found["gain"].target == "raw_pixels"
    itself = measured(predicted(0.5, seed=1), predicted(0.5, seed=1))
    assert itself["gain"].value == 0 and not itself["gain"].passed


def test_a_constant_answer_fails_though_its_accuracy_is_high() -> None:
    constant = np.zeros_like(LABELS)
    found = measured(constant, predicted(0.1))
    assert found["balanced_accuracy"].value == pytest.approx(1 / 3) and not found["balanced_accuracy"].passed
    accuracy = measured(constant, predicted(0.1), metric="accuracy")["accuracy"]
    assert accuracy.value == 0.5 and accuracy.null is not None and accuracy.null["p"] == 1 and not accuracy.passed


def test_a_gain_that_chance_explains_fails() -> None:
    found = measured(predicted(0.75), predicted(0.7, seed=1), least_gain=0.0)["gain"]
    assert found.interval is not None and found.interval[0] < 0 and not found.passed


def test_the_interval_of_the_gain_covers() -> None:
    covered = 0
    for seed in range(60):
        found = measured(predicted(0.8, seed=seed), predicted(0.5, seed=1000 + seed), metric="accuracy")["gain"]
        assert found.interval is not None
        covered += found.interval[0] <= 0.3 <= found.interval[1]
    assert covered >= 53


def test_balanced_accuracy_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import balanced_accuracy_score

    found = predicted(0.6)
    assert score_of("balanced_accuracy", found, LABELS) == pytest.approx(balanced_accuracy_score(LABELS, found))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"raw_pixels(.|\n)*\(3,\)"):
        readout_checks(predicted(1.0), {"raw_pixels": np.zeros(3, dtype=np.int64)}, LABELS, RULES)
    with pytest.raises(EmptyClass, match="one class"):
        readout_checks(LABELS, {}, LABELS * 0, RULES)
    with pytest.raises(EmptyClass, match="no samples"):
        score_of("accuracy", LABELS[:0], LABELS[:0])
