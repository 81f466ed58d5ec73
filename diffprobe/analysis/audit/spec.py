"""What an audit asks: templates, subjects, and axes with two ends, as an experiment file of kind `audit` gives them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffprobe.core.errors import ConfigError

SUBJECT, PROMPT, ATTRIBUTE = "{subject}", "{prompt}", "{attribute}"
"""Slots of templates and contexts."""
ENOUGH_TEMPLATES = 20
"""With fewer templates no association is called significant."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One subject of an audit, such as an occupation."""

    name: str
    """What the contexts of axes name, and how results call it: "running" in "a man running"."""
    alone: str | None = None
    """What templates name without an attribute: "person running". None: the name."""
    group: str | None = None
    """Group of subjects whose associations are compared with those of the others."""

    @property
    def text(self) -> str:
        """What replaces the slot of a template."""
        return self.name if self.alone is None else self.alone


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An attribute with two ends."""

    name: str
    """Name of the axis, for example "gender"."""
    positive: tuple[str, ...]
    """Attribute words of the end that positive numbers mean."""
    negative: tuple[str, ...]
    """Attribute words of the other end, paired with those of `positive` by their order."""
    context: str = f"{ATTRIBUTE} {SUBJECT}"
    """How a prompt gets an attribute: a text with `{attribute}` and `{subject}`, which replaces the subject of the
    template, or with `{attribute}` and `{prompt}`, the whole prompt of the subject."""

    def __post_init__(self) -> None:
        slots = [self.context.count(SUBJECT), self.context.count(PROMPT)]
        if self.context.count(ATTRIBUTE) != 1 or sorted(slots) != [0, 1]:
            raise ConfigError(
                f"context of axis '{self.name}' is '{self.context}'.",
                f"needed: {ATTRIBUTE} once, and either {SUBJECT} or {PROMPT} once, as in '{ATTRIBUTE} {SUBJECT}' or "
                f"'{PROMPT}, {ATTRIBUTE}'",
            )
        if not self.positive or len(self.positive) != len(self.negative):
            raise ConfigError(
                f"axis '{self.name}' has {len(self.positive)} positive and {len(self.negative)} negative words.",
                "needed: as many of each, at least 1; the first of both are a pair, and so on",
            )
        if shared := sorted(
            {word.strip().lower() for word in self.positive} & {w.strip().lower() for w in self.negative}
        ):
            raise ConfigError(f"axis '{self.name}' has equal ends: {', '.join(shared)}.")
        _require_texts(f"axis '{self.name}'", (self.name, *self.positive, *self.negative))


@dataclass(frozen=True, kw_only=True)
class AuditSpec:
    """Templates, subjects and axes of an audit; `prompts.py` turns them into prompts."""

    templates: tuple[str, ...]
    """Texts with the slot `{subject}` once. Fewer than 20 are accepted, but then nothing counts as significant."""
    subjects: tuple[str | Subject, ...]
    """The audited subjects: a name, or the keys name, alone, group."""
    axes: tuple[Axis, ...]
    """The axes."""
    neutral: tuple[str | Subject, ...] = ()
    """Subjects of the contexts from which directions are estimated, other than the audited ones. Empty: the audited
    subjects themselves."""
    descriptors: tuple[str, ...] = ()
    """Words and phrases that are ranked along directions and for each subject; each is put into all templates."""
    compare_variants: bool = True
    """Read the prompts of each subject with each attribute: needed for the default analysis and for rates."""

    def __post_init__(self) -> None:
        self.require_templates()
        for key, found in (("subjects", self.all_subjects), ("neutral", self.all_neutral)):
            _require_texts(key, [one.name for one in found] + [one.text for one in found])
            _require_unique(f"{key}: name", (one.name for one in found))
            _require_unique(f"{key}: text", (one.text for one in found))
        if not self.subjects or not self.axes:
            raise ConfigError(f"{len(self.subjects)} subjects and {len(self.axes)} axes: at least 1 of each is needed.")
        names = {one.text for one in self.all_subjects}
        if both := [one.name for one in self.all_neutral if one.text in names]:
            raise ConfigError(f"neutral has audited subjects: {', '.join(both)}.")
        _require_unique("axes: name", (axis.name for axis in self.axes))
        _require_texts("descriptors", self.descriptors)
        _require_unique("descriptors:", self.descriptors)

    def require_templates(self) -> None:
        """Check the templates. Raises: ConfigError for none, one without its slot, and one that is given twice."""
        if not self.templates:
            raise ConfigError("templates is empty.", f"needed: texts such as 'a photo of a {SUBJECT}'")
        for template in self.templates:
            if template.count(SUBJECT) != 1:
                raise ConfigError(
                    f"templates: '{template}' has the slot {SUBJECT} {template.count(SUBJECT)} times.",
                    "needed: once, as in 'a photo of a {subject}'",
                )
        _require_unique("templates:", self.templates)

    @property
    def all_subjects(self) -> tuple[Subject, ...]:
        """The audited subjects."""
        return tuple(Subject(name=one) if isinstance(one, str) else one for one in self.subjects)

    @property
    def all_neutral(self) -> tuple[Subject, ...]:
        """The neutral subjects; empty if contexts are of the audited subjects."""
        return tuple(Subject(name=one) if isinstance(one, str) else one for one in self.neutral)

    @property
    def has_few_templates(self) -> bool:
        """Whether templates are too few for any association to be called significant."""
        return len(self.templates) < ENOUGH_TEMPLATES

    def axis(self, name: str) -> Axis:
        """Return an axis by its name. Raises: ConfigError."""
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise ConfigError(f"unknown axis '{name}'.", f"allowed: {', '.join(axis.name for axis in self.axes)}")


def _require_unique(what: str, names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        key = " ".join(name.lower().split())
        if key in seen:
            raise ConfigError(f"{what} '{name}' is given twice (upper case and spaces do not count).")
        seen[key] = name


def _require_texts(what: str, texts: Sequence[str]) -> None:
    if any(not text.strip() for text in texts):
        raise ConfigError(f"{what} has an empty text.")
