"""What an audit may ask, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from diffprobe.analysis.audit.spec import AuditSpec, Axis, Subject
from diffprobe.core.errors import ConfigError

TONE = Axis(name="tone", positive=("dark",), negative=("light",))


def spec(**more: Any) -> AuditSpec:
    tree: dict[str, Any] = {"templates": ("a {subject}",), "subjects": ("cook", "judge"), "axes": (TONE,), **more}
    return AuditSpec(**tree)


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: spec(templates=("a cook",)), ["a cook", "{subject}", "0 times"]),
        (lambda: spec(templates=("{subject} and {subject}",)), ["2 times"]),
        (lambda: spec(templates=()), ["templates"]),
        (lambda: spec(templates=("a {subject}", "A  {subject}")), ["twice"]),
        (lambda: spec(subjects=("cook", "Cook")), ["Cook", "twice"]),
        (lambda: spec(subjects=("cook", Subject(name="cooking", alone="cook"))), ["cook", "twice"]),
        (lambda: spec(subjects=("cook", " ")), ["subjects", "empty"]),
        (lambda: spec(axes=()), ["0 axes"]),
        (lambda: spec(axes=(TONE, TONE)), ["tone", "twice"]),
        (lambda: spec(neutral=("cook",)), ["neutral", "cook"]),
        (lambda: spec(descriptors=("red", "red")), ["red", "twice"]),
        (lambda: spec(descriptors=("",)), ["descriptors", "empty"]),
        (lambda: Axis(name="tone", positive=("dark",), negative=("Dark ",)), ["tone", "equal ends", "dark"]),
        (lambda: Axis(name="tone", positive=("dark", "brown"), negative=("light",)), ["tone", "2", "1"]),
        (lambda: Axis(name="tone", positive=(), negative=()), ["tone", "0"]),
        (lambda: Axis(name="tone", positive=("a",), negative=("b",), context="{subject}"), ["{attribute}"]),
        (lambda: Axis(name="t", positive=("a",), negative=("b",), context="{attribute}"), ["{prompt}"]),
    ],
)  # fmt: skip
def test_a_wrong_audit_is_refused_with_its_facts(make: Callable[[], object], facts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)


def test_twenty_templates_are_enough() -> None:
    assert spec().has_few_templates
    assert spec(templates=tuple(f"{i} {{subject}}" for i in range(19))).has_few_templates
    assert not spec(templates=tuple(f"{i} {{subject}}" for i in range(20))).has_few_templates


def test_subjects_are_names_or_have_keys() -> None:
    found = spec(subjects=("cook", Subject(name="running", alone="person running", group="sport"))).all_subjects
    assert [one.text for one in found] == ["cook", "person running"]
    with pytest.raises(ConfigError, match="tone"):
        spec().axis("tune")
