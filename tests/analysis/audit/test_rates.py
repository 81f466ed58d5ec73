"""Rates from prompt latents: planted rates, their intervals, and thresholds validated on templates left out."""

import numpy as np
import pytest

from diffprobe.analysis.audit.association import Sampling
from diffprobe.analysis.audit.rates import Sides, rates_of, sides_of
from diffprobe.analysis.audit.variants import positions_of
from diffprobe.core.errors import ConfigError, EmptyClass, UninformativeReader
from tests.analysis.audit.test_variants import arrays
from tests.analysis.audit.world import World, make_spec

QUICK = Sampling(n_resamples=300, n_permutations=99)
RATES = {f"role {i}": rate for i, rate in enumerate((0.02, 0.1, 0.25, 0.5, 0.5, 0.5, 0.75, 0.9, 0.98, 0.0, 1.0))}
TRUTH = np.array(list(RATES.values()))


def found(world: World, how: str = "share", n_templates: int = 20):  # type: ignore[no-untyped-def]
    spec = make_spec(world.rates, n_templates=n_templates)
    given = arrays(world, spec)
    positions = positions_of(*given, QUICK) if how == "position" else None
    return rates_of(sides_of(*given), QUICK, how=how, positions=positions)  # type: ignore[arg-type]


@pytest.mark.parametrize("same_side", [0.0, 0.5, 1.0])
def test_intervals_cover_the_planted_rates(same_side: float) -> None:
    """Whether templates repeat the side of a seed or draw it anew."""
    covered, n = 0, 0
    for seed in range(12):
        world = World(RATES, n_seeds=24, distance=8.0, seed=seed, same_side=same_side)
        one = found(world)
        assert one.separability > 0.99
        covered += int(((one.low <= TRUTH) & (TRUTH <= one.high)).sum())
        n += len(TRUTH)
    assert covered / n >= 0.95 - 3 * (0.95 * 0.05 / n) ** 0.5


@pytest.mark.parametrize("how", ["corrected", "position"])
def test_overlapping_latents_draw_shares_to_the_middle_and_not_the_others(how: str) -> None:
    slopes = []
    for name in ("share", how):
        rate = np.mean([found(World(RATES, n_seeds=16, distance=2.0, seed=s), name).rate for s in range(4)], axis=0)
        slopes.append(np.polyfit(TRUTH, rate, 1)[0])
    assert slopes[0] < 0.8 and slopes[1] == pytest.approx(1.0, abs=0.07)


def test_separability_is_that_of_templates_left_out() -> None:
    """Ends without a difference have the balanced accuracy of chance, since no prompt is classified by itself."""
    values = [found(World(RATES, n_seeds=8, distance=0.2, noise=2.0, d=64, seed=s)).separability for s in range(4)]
    assert np.mean(values) < 0.56


def test_a_threshold_is_that_of_the_subject() -> None:
    one = found(World(RATES, n_seeds=16, distance=8.0, subject_spread=50.0))
    assert np.abs(one.rate - TRUTH).max() < 0.15


def test_shares_of_zero_and_one_have_intervals() -> None:
    one = found(World({"never": 0.0, "always": 1.0}, n_seeds=10, distance=9.0))
    assert one.rate.tolist() == [0.0, 1.0]
    assert one.low[0] == 0.0 and one.high[0] == pytest.approx(1 - 0.025 ** (1 / 10)) and one.high[1] == 1.0


def test_a_single_seed_has_no_interval() -> None:
    one = found(World(RATES, n_seeds=1, distance=8.0))
    assert one.low is None and one.high is None and one.separability_interval is None
    with pytest.raises(EmptyClass, match="1"):
        found(World(RATES), n_templates=1)


def test_a_reader_by_chance_cannot_correct() -> None:
    sides = Sides(subjects=np.zeros((2, 3, 4), bool), positive=np.full((3, 4), 0.4), negative=np.full((3, 4), 0.5))
    with pytest.raises(UninformativeReader, match="40%"):
        rates_of(sides, QUICK, how="corrected")
    with pytest.raises(ConfigError, match="position"):
        rates_of(sides, QUICK, how="position")
