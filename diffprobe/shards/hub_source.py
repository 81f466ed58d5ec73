"""Open a Hugging Face data set, from the hub or a local folder, and read its rows as samples of shards.

Images stay the bytes that the data set holds (`Image(decode=False)`). Nothing of a data set is executed: files are read
as parquet, arrow or image folders, by the package `datasets`; its other readers are refused, some of them unpickle.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffprobe.core.column_names import column_faults, describe_faults
from diffprobe.core.errors import ConfigError, SampleError, ShardError, unknown
from diffprobe.core.terminal import one_line
from diffprobe.shards.annotation import Fields, has_value
from diffprobe.shards.reader import RawSample

LABELS, CAPTIONS = ("label", "labels", "fine_label"), ("caption", "captions", "text")
"""Columns that are the label and the caption where none is named, if they have a suitable type."""
_ENDS = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png"}
_READERS = ("parquet", "arrow", "imagefolder", "cache")  # cache: arrow files that `datasets` made before
_REFUSED = (".tar", ".pkl", ".pickle")
_DIGESTED = 2**20  # larger files count by size and time of change
_ALLOWED = "allowed: parquet, arrow (also of save_to_disk), image folders"
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True, kw_only=True)
class HubColumns:
    """The columns of a data set by their meaning.

    Attributes:
        image: the image.
        label: the class: numbers, with `names` if the data set has them, or names. None for none.
        names: class names by number; () if the column has none.
        caption: text, or a list of texts; None for none.
        attributes: column -> names by number, for the other columns of single values; () where values have no names.
        others: columns that are not read: lists and structures.
    """

    image: str
    label: str | None
    names: tuple[str, ...]
    caption: str | None
    attributes: Mapping[str, tuple[str, ...]]
    others: tuple[str, ...]


def open_splits(
    name: str, *, config: str | None, revision: str | None, streaming: bool
) -> tuple[Mapping[str, Any], str | None]:
    """Return the splits of a data set (split -> its rows, as the package `datasets` opens them) and its hub commit.

    The commit is None for a folder.

    Args:
        name: id on the hub, or a folder: parquet files, output of `save_to_disk`, an image folder.
        config: configuration ("subset") of a data set that has several.
        revision: commit, tag or branch of a hub id.
        streaming: read rows while they are downloaded; False downloads into the cache first, or reads from there.

    Raises: ConfigError without the package, or for options that a folder does not have; ShardError for a data set that
        cannot be opened, with what to do.
    """
    if find_spec("datasets") is None:
        raise ConfigError(
            "data sets of the hub are read by the package 'datasets', which is not installed.",
            fix="pip install 'diffprobe[hub]'",
        )
    import datasets

    local = Path(name)
    if not local.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ShardError(f"folder '{name}' not found.", fix="a folder, or the id of a data set: OWNER/NAME")
    if local.is_dir() and revision is not None:
        raise ConfigError(f"--revision {revision} has no effect on the folder '{name}'.", fix="remove it")
    datasets.disable_progress_bars()
    commit = None
    try:
        if local.is_dir() and any((local / file).is_file() for file in ("dataset_dict.json", "state.json")):
            if config is not None:
                raise ConfigError(f"--config {config} has no effect on the output of save_to_disk.", fix="remove it")
            found: Any = datasets.load_from_disk(str(local))
        else:
            if local.is_dir():
                _refuse_files(local)
            place = str(local.resolve()) if local.is_dir() else name
            builder = datasets.load_dataset_builder(place, config, revision=revision)
            reader = type(builder).__module__.rpartition(".")[2]
            if reader not in _READERS:
                raise ShardError(f"data set '{name}' is in the format '{reader}', which is not read.", _ALLOWED)
            commit = None if local.is_dir() else str(builder.hash)
            if streaming or local.is_dir():
                found = builder.as_streaming_dataset()
            else:
                builder.download_and_prepare()
                found = builder.as_dataset()
    except (ConfigError, ShardError):
        raise
    except Exception as error:  # the hub's client, file systems and parsers raise errors of many kinds
        raise _cannot_open(name, local, error) from error
    if isinstance(found, datasets.Dataset | datasets.IterableDataset):
        found = {str(found.split or "train"): found}
    return {str(split): rows for split, rows in found.items()}, commit


def _files(folder: Path) -> list[Path]:
    """List the files of a folder; names that begin with a dot are left out, as `datasets` does."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def _refuse_files(folder: Path) -> None:
    refused = [path for path in _files(folder) if path.suffix.lower() in _REFUSED]
    if refused:
        raise ShardError(
            f"'{folder}' has files that are not read: {len(refused)} of {', '.join(_REFUSED)}.",
            *(one_line(str(path.relative_to(folder))) for path in refused[:10]), _ALLOWED,
            fix="move them out of the folder; shards in .tar files: diffprobe data adopt",
        )  # fmt: skip


def folder_state(folder: Path, out: Path) -> dict[str, int | str]:
    """Return the number of files of a local data set, their bytes, and a digest of names, sizes and contents.

    Files above 1 MiB count by their time of change in place of their content. Files in `out` do not count.
    """
    digest, n, size = hashlib.sha256(), 0, 0
    for path in _files(folder):
        if path.resolve().is_relative_to(out.resolve()):
            continue
        stat = path.stat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.st_size <= _DIGESTED else stat.st_mtime_ns
        digest.update(json.dumps([str(path.relative_to(folder)), stat.st_size, content]).encode())
        n, size = n + 1, size + stat.st_size
    return {"source_files": n, "source_bytes": size, "source_digest": digest.hexdigest()}


def image_roots(source: str | Path) -> tuple[Path, ...]:
    """Return the folders in which image files of rows may lie: the data set's own, or the caches of the hub."""
    if Path(source).is_dir():
        return (Path(source).resolve(),)
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    return (Path(datasets.config.HF_DATASETS_CACHE).resolve(), Path(HF_HUB_CACHE).resolve())


def _cannot_open(name: str, local: Path, error: Exception) -> ShardError:
    reason = one_line(" ".join(str(error).split()))[:300]
    what = f"data set '{name}' cannot be opened ({type(error).__name__})."
    if local.is_dir():
        return ShardError(what, reason, fix="a folder of parquet files, of save_to_disk, or of class subfolders")
    if "config" in reason.lower() and "pick one" in reason.lower() or "Config name is missing" in reason:
        return ShardError(what, reason, fix="--config NAME")
    offline = [
        variable for variable in _OFFLINE if os.environ.get(variable, "0").upper() not in ("", "0", "FALSE", "NO")
    ]
    state = [f"{offline[0]} is set, so nothing is downloaded"] if offline else []
    return ShardError(
        what, reason, *state,
        "is the name right, and is there network? Private and gated sets need `hf auth login`.",
        fix=f"without network: where there is one, `hf download {name} --repo-type dataset --local-dir FOLDER`; copy "
        "FOLDER and build from it. A set in the cache: HF_HUB_OFFLINE=1 and --no-streaming",
    )  # fmt: skip


def choose_columns(
    rows: Any, *, image: str | None, label: str | None, caption: str | None, left_out: Sequence[str] = ()
) -> HubColumns:
    """Find the columns of a split by their types; named columns come first.

    Raises: UnknownName for a column that does not exist; ShardError for no image column or several, and for columns
        that cannot be attributes; ConfigError for a column of an unsuitable type.
    """
    import datasets

    features = rows.features
    if features is None:
        features = rows._resolve_features().features
    for option, column in (("image", image), ("label", label), ("caption", caption)):
        if column is not None and column not in features:
            raise unknown(f"--{option}-column", column, features, ConfigError)
    for column in left_out:
        if column not in features:
            raise unknown("--leave-out", column, features, ConfigError)
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if image is None and len(images) != 1:
        raise ShardError(
            f"the data set has {'several image columns' if images else 'no image column'}.",
            *(f"{name}: {one_line(str(kind))[:80]}" for name, kind in features.items()),
            fix="--image-column NAME",
        )
    chosen = image or images[0]
    label = label or next((name for name in LABELS if name in features and _is_class(features[name])), None)
    if label is not None and not _is_class(features[label]):
        raise ConfigError(f"--label-column {label}: its values are neither classes, integers nor text.")
    caption = caption or next((name for name in CAPTIONS if name in features and _is_text(features[name])), None)
    if caption is not None and not _is_text(features[caption]):
        raise ConfigError(f"--caption-column {caption}: its values are neither text nor lists of text.")
    rest = [name for name in features if name not in (chosen, label, caption, *left_out)]
    attributes = {name: _names(features[name]) for name in rest if _is_scalar(features[name])}
    faults = column_faults(attributes)
    if faults:
        raise ShardError(
            "the data set has columns that cannot be attributes.", *describe_faults(faults),
            fix=" ".join(f"--leave-out {name}" for name in faults),
        )  # fmt: skip
    return HubColumns(
        image=chosen, label=label, names=() if label is None else _names(features[label]), caption=caption,
        attributes=attributes, others=tuple(name for name in rest if name not in attributes),
    )  # fmt: skip


def read_rows(rows: Any, columns: HubColumns, *, split: str, start: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (number, row) of a split from row `start` on; images are not decoded. Raises: ShardError."""
    import datasets

    if isinstance(rows.features, datasets.Features) and isinstance(rows.features[columns.image], datasets.Image):
        rows = rows.cast_column(columns.image, datasets.Image(decode=False))
    elif rows.features is None:
        rows = rows.cast_column(columns.image, datasets.Image(decode=False))
    number = start
    source = iter(rows.skip(start) if start else rows)
    while True:
        try:
            row = next(source, None)
        except Exception as error:  # see open_splits
            reason = one_line(" ".join(str(error).split()))[:300]
            raise ShardError(
                f"reading stopped at row {number:,} of split '{split}' ({type(error).__name__}).", reason,
                fix="run the command again: finished shards are kept",
            ) from error  # fmt: skip
        if row is None:
            return
        yield number, row
        number += 1


def sample_of(
    row: Mapping[str, Any], columns: HubColumns, *, key: str, where: str, roots: Sequence[Path]
) -> dict[str, bytes]:
    """Return the files of a sample: the image's bytes as they are, and its annotation.

    Image files that rows name are read in `roots` only (resolved folders): a data set must not fetch other files.

    Raises: SampleError for an image file elsewhere, a missing or undecodable image, or an unsuitable label.
    """
    from diffprobe.shards.decode import decode_image

    data = _image_bytes(row.get(columns.image), where, roots)
    end = next((end for magic, end in _ENDS.items() if data.startswith(magic)), None)
    if end is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        end = "webp"
    if end is None:
        raise SampleError(f"{where}: the image is neither JPEG, PNG nor WebP.")
    decode_image(RawSample(key=key, shard=where, position=0, files={end: data}), Fields())
    record = _record(row, columns, where)
    return {end: data, **({"json": json.dumps(record, ensure_ascii=False, sort_keys=True).encode()} if record else {})}


def _image_bytes(value: object, where: str, roots: Sequence[Path]) -> bytes:
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        path = value.get("path")
        if isinstance(path, str) and Path(path).is_file():
            real = Path(path).resolve()
            if not any(real.is_relative_to(root) for root in roots):
                raise SampleError(f"{where}: its image file is outside the data set ({one_line(path)}).")
            return real.read_bytes()
        raise SampleError(f"{where}: " + (f"its image file is missing ({one_line(path)})." if path else "no image."))
    if isinstance(value, bytes):
        return value
    raise SampleError(f"{where}: no image.")


def _record(row: Mapping[str, Any], columns: HubColumns, where: str) -> dict[str, object]:
    record: dict[str, object] = {}
    if columns.label is not None and (value := row.get(columns.label)) is not None and value != -1:
        if isinstance(value, str):
            if has_value(value) is not None:
                record["class_name"] = value
        elif isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < (len(columns.names) or 2**31):
            raise SampleError(f"{where}: label {str(value)[:40]} is not a class.")
        else:
            record["label"] = value
            if columns.names:
                record["class_name"] = columns.names[value]
    text = row.get(columns.caption) if columns.caption else None
    if isinstance(text, list):
        texts = [part for part in text if isinstance(part, str) and has_value(part) is not None]
        if texts:
            record |= {"caption": texts[0], "captions": texts}
    elif isinstance(text, str) and has_value(text) is not None:
        record["caption"] = text
    attributes: dict[str, str] = {}
    for name, names in columns.attributes.items():
        if (shown := attribute_of(row.get(name), names)) is not None:
            attributes[name] = shown
    return {**record, **({"attributes": attributes} if attributes else {})}


def attribute_of(value: object, names: Sequence[str]) -> str | None:
    """Return a value of a column as an attribute, None for no value; `names` are its classes, if it has any."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)) or (names and value == -1):
        return None
    if names and isinstance(value, int):
        return has_value(names[value])
    return has_value(value if isinstance(value, str) else json.dumps(value, default=str))


def _names(kind: Any) -> tuple[str, ...]:
    return tuple(getattr(kind, "names", None) or ())


def _is_scalar(kind: Any) -> bool:
    return bool(_names(kind)) or (hasattr(kind, "dtype") and type(kind).__name__ == "Value" and kind.dtype != "binary")


def _is_class(kind: Any) -> bool:
    return bool(_names(kind)) or (
        _is_scalar(kind) and str(kind.dtype).startswith(("int", "uint", "string", "large_str"))
    )


def _is_text(kind: Any) -> bool:
    inner = getattr(kind, "feature", kind)
    return type(inner).__name__ == "Value" and str(inner.dtype) in ("string", "large_string")
