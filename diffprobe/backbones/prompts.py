"""Build the conditioning input of each sample: a prompt, a class id, or nothing. Encoding is in `text_encoders.py`.

A plan has one branch per condition: the main one, and the unconditional one if it is requested.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from diffprobe.backbones.base import ConditionInput
from diffprobe.core.errors import ConfigError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Branch:
    """One rule for conditioning inputs.

    Attributes:
        condition: one of `cell.CONDITIONS`.
        prompt: the text of prompt and negative, the pattern of template; None for the others.
        missing: "empty" gives a sample that lacks its caption, label or column the empty prompt; otherwise it is an
            error.
    """

    condition: str
    prompt: str | None = None
    missing: str = "refuse"

    @property
    def is_fixed(self) -> bool:
        """Whether all samples have the same conditioning input."""
        return self.condition in ("empty", "prompt", "negative")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a sample that the input is made of: caption, label, class_name, or attributes."""
        if self.condition == "template":
            return tuple(_columns_of(self.prompt or ""))
        return (self.condition,) if self.condition in ("caption", "label") else ()


@dataclass(frozen=True, kw_only=True)
class SampleMetadata:
    """Metadata of the samples of a batch, one value per sample and column.

    Attributes:
        keys: the samples' keys, for messages.
        captions: for condition=caption, None for none; also the column `caption` of templates.
        labels: for condition=label; -1 for none.
        columns: text columns for templates, for example `class_name` and the attributes; None where a sample has none.
    """

    keys: Sequence[str]
    captions: Sequence[str | None] | None = None
    labels: Sequence[int] | None = None
    columns: Mapping[str, Sequence[str | None]] = field(default_factory=dict)


def make_branches(
    condition: str, prompt: str | None, *, unconditional: bool, negative: str | None, missing: str = "refuse"
) -> list[Branch]:
    """List the branches of a plan. Raises: ConfigError for prompts that do not fit the conditions."""
    takes = condition in ("prompt", "template")
    if (prompt is not None) != takes:
        raise ConfigError(
            f"condition={condition} with prompt={prompt!r}: "
            + ("it needs a prompt." if takes else "only condition=prompt and condition=template take one.")
        )
    if condition == "template":
        _columns_of(str(prompt))
    if condition == "negative" or (negative is not None and not unconditional):
        raise ConfigError("a negative prompt belongs to the unconditional branch.", fix="unconditional=true")
    branches = [Branch(condition, prompt, missing)]
    if unconditional:
        branches.append(Branch("empty") if negative is None else Branch("negative", negative))
    if len({branch.condition for branch in branches}) < len(branches):
        raise ConfigError("the unconditional branch is condition=empty itself.", fix="unconditional=false")
    return branches


def condition_inputs(branch: Branch, samples: SampleMetadata) -> list[ConditionInput]:
    """Return the conditioning input of each sample. Raises: ConfigError naming samples without what the rule needs."""
    n = len(samples.keys)
    if branch.missing == "empty" and (lacking := _lacking(branch, samples)):
        others = [i for i in range(n) if i not in lacking]
        given = condition_inputs(replace(branch, missing="refuse"), _take(samples, others)) if others else []
        found = dict(zip(others, given, strict=True))
        return [found.get(i, "") for i in range(n)]
    if branch.condition == "empty":
        return [""] * n
    if branch.condition in ("prompt", "negative"):
        return [branch.prompt or ""] * n
    if branch.condition == "caption":
        return list(_complete("caption", "caption", samples.captions, samples.keys))
    if branch.condition == "label":
        labels = None if samples.labels is None else [None if label < 0 else label for label in samples.labels]
        return list(_complete("label", "label", labels, samples.keys))
    return _fill(branch.prompt or "", samples)


def _lacking(branch: Branch, samples: SampleMetadata) -> set[int]:
    """Return the indices of the samples without a value of a column that the branch needs."""
    labels = None if samples.labels is None else [None if label < 0 else label for label in samples.labels]
    known = {"caption": samples.captions, "label": labels, **samples.columns}
    columns = [known[name] for name in branch.columns if known.get(name) is not None]
    return {i for column in columns for i, value in enumerate(column or ()) if value is None}


def _take(samples: SampleMetadata, rows: Sequence[int]) -> SampleMetadata:
    return SampleMetadata(
        keys=[samples.keys[i] for i in rows],
        captions=None if samples.captions is None else [samples.captions[i] for i in rows],
        labels=None if samples.labels is None else [samples.labels[i] for i in rows],
        columns={name: [values[i] for i in rows] for name, values in samples.columns.items()},
    )


def _fill(template: str, samples: SampleMetadata) -> list[ConditionInput]:
    columns = dict(samples.columns)
    if samples.captions is not None:
        columns.setdefault("caption", samples.captions)
    values: dict[str, Sequence[str]] = {}
    for name in _columns_of(template):
        if name not in columns:
            close = nearest(name, list(columns))
            raise ConfigError(
                f"the template '{template}' names the column '{name}', which the samples do not have.",
                *([f"nearest: {', '.join(close)}"] if close else []),
                f"allowed: {', '.join(columns) or '(none was given)'}",
            )
        values[name] = _complete("template", name, columns[name], samples.keys)
    return [template.format(**{name: column[i] for name, column in values.items()}) for i in range(len(samples.keys))]


def _columns_of(template: str) -> list[str]:
    """Return the names in braces. Raises: ConfigError without names, or for one that is not an identifier."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"the template '{template}' cannot be read: {error}.") from error
    bad = [name for name in names if not name.replace("-", "_").isidentifier()]
    if bad or not names:
        raise ConfigError(
            f"the template '{template}' names no column." if not names else f"'{{{bad[0]}}}' names no column.",
            fix="write for example 'a photo of a {class_name}'",
        )
    return list(dict.fromkeys(names))


def _complete(condition: str, what: str, values: Sequence[T | None] | None, keys: Sequence[str]) -> list[T]:
    """Return a column without missing values. Raises: ConfigError."""
    if values is None or isinstance(values, str) or len(values) != len(keys):
        given = "none" if values is None else "one text" if isinstance(values, str) else str(len(values))
        raise ConfigError(f"condition={condition} needs a {what} for each of {len(keys)} images; got {given}.")
    without = [key for key, value in zip(keys, values, strict=True) if value is None]
    if without:
        raise ConfigError(
            f"condition={condition}, but {len(without)} of {len(keys)} samples have no {what}.",
            f"first: {', '.join(without[:3])}",
        )
    return [value for value in values if value is not None]
