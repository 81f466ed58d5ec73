"""The block `steering` of an audit: what is refused, and how many images and passes it is."""

from typing import Any

import pytest

from diffprobe.core.errors import ConfigError, DiffprobeError
from diffprobe.evaluation.audit_steering_settings import AuditSteering, evenly_spaced
from tests.evaluation.audit_world import settings

BLOCK: dict[str, Any] = {"generator": "model", "labelled": "faces"}


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"labelled": None}, "one of both"),
        ({"reader": "scenes-reader"}, "one of both"),
        ({"confusion": "result"}, "confusion"),
        ({"strengths": (0.0, 1.0, 2.0)}, "strengths"),
        ({"strengths": (-1.0, 1.0)}, "strengths"),
        ({"n_subjects": 1}, "n_subjects"),
        ({"n_random": 0}, "n_random"),
        ({"seeds": 0}, "seeds"),
        ({"guidance": -1.0}, "guidance"),
        ({"branch": "left"}, "branch"),
        ({"branch": "both"}, "guidance"),
        ({"window": (5, 2)}, "window"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], fact: str) -> None:
    with pytest.raises(DiffprobeError, match=fact):
        AuditSteering(**{**BLOCK, **change})


def test_axes_and_templates_have_to_be_those_of_the_audit() -> None:
    with pytest.raises(ConfigError, match="tune"):
        settings(steering=AuditSteering(**BLOCK, attributes={"tune": "a"}))
    with pytest.raises(ConfigError, match="n_templates=9"):
        settings(n_templates=3, steering=AuditSteering(**BLOCK, n_templates=9))


def test_attributes_are_those_that_are_given_or_the_axes_themselves() -> None:
    assert AuditSteering(**BLOCK).attribute_of("skin tone") == "skin_tone"
    given = AuditSteering(**BLOCK, attributes={"skin tone": "tone"})
    assert given.attribute_of("skin tone") == "tone" and given.attribute_of("gender") is None


def test_passes_count_every_image_once_and_strength_zero_once_for_all() -> None:
    block = AuditSteering(**BLOCK, strengths=(-1.0, 0.0, 1.0), n_subjects=3, seeds=2, n_random=2, sampling_steps=5)
    assert block.n_images(n_subjects=10, n_templates=4) == 6 and block.n_images(n_subjects=2, n_templates=4) == 4
    # (1 untouched + 2 axes x 3 directions x 2 strengths) x 6 images x 5 steps
    assert block.n_passes(10, 4, 2) == 13 * 6 * 5
    guided = AuditSteering(**BLOCK, strengths=(-1.0, 0.0, 1.0), n_subjects=3, seeds=2, n_random=2, sampling_steps=5,
                           guidance=2.0)  # fmt: skip
    assert guided.n_passes(10, 4, 2) == 2 * block.n_passes(10, 4, 2)


def test_entries_are_evenly_spaced_without_repeats() -> None:
    for n in range(1, 30):
        for wanted in range(1, 12):
            found = evenly_spaced(n, wanted)
            assert len(set(found)) == len(found) == min(n, wanted) and found[0] == 0 and found[-1] < n
            assert max(b - a for a, b in zip([*found, n], [*found, n][1:], strict=False)) <= -(-n // len(found))
