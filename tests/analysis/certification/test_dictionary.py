"""Best latents, absorption and recurrence, on codes with a known answer."""

import numpy as np
import pytest

from diffprobe.analysis.certification.dictionary import (
    Codes,
    DictionaryRules,
    areas,
    factor_checks,
    factor_latents,
    mid_ranks,
    recurrence_check,
)
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite

RULES = DictionaryRules(n_permutations=49, n_resamples=50)
GENERATOR = np.random.default_rng(0)
TRAIN, TEST = (np.arange(n) % 3 for n in (240, 120))


def perfect(labels: np.ndarray, n_latents: int = 8) -> np.ndarray:
    """Codes of which latent v fires on value v alone, and the rest at random."""
    codes = np.maximum(np.random.default_rng(len(labels)).normal(size=(len(labels), n_latents)), 0)
    codes[:, :3] = np.eye(3)[labels] * (1 + codes[:, :3])
    return codes


def test_latents_that_equal_the_values_pass() -> None:
    auroc, absorption = factor_checks(Codes(train=perfect(TRAIN), test=perfect(TEST)), TRAIN, TEST, RULES, factor="f")
    assert auroc.value == 1 and auroc.passed and auroc.null is not None and auroc.null["p"] == 0.02
    assert absorption.value == 0 and absorption.passed


def test_random_codes_fail_though_there_are_many() -> None:
    generator = np.random.default_rng(1)
    codes = Codes(train=generator.normal(size=(240, 500)), test=generator.normal(size=(120, 500)))
    auroc, _ = factor_checks(codes, TRAIN, TEST, RULES, factor="f")
    assert abs(auroc.value - 0.5) < 0.1 and not auroc.passed


def test_a_value_that_is_split_over_two_latents_is_absorbed() -> None:
    def split(labels: np.ndarray) -> np.ndarray:
        codes = perfect(labels)
        moved = (labels == 0) & (np.arange(len(labels)) % 5 < 2)  # two fifths of the value 0
        codes[moved, 7], codes[:, 7] = 1.0, np.where(moved, 1.0, 0.0)
        codes[moved, 0] = 0.0
        return codes

    found = factor_checks(Codes(train=split(TRAIN), test=split(TEST)), TRAIN, TEST, RULES, factor="f")[1]
    assert found.value == pytest.approx(0.4 / 3, abs=0.02)
    strict = DictionaryRules(n_permutations=2, n_resamples=9, most_absorption=0.1)
    assert not factor_checks(Codes(train=split(TRAIN), test=split(TEST)), TRAIN, TEST, strict, factor="f")[1].passed


def test_the_null_is_that_of_a_loop_over_permutations() -> None:
    generator = np.random.default_rng(2)
    codes = Codes(train=generator.normal(size=(90, 7)).round(1), test=generator.normal(size=(60, 7)).round(1))
    train, test = generator.integers(3, size=90), generator.integers(3, size=60)
    found = factor_latents(codes, train, test, DictionaryRules(n_permutations=60, seed=4), factor="f")

    def score(one: np.ndarray, other: np.ndarray) -> float:
        parts = []
        for value in range(3):
            best = int(areas(mid_ranks(codes.train), one == value).argmax())
            parts.append(areas(mid_ranks(codes.test[:, [best]]), other == value)[0])
        return float(np.mean(parts))

    draws = np.random.default_rng(4)
    loop = [score(draws.permutation(train), draws.permutation(test)) for _ in range(60)]
    assert found.null.values == pytest.approx(loop) and found.null.observed == pytest.approx(score(train, test))
    assert np.mean(found.aurocs) == pytest.approx(found.null.observed)


def test_samples_without_a_value_are_left_out() -> None:
    codes = Codes(train=perfect(TRAIN), test=perfect(TEST))
    train, test = (np.where(np.arange(len(labels)) % 4, labels, -1) for labels in (TRAIN, TEST))
    found = factor_latents(codes, train, test, RULES, factor="f")
    own = Codes(train=codes.train[train >= 0], test=codes.test[test >= 0])
    alone = factor_latents(own, train[train >= 0], test[test >= 0], RULES, factor="f")
    assert found.latents == alone.latents and found.aurocs == alone.aurocs
    assert np.array_equal(found.rows, np.flatnonzero(test >= 0)) and len(found.labels) == 90


def test_groups_of_one_value_each_widen_null_and_interval() -> None:
    generator = np.random.default_rng(3)
    groups = [np.repeat(np.arange(n), 10) for n in (24, 12)]
    train, test = (own % 3 for own in groups)
    noise = [generator.normal(size=(own.max() + 1, 30))[own] for own in groups]  # alike within a group
    codes = Codes(train=noise[0], test=noise[1])
    single = factor_latents(codes, train, test, RULES, factor="f").null
    grouped = factor_latents(codes, train, test, RULES, factor="f", groups=(groups[0], groups[1])).null
    assert np.std(grouped.values) > 2 * np.std(single.values)
    (wide, _), (narrow, _) = (
        factor_checks(codes, train, test, RULES, factor="f", groups=own) for own in ((groups[0], groups[1]), None)
    )
    assert wide.interval is not None and narrow.interval is not None
    assert wide.interval[1] - wide.interval[0] > 1.5 * (narrow.interval[1] - narrow.interval[0])


def test_areas_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    codes = GENERATOR.integers(4, size=(50, 3)).astype(float)
    positive = np.arange(50) % 2 == 0
    assert areas(mid_ranks(codes), positive) == pytest.approx([roc_auc_score(positive, codes[:, j]) for j in range(3)])


def test_the_same_rows_in_another_order_recur_and_random_ones_do_not() -> None:
    rows = GENERATOR.normal(size=(20, 30))
    assert recurrence_check(rows, rows[::-1] * 2, RULES, of="b").value == pytest.approx(1)
    found = recurrence_check(rows, GENERATOR.normal(size=(20, 30)), RULES, of="b")
    assert found.value < 0.5 and not found.passed


def test_wrong_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match="4"):
        Codes(train=np.zeros((3, 4)), test=np.zeros((3, 5)))
    with pytest.raises(NonFinite, match="finite"):
        Codes(train=np.full((3, 4), np.inf), test=np.zeros((3, 4)))
    codes = Codes(train=np.zeros((3, 4)), test=np.zeros((3, 4)))
    with pytest.raises(EmptyClass, match="1 of its values"):
        factor_checks(codes, np.zeros(3, int), np.zeros(3, int), RULES, factor="f")
    with pytest.raises(ConfigError, match="2 and 3 labels"):
        factor_checks(codes, np.zeros(2, int), np.zeros(3, int), RULES, factor="f")
    with pytest.raises(ConfigError, match="width 2"):
        recurrence_check(np.ones((2, 2)), np.ones((2, 3)), RULES, of="b")
