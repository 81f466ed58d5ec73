"""Directions of axes: planted ones are recovered to the ceiling that sampling sets, and reliability states it."""

import numpy as np
import pytest

from diffprobe.analysis.audit.direction import direction_of, left_out_directions
from diffprobe.core.errors import EmptyClass


def differences(length: float, n: int, d: int, seed: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = spread * rng.normal(size=(n, 4, d)) * 2  # the mean of four seeds has the standard deviation `spread`
    found[..., 0] += length
    return found


@pytest.mark.parametrize(("length", "n"), [(1.0, 20), (2.0, 20), (1.0, 80)])
def test_a_planted_direction_is_found_as_well_as_its_agreement_states(length: float, n: int) -> None:
    """The expected cosine is m / sqrt(m^2 + trace / n); the agreement estimates it without knowing the direction."""
    d, found = 64, [direction_of(differences(length, n, 64, seed)) for seed in range(40)]
    ceiling = length / np.sqrt(length**2 + d / n)
    assert np.mean([one.unit[0] for one in found]) == pytest.approx(ceiling, abs=0.03)
    assert np.mean([one.agreement for one in found]) == pytest.approx(ceiling, abs=0.04)
    assert found[0].length == pytest.approx(np.sqrt(length**2 + d / n), abs=0.35)


def test_without_a_direction_the_agreement_is_small() -> None:
    assert np.mean([direction_of(differences(0.0, 20, 64, seed)).agreement for seed in range(20)]) < 0.3


def test_few_templates_have_no_agreement() -> None:
    assert direction_of(differences(1.0, 3, 8, 0)).agreement is None


def test_equal_ends_are_refused() -> None:
    with pytest.raises(EmptyClass, match="equal"):
        direction_of(np.zeros((20, 2, 4)))
    with pytest.raises(EmptyClass, match="1"):
        left_out_directions(np.ones((1, 2, 4)))


def test_a_template_is_left_out_of_its_own_direction() -> None:
    values = differences(1.0, 6, 8, 0)
    found = left_out_directions(values)
    for t in range(6):
        mean = np.delete(values, t, axis=0).mean((0, 1))
        assert np.allclose(found[t], mean / np.linalg.norm(mean))
