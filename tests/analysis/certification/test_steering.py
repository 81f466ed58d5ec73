"""Dose-response, effect and collateral of steering, on readings with a known answer."""

import numpy as np
import pytest

from diffprobe.analysis.certification.check import Check
from diffprobe.analysis.certification.steering import SteeredReadings, SteeringRules, check_strengths, steering_checks
from diffprobe.core.errors import ConfigError

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
RULES = SteeringRules(n_permutations=199, n_resamples=200)
N_PROMPTS, PER_PROMPT = 24, 4
PROMPTS = [f"prompt {i}" for i in range(N_PROMPTS) for _ in range(PER_PROMPT)]


def readings(slope: float, *, other: float = 0.0, seed: int = 0, spread: float = 0.0, n: int = 96) -> SteeredReadings:
    """Readings of a model whose rate of the value 1 is .5 + slope * strength, and that differs by prompt by `spread`.

    The noise of an image is the same at all strengths. `other` is the share of images whose colour changes at an end.
    """
    generator = np.random.default_rng(seed)
    noise = generator.uniform(size=n)
    shift = np.repeat(generator.uniform(-spread, spread, size=n // PER_PROMPT), PER_PROMPT)
    texture = np.stack([noise < 0.5 + (slope + shift) * strength for strength in STRENGTHS]).astype(np.int64)
    colour = np.tile(generator.integers(5, size=n), (len(STRENGTHS), 1))
    moved = generator.uniform(size=n) < other
    colour[0, moved] = (colour[0, moved] + 1) % 5
    colour[-1, moved] = (colour[-1, moved] + 2) % 5
    return SteeredReadings(strengths=STRENGTHS, codes={"texture": texture, "colour": colour})


def random(n: int = 19, *, slope: float = 0.02) -> list[SteeredReadings]:
    """Random directions with small effects of either sign."""
    return [readings(slope * (-1) ** seed, other=0.1, seed=100 + seed) for seed in range(n)]


def measured(steered: SteeredReadings, **settings: float) -> dict[str, Check]:
    rules = SteeringRules(**{"n_permutations": 199, "n_resamples": 200, **settings})  # type: ignore[arg-type]
    found = steering_checks(steered, random(), PROMPTS, rules, factor="texture", value=1)
    assert [check.target for check in found] == ["texture", "texture", "colour"]
    return {check.name: check for check in found}


def test_a_direction_that_moves_its_attribute_alone_passes() -> None:
    found = measured(readings(0.2, other=0.05))
    assert all(check.passed for check in found.values())
    effect = found["steering_effect"]
    assert effect.value == pytest.approx(0.8, abs=0.1) and effect.null is not None
    assert effect.null["p"] == effect.null["smallest_p"] == 0.05
    assert found["steering_dose"].value == 1 and found["steering_collateral"].value == pytest.approx(0.05, abs=0.05)


def test_a_direction_without_an_effect_or_of_the_wrong_sign_fails() -> None:
    assert not measured(readings(0.01))["steering_effect"].passed
    wrong = measured(readings(-0.2))
    assert wrong["steering_effect"].value < -0.6 and wrong["steering_dose"].value == -1
    assert not wrong["steering_effect"].passed and not wrong["steering_dose"].passed


def test_an_effect_that_random_directions_have_too_fails() -> None:
    steered = readings(0.1)
    strong = random(slope=0.2)
    found = steering_checks(steered, strong, PROMPTS, RULES, factor="texture", value=1)[1]
    assert found.value > 0.3 and not found.passed and found.null is not None and found.null["p"] > 0.3


def test_a_direction_that_moves_another_factor_fails() -> None:
    found = measured(readings(0.2, other=0.9))
    assert found["steering_effect"].passed and not found["steering_collateral"].passed
    assert found["steering_collateral"].value == pytest.approx(0.9, abs=0.1)
    assert measured(readings(0.2, other=0.9), most_collateral=1.0)["steering_collateral"].passed


@pytest.mark.slow
def test_the_interval_of_the_effect_covers() -> None:
    """Over prompts that differ in their effect; the rate at strength s is .5 + (.1 + prompt) s, clipped nowhere."""
    covered = 0
    for seed in range(200):
        steered = readings(0.1, spread=0.1, seed=seed)
        effect = steering_checks(steered, random(2), PROMPTS, SteeringRules(n_permutations=1, n_resamples=200),
                                 factor="texture", value=1)[1]  # fmt: skip
        assert effect.interval is not None
        covered += effect.interval[0] <= 0.4 <= effect.interval[1]
    assert 0.9 <= covered / 200


def test_the_dose_of_an_attribute_that_does_not_move_is_chance() -> None:
    """Independent readings at each strength: the p of permuted strengths is uniform, so small ones are rare."""
    generator, small = np.random.default_rng(0), 0
    for _ in range(100):
        codes = {"texture": generator.integers(2, size=(5, 24)), "colour": np.zeros((5, 24), dtype=np.int64)}
        steered = SteeredReadings(strengths=STRENGTHS, codes=codes)
        rules = SteeringRules(n_permutations=99, n_resamples=5)
        dose = steering_checks(steered, [steered], PROMPTS[:24], rules, factor="texture", value=1)[0]
        small += dose.null is not None and dose.null["p"] <= 0.1
    assert small <= 20


@pytest.mark.parametrize("strengths", [(0.0, 1.0, 2.0), (-1.0, 1.0, 2.0), (1.0, 0.0, -1.0), (-1.0, 0.0), ()])
def test_strengths_without_both_sides_are_refused(strengths: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="strengths"):
        check_strengths(strengths)


def test_wrong_readings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(4, 3\)"):
        SteeredReadings(strengths=STRENGTHS, codes={"texture": np.zeros((4, 3), dtype=np.int64)})
    with pytest.raises(ConfigError, match="3 prompts for 96"):
        steering_checks(readings(0.1), random(), PROMPTS[:3], RULES, factor="texture", value=1)
    with pytest.raises(ConfigError, match="none"):
        steering_checks(readings(0.1), [], PROMPTS, RULES, factor="texture", value=1)
