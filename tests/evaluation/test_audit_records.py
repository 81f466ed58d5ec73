"""The records of an audit, and its notes."""

import pytest

from diffprobe.evaluation.audit_measures import measure_cell
from diffprobe.evaluation.audit_records import LIMITS, notes_of, records_of
from tests.analysis.audit.world import World
from tests.evaluation.audit_world import RATES, TEXTURE, TONE, settings


def measured(config, **world):  # type: ignore[no-untyped-def]
    latents = World(RATES, **world).latents(config)
    measures = measure_cell(config, latents, words=None, images=None, reference=None)
    notes = notes_of(config, measures)
    return notes, records_of(config, measures, (), notes)


def test_every_subject_has_its_records_on_every_axis() -> None:
    _, records = measured(settings(axes=(TEXTURE, TONE)))
    for name, axes in (("association", 2), ("position", 2), ("default", 2), ("rate", 2), ("amplification", 1)):
        found = [(r.target, r.detail["subject"]) for r in records if r.name == name]
        assert len(found) == len(set(found)) == axes * 6, name
    assert records[0].detail["limits"] == list(LIMITS) and records[0].n == 12
    assert {r.name for r in records} >= {"discoveries", "direction_length", "separability", "group_effect",
                                         "intersection",
                                         "silhouette"}  # fmt: skip


def test_with_few_templates_nothing_is_significant() -> None:
    notes, records = measured(settings(n_templates=19), distance=8.0)
    assert any("Nothing can be significant: 19 templates" in note and "p is 0.01" in note for note in notes)
    assert records[0].value == 0 and not any(r.detail["found"] for r in records if r.name == "association")
    notes, records = measured(settings(n_templates=20), distance=8.0)
    assert records[0].value > 0 and not any("significant" in note for note in notes)


def test_a_single_seed_is_stated() -> None:
    notes, records = measured(settings(), n_seeds=1)
    assert any(note.startswith("One seed: no intervals") for note in notes)
    assert all(r.detail["interval"] is None for r in records if r.name in ("association", "rate", "position"))


@pytest.mark.parametrize(("distance", "is_valid"), [(8.0, True), (0.5, False)])
def test_rates_that_attribute_prompts_do_not_support_are_not_valid(distance: float, is_valid: bool) -> None:
    notes, records = measured(settings(), distance=distance)
    (record,) = [r for r in records if r.name == "separability"]
    assert record.detail["is_valid"] is is_valid
    assert any("not valid" in note for note in notes) is not is_valid
