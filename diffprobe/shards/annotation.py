"""The annotation of a sample: label, class name, captions, attributes, validated from its `json` file.

Used by scan.py (to list classes and attribute values) and by decode.py (to create samples).
"""

import json
from dataclasses import dataclass, field
from typing import Any

from diffprobe.config.schema import FieldsConfig
from diffprobe.core.errors import SampleError
from diffprobe.shards.reader import RawSample, is_text

Fields = FieldsConfig
"""Names of the files and keys of a sample; defined in the configuration."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """The annotation of one sample; the defaults mean unknown."""

    label: int | None = None
    class_name: str | None = None
    caption: str = ""
    captions: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)


def parse_annotation(raw: RawSample, fields: Fields) -> Annotation:
    """Read the annotation of a sample: its JSON file and the plain WebDataset fields `cls` and `txt`.

    `cls` is the label as decimal text, `txt` the caption. The JSON takes precedence for captions; labels must agree.

    Raises: SampleError, with shard and key, for invalid JSON, a value of the wrong type, or invalid text.
    """
    record = _record(raw, fields.json)
    label = _label(raw, record.get(fields.label), fields.label)
    if "cls" in raw.files:
        text = _text(raw, "cls").strip()
        if not text.isdecimal():
            raise fault(raw, f"field 'cls' is '{text[:40]}', expected an integer from 0")
        if label is not None and label != int(text):
            raise fault(raw, f"field 'cls' has label {int(text)}, the json has {label}")
        label = int(text)
    caption = _string(raw, record.get(fields.caption), fields.caption)
    if caption is None:
        caption = _text(raw, "txt").strip() if "txt" in raw.files else ""
    captions = record.get(fields.captions)
    if captions is None:
        captions = [caption] if caption else []
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise fault(raw, f"json '{fields.captions}' must be a list of texts")
    class_name = _string(raw, record.get(fields.class_name), fields.class_name)
    if class_name == "":
        raise fault(raw, f"json '{fields.class_name}' is empty; use null for none")
    attributes = _attributes(raw, record.get(fields.attributes), fields.attributes)
    if not is_text("".join((caption, class_name or "", *captions, *attributes, *attributes.values()))):
        raise fault(raw, f"field '{fields.json}' has a lone surrogate (\\ud800 to \\udfff)")
    return Annotation(
        label=label, class_name=class_name, caption=caption, captions=tuple(captions), attributes=attributes
    )


def image_field(raw: RawSample, fields: Fields) -> str:
    """Return the extension of a sample's image. Raises: SampleError unless there is exactly one."""
    found = [extension for extension in fields.image if extension in raw.files]
    if len(found) != 1:
        missing = f"no image ({' or '.join(fields.image)})"
        raise fault(raw, f"several images: {', '.join(found)}" if found else missing)
    return found[0]


def fault(raw: RawSample, what: str, *details: str) -> SampleError:
    """Return the error for one sample; its first line has shard and key."""
    return SampleError(f"{raw.shard}, sample '{raw.key}': {what}.", f"its fields: {_names(raw)}", *details)


def _names(raw: RawSample) -> str:
    return ", ".join(sorted(raw.files)) or "(none)"


def _record(raw: RawSample, name: str) -> dict[str, Any]:
    if name not in raw.files:
        return {}
    try:
        record = json.loads(raw.files[name])
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise fault(raw, f"field '{name}' is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise fault(raw, f"field '{name}' must be a JSON object, not {type(record).__name__}")
    return record


def _text(raw: RawSample, name: str) -> str:
    try:
        return raw.files[name].decode()
    except UnicodeDecodeError as error:
        raise fault(raw, f"field '{name}' is not UTF-8 text ({error})") from error


def _string(raw: RawSample, value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise fault(raw, f"json '{name}' must be a text, not {type(value).__name__}")
    return value


def _label(raw: RawSample, value: Any, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise fault(raw, f"json '{name}' is {value!r}, expected an integer from 0")
    return value


def _attributes(raw: RawSample, value: Any, name: str) -> dict[str, str]:
    """Read attribute values as text; null means that the sample's value is unknown."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise fault(raw, f"json '{name}' must map names to values, not be {type(value).__name__}")
    nested = [key for key, item in value.items() if isinstance(item, dict | list)]
    if nested:
        raise fault(raw, f"json '{name}.{nested[0]}' must be one value; attributes are flat")
    return {key: item if isinstance(item, str) else json.dumps(item) for key, item in value.items() if item is not None}
