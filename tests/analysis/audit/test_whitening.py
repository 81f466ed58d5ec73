"""Whitened latents: unit covariance within attribute prompts, and a direction that a loud nuisance does not hide."""

import numpy as np
import pytest

from diffprobe.analysis.audit.latents import AuditLatents, context_differences, end_latents, subject_latents
from diffprobe.analysis.audit.prompts import all_prompts
from diffprobe.analysis.audit.rates import sides_of
from diffprobe.analysis.audit.whitening import whitened
from diffprobe.core.errors import EmptyClass
from tests.analysis.audit.world import World, make_spec

RATES = {f"role {i}": rate for i, rate in enumerate((0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 0.5))}
SPEC = make_spec(RATES, n_templates=20)


def loud(seed: int = 0) -> AuditLatents:
    """Return latents in which a nuisance varies ten times as much as the sides differ, and is mixed into them."""
    latents = World(RATES, seed=seed, d=16, distance=4.0).latents(SPEC)
    rng = np.random.default_rng(seed + 100)
    nuisance = rng.normal(size=latents.features.shape[:2])[..., None] * 20.0
    direction = np.zeros(16)
    direction[[0, 1]] = np.sqrt(0.5)  # half of it along the sides
    return AuditLatents(features=(latents.features + nuisance * direction).astype(np.float32), prompts=latents.prompts)


def separability(latents: AuditLatents) -> float:
    (axis,) = SPEC.axes
    positive, negative = end_latents(latents, SPEC, axis, SPEC.all_subjects)
    differences = context_differences(latents, SPEC, axis)
    return sides_of(subject_latents(latents, SPEC), positive, negative, differences).separability


def test_a_loud_nuisance_does_not_hide_the_sides() -> None:
    latents = loud()
    assert separability(latents) < 0.65
    assert separability(whitened(latents, SPEC)) > 0.9


def test_covariance_within_prompts_is_the_identity() -> None:
    found = whitened(loud(), SPEC)
    ends = end_latents(found, SPEC, SPEC.axes[0], SPEC.all_subjects)
    rows = np.concatenate([(end - end.mean((1, 3), keepdims=True)).reshape(-1, 16) for end in ends])
    assert np.cov(rows.T) == pytest.approx(np.eye(16), abs=0.1)


def test_the_order_of_prompts_does_not_matter() -> None:
    latents = loud()
    order = np.random.default_rng(0).permutation(len(latents.prompts))
    other = AuditLatents(features=latents.features[order], prompts=tuple(latents.prompts[i] for i in order))
    assert whitened(other, SPEC).features == pytest.approx(whitened(latents, SPEC).features[order], abs=1e-4)


def test_latents_that_do_not_vary_are_refused() -> None:
    prompts = all_prompts(SPEC)
    with pytest.raises(EmptyClass, match="do not vary"):
        whitened(AuditLatents(features=np.ones((len(prompts), 2, 3), np.float32), prompts=prompts), SPEC)
