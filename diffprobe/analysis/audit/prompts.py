"""The prompts of an audit, each once, and where the latents of each part are among them."""

from collections.abc import Iterator, Sequence

from diffprobe.analysis.audit.spec import ATTRIBUTE, PROMPT, SUBJECT, AuditSpec, Axis, Subject

POSITIVE, NEGATIVE = 0, 1
"""Ends of an axis."""


def subject_prompts(spec: AuditSpec) -> list[list[str]]:
    """Return the prompt of each subject in each template, [subject][template].

    >>> spec = AuditSpec(templates=("a {subject}",), subjects=("cook",),
    ...                  axes=(Axis(name="tone", positive=("dark",), negative=("light",)),))
    >>> subject_prompts(spec)
    [['a cook']]
    """
    return [[_fill(template, one.text) for template in spec.templates] for one in spec.all_subjects]


def end_prompts(spec: AuditSpec, axis: Axis, subjects: Sequence[Subject], end: int) -> list[list[list[str]]]:
    """Return the prompts of subjects with the words of one end, [subject][template][word].

    Args:
        subjects: audited or neutral subjects.
        end: `POSITIVE` or `NEGATIVE`.
    """
    words = axis.positive if end == POSITIVE else axis.negative
    return [
        [[with_attribute(template, one, axis, word) for word in words] for template in spec.templates]
        for one in subjects
    ]


def context_subjects(spec: AuditSpec) -> tuple[Subject, ...]:
    """Return the subjects of the contexts from which directions are estimated."""
    return spec.all_neutral or spec.all_subjects


def descriptor_prompts(spec: AuditSpec) -> list[list[str]]:
    """Return the prompt of each descriptor in each template, [descriptor][template]."""
    return [[_fill(template, word) for template in spec.templates] for word in spec.descriptors]


def with_attribute(template: str, subject: Subject, axis: Axis, word: str) -> str:
    """Return the prompt of a subject with an attribute word.

    >>> gender = Axis(name="gender", positive=("woman",), negative=("man",))
    >>> with_attribute("emoji, {subject}", Subject(name="running", alone="person running"), gender, "man")
    'emoji, man running'
    >>> tone = Axis(name="tone", positive=("dark",), negative=("light",), context="{prompt}, {attribute} skin tone")
    >>> with_attribute("emoji, {subject}", Subject(name="running", alone="person running"), tone, "dark")
    'emoji, person running, dark skin tone'
    """
    if PROMPT in axis.context:
        before, after = axis.context.replace(ATTRIBUTE, word).split(PROMPT, 1)
        return f"{before}{_fill(template, subject.text)}{after}"
    before, after = axis.context.split(SUBJECT, 1)
    return _fill(template, f"{before.replace(ATTRIBUTE, word)}{subject.name}{after.replace(ATTRIBUTE, word)}")


def all_prompts(spec: AuditSpec) -> tuple[str, ...]:
    """Return all prompts whose latents the audit reads, each once, in a fixed order."""
    return tuple(dict.fromkeys(_each(spec)))


def _each(spec: AuditSpec) -> Iterator[str]:
    for row in (*subject_prompts(spec), *descriptor_prompts(spec)):
        yield from row
    read = list(spec.all_neutral)
    if spec.compare_variants or not read:
        read += spec.all_subjects
    for axis in spec.axes:
        for end in (POSITIVE, NEGATIVE):
            for rows in end_prompts(spec, axis, read, end):
                for words in rows:
                    yield from words


def _fill(template: str, text: str) -> str:
    before, after = template.split(SUBJECT, 1)
    return f"{before}{text}{after}"
