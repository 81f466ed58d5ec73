"""The prompts of an audit."""

from diffprobe.analysis.audit.prompts import (
    all_prompts,
    context_subjects,
    descriptor_prompts,
    end_prompts,
    subject_prompts,
)
from diffprobe.analysis.audit.spec import AuditSpec, Axis, Subject

GENDER = Axis(name="gender", positive=("woman",), negative=("man",))
TONE = Axis(name="tone", positive=("dark", "brown"), negative=("light", "pale"), context="{prompt}, {attribute} skin")
RUNNING = Subject(name="running", alone="person running")
SPEC = AuditSpec(
    templates=("noto, {subject}", "twemoji, {subject}, sport"), subjects=("cook", RUNNING), axes=(GENDER, TONE),
    neutral=(Subject(name="standing", alone="person standing"),), descriptors=("sport",),
)  # fmt: skip


def test_attributes_replace_the_subject_or_follow_the_prompt() -> None:
    assert subject_prompts(SPEC)[1] == ["noto, person running", "twemoji, person running, sport"]
    assert end_prompts(SPEC, GENDER, [RUNNING], 0) == [[["noto, woman running"], ["twemoji, woman running, sport"]]]
    assert end_prompts(SPEC, TONE, [RUNNING], 1)[0][1] == [
        "twemoji, person running, sport, light skin", "twemoji, person running, sport, pale skin",
    ]  # fmt: skip
    assert descriptor_prompts(SPEC) == [["noto, sport", "twemoji, sport, sport"]]


def test_all_prompts_are_listed_once() -> None:
    found = all_prompts(SPEC)
    subjects, descriptors, ends = 2 * 2, 2, 2 * (2 + 4) * 3  # both ends of both axes, of subjects and neutral
    assert len(found) == len(set(found)) == subjects + descriptors + ends
    assert [one.name for one in context_subjects(SPEC)] == ["standing"]


def test_variants_are_left_out_where_nothing_reads_them() -> None:
    tree = {"templates": SPEC.templates, "subjects": SPEC.subjects, "axes": SPEC.axes, "compare_variants": False}
    few = all_prompts(AuditSpec(**tree, neutral=SPEC.neutral))  # type: ignore[arg-type]
    assert "noto, woman cook" not in few and "noto, woman standing" in few
    assert "noto, woman cook" in all_prompts(AuditSpec(**tree))  # type: ignore[arg-type]


def test_braces_of_other_texts_are_kept() -> None:
    odd = AuditSpec(templates=("{x} {subject}",), subjects=("{0} cook", "judge"), axes=(GENDER,))
    assert subject_prompts(odd)[0] == ["{x} {0} cook"]
    assert end_prompts(odd, GENDER, odd.all_subjects, 0)[0][0] == ["{x} woman {0} cook"]
