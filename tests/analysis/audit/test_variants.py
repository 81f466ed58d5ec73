"""Subjects beside their own variants."""

import numpy as np
import pytest

from diffprobe.analysis.audit.association import Sampling
from diffprobe.analysis.audit.latents import context_differences, end_latents, subject_latents
from diffprobe.analysis.audit.spec import AuditSpec
from diffprobe.analysis.audit.variants import default_of, positions_of
from diffprobe.core.errors import EmptyClass
from tests.analysis.audit.world import World, make_spec

QUICK = Sampling(n_resamples=300, n_permutations=999)
RATES = {"a": 0.0, "b": 0.1, "c": 0.5, "d": 0.5, "e": 0.9, "f": 1.0}


def arrays(world: World, spec: AuditSpec):  # type: ignore[no-untyped-def]
    found = world.latents(spec)
    positive, negative = end_latents(found, spec, spec.axes[0], spec.all_subjects)
    return subject_latents(found, spec), positive, negative, context_differences(found, spec, spec.axes[0])


def test_a_default_is_the_mean_difference_of_two_cosines() -> None:
    spec = make_spec(RATES, n_templates=4)
    subjects, positive, negative, _ = arrays(World(RATES, n_seeds=3), spec)
    found = default_of(subjects, positive, negative, QUICK)
    centre = subjects.astype(np.float64).mean(0)
    for i in range(6):
        cells = []
        for t in range(4):
            for s in range(3):
                p, a, b = (x - centre[t, s] for x in (subjects[i, t, s], positive[i, t, 0, s], negative[i, t, 0, s]))
                cos = [float(p @ v / np.linalg.norm(p) / np.linalg.norm(v)) for v in (a, b)]
                cells.append(cos[0] - cos[1])
        assert found.value[i] == pytest.approx(np.mean(cells), abs=1e-5)


def test_a_default_is_on_the_side_of_the_rate() -> None:
    spec = make_spec(RATES)
    subjects, positive, negative, _ = arrays(World(RATES), spec)
    found = default_of(subjects, positive, negative, QUICK)
    assert found.high[0] < 0 < found.low[5] and found.q[0] < 0.05


@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_positions_are_twice_the_rate_minus_one_whatever_the_noise(noise: float) -> None:
    spec = make_spec(RATES)
    errors, covered = [], []
    for seed in range(8):
        found = positions_of(*arrays(World(RATES, n_seeds=16, noise=noise, seed=seed), spec), QUICK)
        truth = 2 * np.array(list(RATES.values())) - 1
        errors.append(found.value - truth)
        covered += ((found.low <= truth) & (truth <= found.high)).tolist()
    assert np.abs(np.mean(errors, axis=0)).max() < (0.06 if noise < 1 else 0.1)
    assert np.mean(covered) >= 0.88


def test_positions_do_not_depend_on_what_a_subject_adds() -> None:
    """Associations do: subjects that are far apart have one with any direction."""
    spec = make_spec(dict.fromkeys("abcdef", 0.5))
    found = positions_of(*arrays(World(dict.fromkeys("abcdef", 0.5), subject_spread=20.0), spec), QUICK)
    assert np.abs(found.value).max() < 0.3 and not found.discoveries(0.05).any()


def test_variants_that_do_not_differ_are_refused() -> None:
    spec = make_spec(RATES, n_templates=4)
    subjects, positive, _, differences = arrays(World(RATES), spec)
    with pytest.raises(EmptyClass, match="subject 0"):
        positions_of(subjects, positive, positive, differences, QUICK)
