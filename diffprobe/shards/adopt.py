"""Adopt shards of other tools (`diffprobe data adopt`): find the names of their fields by content.

An image is what begins as JPEG, PNG or WebP; an annotation is what parses as a JSON object. Names of labels, classes
and captions are chosen only where the default name is absent and one known name has values of the right type.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from diffprobe.core.errors import DiffprobeError, ShardError
from diffprobe.core.json_file import parse_json
from diffprobe.core.terminal import one_line
from diffprobe.shards.annotation import Caps, Fields
from diffprobe.shards.reader import RawSample, read_shard
from diffprobe.shards.shard_names import find_shards

N_SHARDS, N_SAMPLES = 4, 25
"""Shards that are looked into, spread over the set, and samples read of each."""
KNOWN: dict[str, tuple[str, ...]] = {
    "label": ("cls", "class_id", "label_id", "class_index", "category_id", "target", "y"),
    "class_name": ("class", "classname", "category", "label_name"),
    "caption": ("text", "txt", "prompt", "description", "alt", "title"),
    "captions": ("texts", "prompts", "sentences"),
    "attributes": ("attrs", "metadata", "meta"),
}
"""JSON key of diffprobe -> names that other tools give it."""
_KINDS: dict[str, type | tuple[type, ...]] = {
    "label": int, "class_name": str, "caption": str, "captions": list, "attributes": dict,
}  # fmt: skip
_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}


@dataclass(kw_only=True)
class FieldSurvey:
    """What the samples have under one name.

    Attributes:
        name: an extension, or a key of the JSON.
        n: number of samples that have it.
        kinds: what the values are, in the order found: "JPEG", "JSON object", "text", "12 bytes".
        example: a value, shortened; "" for an image.
        values: the first values, for keys of the JSON.
    """

    name: str
    n: int = 0
    kinds: list[str] = field(default_factory=list)
    example: str = ""
    values: list[object] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The fields of some samples, and the names to read them by.

    Attributes:
        n_samples, n_shards: how many were read.
        files: extension -> what the samples have.
        keys: key of the JSON -> what the samples have.
        fields: the names that are proposed.
        chosen: parts of `fields` that were found by content or a known name, not by default.
    """

    n_samples: int
    n_shards: int
    files: Mapping[str, FieldSurvey]
    keys: Mapping[str, FieldSurvey]
    fields: Fields
    chosen: tuple[str, ...]


def survey(
    root: Path,
    *,
    given: Mapping[str, str | tuple[str, ...]] | None = None,
    caps: Caps | None = None,
    on_shard: Callable[[str], None] = lambda file: None,
) -> Survey:
    """Look into the first samples of some shards of a folder and propose the names of their fields.

    Args:
        root: folder of the shards, also in subfolders.
        given: names that the user gave, by the attribute of `Fields`; they are not searched for.
        caps: largest parts of a sample that are read.
        on_shard: called with each file name before the shard is read.

    Raises: ShardError for a folder without shards or samples, for samples with several images, with the options to
        choose one, and for samples without any; what `read_shard` raises.
    """
    samples, n_shards = _some(root, caps or Caps(), on_shard)
    if not samples:
        raise ShardError(f"no sample in the first shards of '{root}'.")
    files: dict[str, FieldSurvey] = {}
    for raw in samples:
        for name, data in raw.files.items():
            entry = files.setdefault(name, FieldSurvey(name=name))
            kind = kind_of(data)
            entry.n += 1
            if kind not in entry.kinds:
                entry.kinds.append(kind)
            if not entry.example and kind == "text":
                entry.example = _short(data.decode())
    chosen = dict(given or {})
    image = chosen.get("image") or _image(samples, files)
    json_name = chosen.get("json") or _json(files)
    assert isinstance(image, tuple) and isinstance(json_name, str)
    keys = _keys(samples, json_name)
    found: dict[str, str | tuple[str, ...]] = {}
    default = Fields()
    if image != default.image:
        found["image"] = image
    if json_name != default.json:
        found["json"] = json_name
    for part in KNOWN:
        if part not in chosen and (known := _known(part, keys)) is not None:
            found[part] = known
    texts = keys["label"].values if "label" in keys else []
    if not {"label", "class_name"} & {*chosen, *found} and "class_name" not in keys and _are_names(texts):
        found |= {"label": "label_id", "class_name": "label"}  # label holds names of classes; no key has their numbers
    fields = replace(default, **{**found, **chosen})  # type: ignore[arg-type]  # image is the only tuple
    return Survey(
        n_samples=len(samples), n_shards=n_shards, files=files, keys=keys, fields=fields,
        chosen=tuple(part for part in found if part not in chosen),
    )  # fmt: skip


def kind_of(data: bytes) -> str:
    """Return what bytes are, by their beginning: JPEG, PNG, WebP, JSON object, text, or a number of bytes.

    >>> kind_of(b'{"a": 1}'), kind_of(b"3"), kind_of(bytes([0, 200]))
    ('JSON object', 'text', '2 bytes')
    """
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"{len(data):,} bytes"
    if text.lstrip().startswith("{"):
        try:
            parse_json(text, where="", non_finite=True)
        except DiffprobeError:
            return "text"
        return "JSON object"
    return "text" if "\0" not in text else f"{len(data):,} bytes"


def render_survey(found: Survey) -> list[str]:
    """Format a survey: one line per field of the samples, then what is read as what."""
    lines = [f"fields of {found.n_samples} samples in {found.n_shards} shards:"]
    for entry in sorted(found.files.values(), key=lambda entry: entry.name):
        lines.append(f"  {_entry(entry, found.n_samples)}")
        if entry.name == found.fields.json:
            lines += [f"    {_entry(key, found.n_samples)}" for key in found.keys.values()]
    names = found.fields
    read = {
        "image": " or ".join(name for name in names.image if name in found.files),
        **{part: f"{names.json}: {getattr(names, part)}" for part in KNOWN if getattr(names, part) in found.keys},
    }
    plain = {"label": "cls", "caption": "txt"}
    read |= {part: name for part, name in plain.items() if part not in read and name in found.files}
    lines.append("read as:")
    for part, name in read.items():
        lines.append(f"  {part:<10}  {name}" + (f"  (found; --field {part}=NAME chooses another)"
                                                if part in found.chosen else ""))  # fmt: skip
    used = {getattr(names, part) for part in KNOWN}
    unread = [name for name in found.files if name not in (*names.image, names.json, *plain.values())]
    unread += [f"{names.json}: {name}" for name in found.keys if name not in used]
    if unread:
        lines.append(f"not read: {', '.join(map(one_line, unread))}")
    return lines


def _entry(entry: FieldSurvey, n: int) -> str:
    rare = "" if entry.n == n else f", in {entry.n} of {n}"
    shown = entry.kinds if len(entry.kinds) < 4 else [*entry.kinds[:2], "..."]
    return f"{one_line(entry.name):<12}  {' or '.join(shown)}{rare}" + (f"  {entry.example}" if entry.example else "")


def _some(root: Path, caps: Caps, on_shard: Callable[[str], None]) -> tuple[list[RawSample], int]:
    """Read the first samples of shards spread over the set."""
    paths = find_shards(root)
    count = min(N_SHARDS, len(paths))
    picked = [paths[number * (len(paths) - 1) // max(count - 1, 1)] for number in range(count)]
    samples: list[RawSample] = []
    for path in picked:
        name = path.relative_to(root).as_posix()
        on_shard(name)
        samples += islice(read_shard(path, name=name, caps=caps), N_SAMPLES)
    return samples, len(picked)


def _images_in(raw: RawSample) -> Iterator[str]:
    return (name for name, data in raw.files.items() if kind_of(data) in ("JPEG", "PNG", "WebP"))


def _image(samples: Sequence[RawSample], files: Mapping[str, FieldSurvey]) -> tuple[str, ...]:
    """Return the extensions of the images; the default ones if each sample has exactly one of them.

    Raises: ShardError, see `survey`.
    """
    default, found = Fields().image, dict[str, None]()
    for raw in samples:
        names = list(_images_in(raw))
        plain = [name for name in names if name in default]
        if len(plain) == 1:  # next to a plain `png`, a `mask.png` is not the image
            names = plain
        if len(names) > 1:
            raise ShardError(
                f"{raw.shard}, sample '{raw.key}': several images: {', '.join(sorted(names))}.",
                fix=f"name the one to read: --field image={sorted(names)[0]}",
            )
        found.update(dict.fromkeys(names))
    if not found:
        lines = [_entry(entry, len(samples)) for entry in files.values()]
        raise ShardError(
            f"no field of {len(samples)} samples is a JPEG, PNG or WebP.", *lines[:12],
            fix="only these formats are read; write the images anew, for example with webdataset's ShardWriter "
            "and the extension jpg or png",
        )  # fmt: skip
    return default if set(found) <= set(default) else tuple(found)


def _json(files: Mapping[str, FieldSurvey]) -> str:
    default = Fields().json
    found = [entry.name for entry in files.values() if entry.kinds == ["JSON object"]]
    if default in files or not found:
        return default
    if len(found) > 1:
        raise ShardError(
            f"several fields are JSON objects: {', '.join(sorted(found))}.",
            fix=f"name the one with the annotation: --field json={sorted(found)[0]}",
        )
    return found[0]


def _keys(samples: Sequence[RawSample], name: str) -> dict[str, FieldSurvey]:
    keys: dict[str, FieldSurvey] = {}
    for raw in samples:
        if kind_of(raw.files.get(name, b"")) != "JSON object":
            continue
        for key, value in parse_json(raw.files[name], where=f"{raw.shard}, '{raw.key}'", non_finite=True).items():
            entry = keys.setdefault(key, FieldSurvey(name=key))
            entry.n += 1
            entry.values.append(value)
            kind = {str: "text", int: "integer", float: "number", list: "list", dict: "object", bool: "true or false"}
            found = "null" if value is None else kind[type(value)]
            if found not in entry.kinds:
                entry.kinds.append(found)
            if not entry.example and isinstance(value, str | int | float):
                entry.example = _short(str(value))
    return keys


def _known(part: str, keys: Mapping[str, FieldSurvey]) -> str | None:
    """Return the one known name of a part whose values have its type; None if the default name is there."""
    if part in keys:
        return None
    fitting = []
    for name in KNOWN[part]:
        values = [value for value in keys[name].values if value is not None] if name in keys else []
        if all(isinstance(v, _KINDS[part]) and not isinstance(v, bool) and _is_flat(v) for v in values) and values:
            fitting.append(name)
    return fitting[0] if len(fitting) == 1 else None


def _is_flat(value: object) -> bool:
    return not (isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values()))


def _are_names(values: Sequence[object]) -> bool:
    texts = [value for value in values if value is not None]
    return bool(texts) and all(isinstance(text, str) for text in texts)


def _short(text: str) -> str:
    line = one_line(" ".join(text.split()))
    return repr(line if len(line) <= 50 else f"{line[:47]}...")
