"""Dictionaries over seeds, on codes with a known answer."""

from dataclasses import replace

import numpy as np
import pytest

from diffprobe.analysis.certification.across_seeds import SeedRules, SeedScores, on_rows, summarise
from diffprobe.analysis.certification.dictionary import Codes, DictionaryRules, factor_latents
from diffprobe.analysis.certification.pointing import PointingHits
from diffprobe.analysis.statistics import Null, area_of, evaluate, mean_of
from diffprobe.core.errors import ConfigError

RULES = DictionaryRules(n_permutations=399)
SEEDS = SeedRules(n_resamples=60)
N = 120
LABELS = tuple(np.arange(n) % 3 for n in (240, N))


def scores(good: bool, seed: int, hits: float = 1.0) -> SeedScores:
    """One seed of two factors: the first has latents if `good`, the second never."""
    generator = np.random.default_rng(seed)
    parts = [generator.random((len(own), 6)) for own in LABELS]
    if good:
        for own, part in zip(LABELS, parts, strict=True):
            part[:, :3] = np.eye(3)[own]
    codes = Codes(train=parts[0], test=parts[1])
    second = tuple(generator.permutation(own) for own in LABELS)
    factors = [factor_latents(codes, *own, RULES, factor=name) for name, own in (("a", LABELS), ("b", second))]
    pointed = np.full(N, hits)
    pointing = PointingHits(
        rows=np.arange(N), hits=pointed, null=Null(observed=hits, values=np.array([0.2]), n_permutations=1)
    )
    return SeedScores(factors=factors, pointing={"a": pointing}, residual=np.full(N, 1.0), square=np.full(N, 4.0))


@pytest.mark.parametrize(("good", "has"), [((1, 1, 1), True), ((1, 0, 1), True), ((1, 0, 0), False), ((0,), False)])
def test_a_factor_needs_a_latent_in_two_of_three_seeds(good: tuple[int, ...], has: bool) -> None:
    found = summarise([scores(bool(one), i) for i, one in enumerate(good)], N, range(N), SEEDS)
    first, second = found.factors
    assert first.has_latent is has and first.n_seeds == sum(good) and not second.has_latent
    assert first.n_values_with_latent == (3 if has else 0) and second.n_values_with_latent == 0


def test_means_and_intervals_are_over_seeds_and_samples() -> None:
    found = summarise([scores(True, 0, hits=1.0), scores(True, 1, hits=0.0)], N, range(N), SEEDS)
    assert found.pointing is not None and found.pointing.value == 0.5 and found.pointing.seeds == (1.0, 0.0)
    assert found.pointing_null == pytest.approx(0.2) and found.fvu is not None
    assert (found.fvu.value, found.fvu.low, found.fvu.high) == (0.25, 0.25, 0.25)
    assert found.auroc.low < found.auroc.value < found.auroc.high
    assert found.auroc.value == pytest.approx(np.mean([one.auroc.value for one in found.factors]))
    assert found.auroc.value == pytest.approx(np.mean(found.auroc.seeds))


def test_without_decoder_or_masks_there_are_no_such_numbers() -> None:
    bare = replace(scores(True, 0), pointing={}, residual=None, square=None)
    found = summarise([bare], N, range(N), SEEDS)
    assert found.fvu is found.pointing is found.pointing_null is None


def test_a_statistic_of_some_samples_ignores_the_others() -> None:
    values, rows, drawn = np.array([1.0, 3.0, 2.0]), np.array([1, 4, 5]), np.array([0, 4, 4, 5, 2, 1])
    for statistic in (mean_of(values), area_of(values, np.array([False, True, False]))):
        wide = on_rows(statistic, rows, 6)
        assert evaluate(wide, drawn) == evaluate(statistic, np.array([1, 1, 2, 0]))
    with pytest.raises(ConfigError):
        on_rows(lambda rows: 0.0, rows, 6)


def test_seeds_of_other_factors_are_refused() -> None:
    one = scores(True, 0)
    with pytest.raises(ConfigError):
        summarise([one, replace(one, factors=one.factors[:1])], N, range(N), SEEDS)
    with pytest.raises(ConfigError):
        summarise([], N, range(N), SEEDS)
