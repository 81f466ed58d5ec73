"""The annotation of a sample: label, class name, captions, attributes, validated from its `json` file.

Used by scan.py (to list classes and attribute values) and by decode.py (to create samples). The first line of an error
(`what`) is stored in indexes and stores, so it has no text of other libraries, which differs between their versions and
processes; that text is a further line.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffprobe.config.schema import CapsConfig, FieldsConfig
from diffprobe.core.errors import DiffprobeError, SampleError
from diffprobe.core.json_file import parse_json
from diffprobe.shards.reader import RawSample, is_text

Fields = FieldsConfig
"""Names of the files and keys of a sample; defined in the configuration."""
Caps = CapsConfig
"""Largest parts of a sample; defined in the configuration."""

NO_VALUE = frozenset({"", "NaN", "nan", "null"})
"""Texts that mean a missing value, without the whitespace around them; in JSON null and NaN mean the same."""
IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "jpe", "jfif"})
"""Ends of extensions that suggest an image, for the fix of a sample without one."""
_MAX_LISTED = 12
"""Most fields of a sample that an error message lists."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """The annotation of one sample; the defaults mean unknown."""

    label: int | None = None
    class_name: str | None = None
    caption: str = ""
    captions: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)


def parse_annotation(
    raw: RawSample, fields: Fields, *, renamed: Mapping[str, str] | None = None, caps: Caps | None = None
) -> Annotation:
    """Read the annotation of a sample: its JSON file and the plain WebDataset fields `cls` and `txt`.

    `cls` is the label as decimal text, `txt` the caption. The JSON takes precedence for captions; labels must agree.
    null, NaN, empty and blank text mean that there is no value, in JSON and in plain text (see `NO_VALUE`).

    Args:
        renamed: attribute name in the JSON -> its name in the set.
        caps: largest parts that are read.

    Raises: SampleError, with shard and key, for invalid JSON, a value of the wrong type, or invalid text.
    """
    caps = caps or Caps()
    record = _record(raw, fields.json, caps)
    label = _label(raw, record.get(fields.label), fields.label)
    if "cls" in raw.files and (text := has_value(_text(raw, "cls", caps).strip())) is not None:
        if not text.isdecimal() or len(text) > 18:
            raise fault(raw, f"field 'cls' is '{text[:40]}', expected an integer from 0")
        if label is not None and label != int(text):
            raise fault(raw, f"field 'cls' has label {int(text)}, the json has {label}")
        label = int(text)
    if label is not None and label > caps.label:
        raise fault(raw, f"label {label} is larger than {caps.label}, the cap data.caps.label (--cap label=N)")
    caption = _string(raw, record.get(fields.caption), fields.caption)
    if caption is None and "txt" in raw.files:
        caption = has_value(_text(raw, "txt", caps).strip())
    captions = _captions(raw, record.get(fields.captions), fields.captions)
    if captions is None:
        captions = () if caption is None else (caption,)
    class_name = _string(raw, record.get(fields.class_name), fields.class_name)
    attributes = _attributes(raw, record.get(fields.attributes), fields.attributes, renamed or {})
    if not is_text("".join((caption or "", class_name or "", *captions, *attributes, *attributes.values()))):
        raise fault(raw, f"field '{fields.json}' has a lone surrogate (\\ud800 to \\udfff)")
    return Annotation(
        label=label, class_name=class_name, caption=caption or "", captions=captions, attributes=attributes
    )


def image_field(raw: RawSample, fields: Fields) -> str:
    """Return the extension of a sample's image. Raises: SampleError unless there is exactly one."""
    found = [extension for extension in fields.image if extension in raw.files]
    if len(found) > 1:
        raise fault(raw, f"several images: {', '.join(found)}", fix=f"name one of them: --field image={found[0]}")
    if not found:
        names = f"it has the fields {_names(raw)}" if raw.files else "it has no field"
        raise fault(raw, f"no image ({' or '.join(fields.image)}); {names}", fix=_image_fix(raw))
    return found[0]


def fault(raw: RawSample, what: str, *details: str, fix: str | None = None) -> SampleError:
    """Return the error for one sample; its first line has shard and key."""
    return SampleError(f"{raw.shard}, sample '{raw.key}': {what}.", f"its fields: {_names(raw)}", *details, fix=fix)


def has_value(text: str) -> str | None:
    """Return a text, or None if it means a missing value.

    >>> [has_value(text) for text in ("a cup", "", " \\n", "NaN", "none")]
    ['a cup', None, None, None, 'none']
    """
    return None if text.strip() in NO_VALUE else text


def _image_fix(raw: RawSample) -> str | None:
    """Return the fix for a sample without image: the field that looks like one, or the dots in its key."""
    likely = [name for name in sorted(raw.files) if name.rpartition(".")[2] in IMAGES]
    if not likely:
        return None
    if len(likely) > 1 and len({name.rpartition(".")[2] for name in likely}) == 1:
        return (
            f"a key ends at the first dot after the last slash, here at '{raw.key}': if '{likely[0]}' and "
            f"'{likely[1]}' are of different samples, rename the members without dots in their keys"
        )
    return f"--field image={likely[0]}"


def _names(raw: RawSample) -> str:
    names = sorted(raw.files)
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more or "(none)"


def _record(raw: RawSample, name: str, caps: Caps) -> dict[str, Any]:
    if name not in raw.files:
        return {}
    _check_size(raw, name, caps)
    try:
        record = parse_json(raw.files[name], where=f"field '{name}'", non_finite=True)
    except DiffprobeError as error:
        place = re.search(r"line \d+ column \d+", error.what)
        at = f" ({place[0]})" if place else ""
        raise fault(raw, f"field '{name}' is not JSON{at}", error.what) from error
    if not isinstance(record, dict):
        raise fault(raw, f"field '{name}' must be a JSON object, not {type(record).__name__}")
    odd = [key for key, value in record.items() if _is_infinite(value)]
    if odd:
        raise fault(raw, f"json '{odd[0]}' is infinite, which is not a value")
    return {key: value for key, value in record.items() if value == value}  # without NaN


def _is_infinite(value: object) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _text(raw: RawSample, name: str, caps: Caps) -> str:
    _check_size(raw, name, caps)
    try:
        return raw.files[name].decode()
    except UnicodeDecodeError as error:
        raise fault(raw, f"field '{name}' is not UTF-8 text (byte {error.start})") from error


def _check_size(raw: RawSample, name: str, caps: Caps) -> None:
    if len(raw.files[name]) > caps.annotation_bytes:
        raise fault(
            raw,
            f"field '{name}' has {len(raw.files[name]):,} bytes, more than {caps.annotation_bytes:,}, the cap "
            "data.caps.annotation_bytes (--cap annotation_bytes=N)",
        )


def _string(raw: RawSample, value: object, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise fault(raw, f"json '{name}' must be a text, not {type(value).__name__}")
    return None if value is None else has_value(value)


def _captions(raw: RawSample, value: object, name: str) -> tuple[str, ...] | None:
    """Read the list of captions; entries without a value are not part of it."""
    if value is None or (isinstance(value, str) and has_value(value) is None):
        return None
    if not isinstance(value, list):
        raise fault(raw, f"json '{name}' must be a list of texts")
    texts = [text for text in value if text is not None and text == text]  # without null and NaN
    if not all(isinstance(text, str) for text in texts):
        raise fault(raw, f"json '{name}' must be a list of texts")
    return tuple(text for text in texts if has_value(text) is not None)


def _label(raw: RawSample, value: object, name: str) -> int | None:
    if value is None or (isinstance(value, str) and has_value(value) is None):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise fault(raw, f"json '{name}' is {str(value)[:40] if isinstance(value, int) else repr(value)[:40]}, "
                    "expected an integer from 0")  # fmt: skip
    return value


def _attributes(raw: RawSample, value: object, name: str, renamed: Mapping[str, str]) -> dict[str, str]:
    """Read attribute values as text, without the attributes whose value is missing."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise fault(raw, f"json '{name}' must map names to values, not be {type(value).__name__}")
    odd = [key for key, item in value.items() if _is_infinite(item)]
    if odd:
        raise fault(raw, f"json '{name}.{odd[0]}' is infinite, which is not a value")
    nested = [key for key, item in value.items() if isinstance(item, dict | list)]
    if nested:
        raise fault(raw, f"json '{name}.{nested[0]}' must be one value; attributes are flat")
    taken = [key for key in value if renamed.get(key, key) != key and renamed[key] in value]
    if taken:
        raise fault(raw, f"attribute '{taken[0]}' is renamed to '{renamed[taken[0]]}', which the sample has too")
    found = {}
    for key, item in value.items():
        text = item if isinstance(item, str) else json.dumps(item)
        if item is not None and has_value(text) is not None:
            found[renamed.get(key, key)] = text
    return found
