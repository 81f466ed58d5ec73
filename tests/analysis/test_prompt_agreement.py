"""Agreement of prompt directions with counterfactual changes, both planted."""

import numpy as np
import pytest

from diffprobe.analysis.certification.direction import DirectionRules, PairFeatures, cosine
from diffprobe.analysis.prompt_agreement import prompt_agreement
from diffprobe.core.errors import EmptyClass

D = 30
RULES = DirectionRules(n_random=199, n_resamples=50, n_halves=20)


def axis(number):
    return np.eye(D)[number]


def pairs_along(direction, generator, *, n=100, noise=0.3):
    negative = 0.5 * generator.standard_normal((n, D))
    own = direction + noise * generator.standard_normal((n, D))
    return PairFeatures(own=own, negative=negative, positive=negative + own, others={})


def prompts_along(direction, generator, *, contexts=20, seeds=3, noise=0.3):
    return direction + noise * generator.standard_normal((contexts, seeds, D))


def test_the_angle_between_both_directions_is_found():
    generator = np.random.default_rng(0)
    turned = 0.8 * axis(0) + 0.6 * axis(1)
    pairs = pairs_along(axis(0), generator)
    found = prompt_agreement(
        prompts_along(turned, generator), pairs, RULES, {"size": pairs_along(axis(1), generator).own}
    )
    assert found.agreement == pytest.approx(0.8, abs=0.05) and found.corrected >= found.agreement
    low, high = found.interval
    assert low < 0.8 < high < low + 0.2
    assert found.others["size"] == pytest.approx(0.6, abs=0.05)
    assert found.null["p"] == pytest.approx(1 / 200) and found.auroc > 0.8
    assert len(found.by_seed) == 3 and all(abs(value - 0.8) < 0.1 for value in found.by_seed)
    assert found.truth_halves.mean > 0.9 and found.prompt_halves.mean > 0.75 and found.n_pairs == 100


def test_contexts_widen_the_interval():
    """With few noisy contexts the direction is uncertain although the truth is known well."""
    generator = np.random.default_rng(1)
    pairs = pairs_along(axis(0), generator, noise=0.05)
    precise = prompt_agreement(prompts_along(axis(0), generator, contexts=50, noise=0.1), pairs, RULES)
    coarse = prompt_agreement(prompts_along(axis(0), generator, contexts=4, noise=1.0), pairs, RULES)
    assert np.diff(coarse.interval) > 5 * np.diff(precise.interval)
    assert coarse.agreement < precise.agreement


def test_the_interval_covers_the_agreement_of_the_true_directions():
    """Truth: cosine of the expected direction of prompts (large sample) with the true change."""
    generator, turned = np.random.default_rng(2), 0.8 * axis(0) + 0.6 * axis(1)
    covered = 0
    for _ in range(60):
        changes = prompts_along(turned, generator, contexts=40, noise=0.2)
        found = prompt_agreement(changes, pairs_along(axis(0), generator, n=40), RULES)
        covered += found.interval[0] <= cosine(turned, axis(0)) <= found.interval[1]
    assert covered >= 50


def test_pairs_without_a_direction_have_no_agreement():
    generator = np.random.default_rng(3)
    noise = pairs_along(np.zeros(D), generator, n=40)
    own = np.concatenate([noise.own, -noise.own])
    pairs = PairFeatures(own=own, negative=own, positive=own + own, others={})
    found = prompt_agreement(prompts_along(axis(0), generator), pairs, RULES, {"size": own})
    assert found.agreement is found.interval is found.null is found.corrected is None
    assert found.by_seed == () and found.others == {}


def test_too_few_contexts_are_refused():
    generator = np.random.default_rng(4)
    with pytest.raises(EmptyClass, match="2 samples"):
        prompt_agreement(prompts_along(axis(0), generator, contexts=2), pairs_along(axis(0), generator), RULES)
