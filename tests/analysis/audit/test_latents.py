"""Prompt latents as arrays of an audit."""

import numpy as np
import pytest

from diffprobe.analysis.audit.latents import (
    AuditLatents,
    context_differences,
    descriptor_latents,
    end_latents,
    subject_latents,
)
from diffprobe.analysis.audit.prompts import all_prompts, end_prompts, subject_prompts
from diffprobe.core.errors import ConfigError, NonFinite
from tests.analysis.audit.world import World, make_spec

SPEC = make_spec({"cook": 0.5, "judge": 0.9, "poet": 0.1}, n_templates=4, descriptors=("red", "blue"))
LATENTS = World({"cook": 0.5, "judge": 0.9, "poet": 0.1}, n_seeds=3, d=5).latents(SPEC)


def test_each_latent_is_at_the_place_of_its_prompt() -> None:
    found = subject_latents(LATENTS, SPEC)
    assert found.shape == (3, 4, 3, 5)
    for i, row in enumerate(subject_prompts(SPEC)):
        for t, text in enumerate(row):
            assert np.array_equal(found[i, t], LATENTS.features[LATENTS.prompts.index(text)])
    assert descriptor_latents(LATENTS, SPEC).shape == (2, 4, 3, 5)


def test_the_order_of_the_prompts_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(LATENTS.prompts))
    other = AuditLatents(features=LATENTS.features[order], prompts=tuple(LATENTS.prompts[i] for i in order))
    assert np.array_equal(subject_latents(LATENTS, SPEC), subject_latents(other, SPEC))
    assert np.array_equal(
        context_differences(LATENTS, SPEC, SPEC.axes[0]), context_differences(other, SPEC, SPEC.axes[0])
    )


def test_differences_are_paired_by_context_template_and_seed() -> None:
    (axis,) = SPEC.axes
    positive, negative = end_latents(LATENTS, SPEC, axis, SPEC.all_subjects)
    found = context_differences(LATENTS, SPEC, axis)
    total = np.zeros((4, 3, 5))
    for end, sign in ((0, 1), (1, -1)):
        for rows in end_prompts(SPEC, axis, SPEC.all_subjects, end):
            for t, words in enumerate(rows):
                total[t] += sign * LATENTS.features[LATENTS.prompts.index(words[0])].astype(np.float64) / 3
    assert np.allclose(found, total) and positive.shape == negative.shape == (3, 4, 1, 3, 5)


def test_a_missing_prompt_is_named() -> None:
    prompts = all_prompts(SPEC)
    few = AuditLatents(features=LATENTS.features[1:], prompts=LATENTS.prompts[1:])
    with pytest.raises(ConfigError, match="1 of .* prompts") as caught:
        few.require(prompts)
    assert LATENTS.prompts[0] in str(caught.value)


def test_latents_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ConfigError, match="'a'"):
        AuditLatents(features=np.zeros((2, 1, 3), np.float32), prompts=("a", "a"))
    with pytest.raises(ConfigError, match="1 prompts"):
        AuditLatents(features=np.zeros((2, 1, 3), np.float32), prompts=("a",))
    broken = np.zeros((2, 1, 3), np.float32)
    broken[1, 0, 2] = np.nan
    with pytest.raises(NonFinite, match="'b'"):
        AuditLatents(features=broken, prompts=("a", "b"))
