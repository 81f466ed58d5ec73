"""The causal link on readings with known rates: a reader with known errors reads images of a known dose-response."""

import numpy as np
import pytest

from diffprobe.analysis.audit.association import Sampling
from diffprobe.analysis.audit.causal import CausalLink, causal_link, require_informative
from diffprobe.analysis.certification.steering import SteeredReadings
from diffprobe.core.errors import ConfigError, EmptyClass, UninformativeReader

STRENGTHS = (-2.0, 0.0, 2.0)
PROMPTS = [f"prompt {i}" for i in range(25) for _ in range(4)]
CONFUSION = np.array([[160, 40], [20, 180]])  # specificity .8, sensitivity .9
SAMPLING = Sampling(n_resamples=200, n_permutations=99)


def readings(slope: float, seed: int, *, errs: bool = True) -> SteeredReadings:
    """What is read of images whose true rate is .5 + slope * strength."""
    generator = np.random.default_rng(seed)
    noise, error = generator.uniform(size=(2, len(PROMPTS)))
    true = np.stack([noise < 0.5 + slope * strength for strength in STRENGTHS])
    read = np.where(true, error < 0.9, error < 0.2) if errs else true
    return SteeredReadings(strengths=STRENGTHS, codes={"gender": read.astype(np.int64)})


def measured(slope: float, seed: int = 0) -> CausalLink:
    found = {"gender": readings(slope, seed), **{f"random {i}": readings(0, 50 + seed + i) for i in range(1, 4)}}
    return causal_link(found, PROMPTS, CONFUSION, axis="gender", sampling=SAMPLING)


def test_corrected_rates_are_those_of_the_images_and_what_is_read_is_not() -> None:
    at = np.array([[(p.read, p.rate) for p in measured(0.2, seed).curves["gender"]] for seed in range(30)]).mean(0)
    assert at[:, 1] == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    assert at[:, 0] == pytest.approx([0.27, 0.55, 0.83], abs=0.03)  # .2 + .7 * rate


@pytest.mark.slow
def test_intervals_of_rates_cover() -> None:
    hits = [
        point.low <= 0.5 + 0.2 * point.strength <= point.high
        for seed in range(40) for point in measured(0.2, seed).curves["gender"]
    ]  # fmt: skip
    assert np.mean(hits) >= 0.9


def test_effect_and_dose_are_compared_with_random_directions() -> None:
    found = measured(0.2)
    dose, effect = found.checks
    assert (dose.name, effect.name) == ("steering_dose", "steering_effect")
    assert effect.value / found.gain == pytest.approx(0.8, abs=0.15) and found.gain == pytest.approx(0.7)
    assert effect.null is not None and effect.null["p"] == effect.null["smallest_p"] == 0.25  # three random ones
    none = measured(0.0).checks[1]
    assert none.interval is not None and none.interval[0] <= 0 <= none.interval[1]


def test_curves_follow_the_strengths_and_the_order_of_images_does_not_matter() -> None:
    found = measured(0.2)
    assert list(found.curves) == ["gender", "random 1", "random 2", "random 3"]
    assert [point.strength for point in found.curves["random 2"]] == list(STRENGTHS)
    order = np.random.default_rng(1).permutation(len(PROMPTS))
    turned = {
        name: SteeredReadings(strengths=STRENGTHS, codes={"gender": one.codes["gender"][:, order]})
        for name, one in {"gender": readings(0.2, 0), "random 1": readings(0, 51)}.items()
    }
    again = causal_link(turned, [PROMPTS[i] for i in order], CONFUSION, axis="gender", sampling=SAMPLING)
    assert again.curves["gender"] == found.curves["gender"]


def test_readers_that_separate_nothing_are_refused_beforehand() -> None:
    require_informative(CONFUSION, "reader")
    with pytest.raises(UninformativeReader, match="eyes of gender"):
        require_informative(np.array([[10, 10], [10, 10]]), "eyes of gender")
    with pytest.raises(EmptyClass):
        require_informative(np.array([[10, 2], [0, 0]]), "reader")


def test_without_random_directions_there_is_no_link() -> None:
    with pytest.raises(ConfigError, match="random"):
        causal_link({"gender": readings(0.2, 0)}, PROMPTS, CONFUSION, axis="gender", sampling=SAMPLING)
