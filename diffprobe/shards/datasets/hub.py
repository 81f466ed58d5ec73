"""Data sets in Hugging Face's format, from the hub (streamed) or a local folder. Images are copied byte for byte.

Opening and reading is in `shards/hub_source.py`. Shards are written in the order of the rows; `.build.jsonl` lists the
finished ones, so that an interrupted build continues.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import IO, Any

from diffprobe.core.atomic_file import remove_unfinished
from diffprobe.core.errors import ConfigError, DiffprobeError, SampleError, ShardError, unknown
from diffprobe.core.json_file import parse_json
from diffprobe.core.progress import Announce, Bar, MakeBar
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.hash_split import check_fractions, split_by_hash
from diffprobe.shards.hub_source import (
    HubColumns,
    attribute_of,
    choose_columns,
    folder_state,
    image_roots,
    open_splits,
    read_rows,
    sample_of,
)
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.resumable import JOURNAL, append_line, list_left_out, open_journal
from diffprobe.shards.shard_names import SPLIT_WORDS, more_lines
from diffprobe.shards.writer import write_shard

HELP = "a Hugging Face data set: its id on the hub, or a folder (parquet, save_to_disk, image folder)"
CARD = DatasetCard(name="hub", licence="not stated", disjoint_by={"test": "key"})
_FIX = "use an empty --out, or remove that folder to build everything anew"
_SPLIT = re.compile(r"[A-Za-z0-9_]+")
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the data set, its columns and its splits."""
    parser.add_argument("source", metavar="NAME", help="OWNER/NAME on the hub, or a folder")
    parser.add_argument("--name", help="name of the set in results (default: the last part of NAME)")
    parser.add_argument("--licence", default=CARD.licence, help="terms of the images, with attribution where required")
    parser.add_argument("--config", metavar="NAME", help="configuration of a data set that has several")
    parser.add_argument("--revision", metavar="REV", help="commit, tag or branch on the hub")
    parser.add_argument(
        "--split", action="append", default=[], metavar="OLD=NEW", help="read these splits only, under new names"
    )
    parser.add_argument("--image-column", metavar="COLUMN", help="default: the only column of images")
    parser.add_argument("--label-column", metavar="COLUMN", help="default: label, labels or fine_label")
    parser.add_argument("--caption-column", metavar="COLUMN", help="default: caption, captions or text")
    parser.add_argument("--leave-out", action="append", default=[], metavar="COLUMN", help="a column not to read")
    parser.add_argument("--group", metavar="COLUMN", help="attribute whose samples are not independent")
    parser.add_argument("--val", type=float, metavar="F", help="share of val, by hash, of a data set with one split")
    parser.add_argument("--test", type=float, metavar="F", help="share of test, by hash (default as --val)")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="images per shard")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="skip: leave out and list")
    parser.add_argument(
        "--streaming", action=argparse.BooleanOptionalAction, default=True,
        help="read rows while they are downloaded; --no-streaming: through the cache of the hub",
    )  # fmt: skip


def build(
    source: str | Path,
    out: Path,
    name: str | None = None,
    licence: str = CARD.licence,
    config: str | None = None,
    revision: str | None = None,
    split: Sequence[str] = (),
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    leave_out: Sequence[str] = (),
    group: str | None = None,
    val: float | None = None,
    test: float | None = None,
    samples_per_shard: int = 1000,
    on_error: str = "raise",
    streaming: bool = True,
    make_bar: MakeBar | None = None,
    announce: Announce | None = None,
) -> ShardSet:
    """Build the shard set of a Hugging Face data set, or continue an interrupted build.

    The key of a sample is its split and the number of its row. Columns of single values become attributes. With `val`
    or `test`, each chunk of rows gives one shard per split.

    Args:
        source, config, revision, streaming: see `hub_source.open_splits`.
        out: folder of the shards and their index; made if missing.
        name: name of the set; the last part of `source` if None.
        licence: terms of the images.
        split: "OLD=NEW" for each split to read; all, under usual names, if empty.
        image_column, label_column, caption_column: see `hub_source.choose_columns`.
        leave_out: columns that are not read.
        group: see `ShardSet.grouped_by`.
        val, test: shares of the values of the group, or of the rows without a group, drawn by hash from the only split
            that is read; None for both keeps the splits, None for one of them takes the other.
        samples_per_shard: rows per shard; of all splits together where they are drawn.
        on_error: "raise" stops after the first shard with faulty rows and lists them; "skip" leaves such rows out and
            lists them in `out/left_out.txt`.
        make_bar: opens a bar over the rows, where the data set says how many there are.
        announce: receives notes for the user.

    Raises: ConfigError for unknown columns, splits and options; ShardError for a data set that cannot be opened or
        read, faulty rows, and shards of other inputs in `out`.
    """
    say = announce or (lambda line: None)
    if samples_per_shard < 1:
        raise ConfigError(f"--samples-per-shard {samples_per_shard}: allowed are integers from 1.")
    splits, commit = open_splits(str(source), config=config, revision=revision, streaming=streaming)
    renamed = _renamed(split, splits, say)
    first = splits[next(iter(renamed))]
    shares = _shares(val, test, renamed)
    columns = choose_columns(first, image=image_column, label=label_column, caption=caption_column, left_out=leave_out)
    if group is not None and group not in columns.attributes:
        raise unknown("--group", group, columns.attributes, ConfigError)
    say(_described(columns))
    counts = {old: _n_rows(splits[old]) for old in renamed}
    settings = {
        "columns": [columns.image, columns.label, columns.caption, sorted(columns.attributes)], "config": config,
        "revision": revision, "rows": counts, "samples_per_shard": samples_per_shard,
        "splits": renamed, **({"shares": shares, "group": group} if shares else {}),
        "source": None if Path(source).is_dir() else str(source),
        **(folder_state(Path(source), out) if Path(source).is_dir() else {"commit": commit}),
    }  # fmt: skip
    roots = image_roots(source)
    left_out: list[str] = []
    written: set[str] = set()
    out.mkdir(parents=True, exist_ok=True)
    with open_journal(out) as journal:
        remove_unfinished(out)
        done = _finished(out, journal, settings)
        total = None if None in counts.values() else sum(n or 0 for n in counts.values())
        before = sum(line["rows"] for line in done.values())
        if done:
            say(f"{len(done)} shards with {before:,} rows are finished already and kept")
        opened: AbstractContextManager[Bar | None] = nullcontext()
        if make_bar is not None and total is not None and total > before:
            opened = make_bar(total - before)
        with opened as bar:
            for old, new in renamed.items():
                placed = _Placed(new, shares, group, columns)
                for line in _write(out, splits[old], columns, old, placed, samples_per_shard, on_error, done, roots):
                    if line["shard"] not in done:
                        append_line(journal, line)
                        if bar is not None:
                            bar.update(line["rows"])
                    elif line["left_out"] and on_error == "raise":
                        raise _faulty(line["left_out"], line["rows"])
                    left_out += line["left_out"]
                    written.add(line["shard"])
        if foreign := sorted(path.name for path in out.glob("*.tar*") if path.name not in written):
            raise ShardError(f"'{out}' has shards that this build did not write.", *foreign[:_SHOWN], fix=_FIX)
    shard_set = build_index(
        out, name=name or Path(str(source)).name, licence=licence, on_shard=lambda file: say(f"indexing {file}"),
        grouped_by=group,
    )  # fmt: skip
    list_left_out(out, left_out, say)
    if missing := [new for new in ("train", "val", "test") if new not in shard_set.splits()]:
        say(
            f"no split {', '.join(missing)}: --val 0.1 draws val and test from a single split, and "
            "data.val_fraction=0.1 cuts val out of train in a run; other names: --split"
        )
    return shard_set


def _renamed(options: Sequence[str], splits: Mapping[str, Any], say: Announce) -> dict[str, str]:
    """Return split of the source -> split of the shards. Raises: ConfigError."""
    chosen: dict[str, str] = {}
    for option in options:
        old, _, new = option.partition("=")
        if old not in splits:
            raise unknown("split (--split OLD=NEW)", old, splits, ConfigError)
        chosen[old] = new or SPLIT_WORDS.get(old.lower(), old)
    if not options:
        chosen = {old: SPLIT_WORDS.get(old.lower(), old) for old in splits}
    elif unread := [old for old in splits if old not in chosen]:
        say(f"splits that are not read: {', '.join(unread)}")
    names = list(chosen.values())
    odd = [new for new in names if not _SPLIT.fullmatch(new) or names.count(new) > 1]
    if odd:
        raise ConfigError(
            f"split name '{odd[0]}' is used twice, or has other characters than letters, digits and '_'.",
            f"splits of the data set: {', '.join(splits)}",
            fix="--split OLD=NEW for each split to read",
        )
    return chosen


def _shares(val: float | None, test: float | None, renamed: Mapping[str, str]) -> dict[str, float]:
    """Return the shares of val and test to draw; {} to keep the splits. Raises: ConfigError."""
    if val is None and test is None:
        return {}
    if list(renamed.values()) != ["train"]:
        raise ConfigError(
            f"--val and --test draw from a single split that becomes train; these are read: {', '.join(renamed)}.",
            fix=f"leave them out, or read one split: --split {next(iter(renamed))}=train",
        )
    val, test = (found if found is not None else other for found, other in ((val, test), (test, val)))
    assert val is not None and test is not None
    check_fractions(val=val, test=test)
    return {"val": val, "test": test}


class _Placed:
    """The splits that the rows of one split of the source go to."""

    def __init__(self, new: str, shares: Mapping[str, float], group: str | None, columns: HubColumns) -> None:
        self._new, self._shares, self._group = new, shares, group
        self._names = columns.attributes[group] if group else ()
        self.splits = (new, *(split for split, share in shares.items() if share > 0))

    def of(self, row: Mapping[str, Any], number: int) -> str:
        """Return the split of a row: by a hash of its group, of its number where it has none."""
        if not self._shares:
            return self._new
        value = attribute_of(row.get(self._group), self._names) if self._group else None
        text = f"{self._new}/{number:08d}" if value is None else f"{self._group}={value}"
        return split_by_hash(text, val=self._shares["val"], test=self._shares["test"])


def _described(columns: HubColumns) -> str:
    parts = [
        f"image: {columns.image}",
        f"label: {columns.label or '(none)'}",
        f"caption: {columns.caption or '(none)'}",
    ]
    parts.append(f"attributes: {', '.join(columns.attributes) or '(none)'}")
    return "columns: " + "; ".join(parts) + (f"; not read: {', '.join(columns.others)}" if columns.others else "")


def _n_rows(rows: Any) -> int | None:
    if hasattr(rows, "num_rows"):
        return int(rows.num_rows)
    known = (getattr(rows.info, "splits", None) or {}).get(str(rows.split))
    return int(known.num_examples) or None if known is not None and known.num_examples else None


def _write(
    out: Path, rows: Any, columns: HubColumns, old: str, placed: _Placed, size: int, on_error: str,
    done: Mapping[str, Mapping[str, Any]], roots: Sequence[Path],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Write the shards of a split and yield the line of each; finished ones are yielded first. Raises: ShardError."""
    number = start = 0
    while all(f"{split}-{number:04d}.tar" in done for split in placed.splits):
        lines = [dict(done[f"{split}-{number:04d}.tar"]) for split in placed.splits]
        yield from lines
        n = sum(line["rows"] for line in lines)
        number, start = number + 1, start + n
        if n < size:  # the last ones
            return
    source = read_rows(rows, columns, split=old, start=start)
    while chunk := list(islice(source, size)):
        faults: list[str] = []
        samples: dict[str, list[tuple[str, dict[str, bytes]]]] = {split: [] for split in placed.splits}
        for row_number, row in chunk:
            split, where = placed.of(row, row_number), f"row {row_number} of split '{old}'"
            key = f"{split}/{row_number:08d}"
            try:
                samples[split].append((key, sample_of(row, columns, key=key, where=where, roots=roots)))
            except SampleError as error:
                faults.append(error.what)
        if faults and on_error == "raise":
            raise _faulty(faults, len(chunk))
        for split, found in samples.items():
            path, has_faults = out / f"{split}-{number:04d}.tar", split == placed.splits[0]
            if found:
                write_shard(path, found)
            left_out = faults if has_faults else []
            yield {"shard": path.name, "rows": len(found) + len(left_out), "left_out": left_out,
                   "n_bytes": path.stat().st_size if found else None}  # fmt: skip
        number += 1
    if not number:
        raise ShardError(f"split '{old}' has no row.", fix="--split OLD=NEW for the splits to read")


def _faulty(faults: Sequence[str], n: int) -> ShardError:
    return ShardError(
        f"{len(faults)} of {n} rows of a shard cannot be used; the shards before it are finished and kept.",
        *faults[:_SHOWN], *more_lines(list(faults), _SHOWN), fix="leave them out: --on-error skip",
    )  # fmt: skip


def _finished(out: Path, journal: IO[bytes], settings: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """Read the lines of finished shards. Raises: ShardError for shards of another build."""
    journal.seek(0)
    text = journal.read()
    whole = text.rfind(b"\n") + 1
    journal.truncate(whole)  # a kill cut the last line short
    journal.seek(0, 2)
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(text[:whole].splitlines(), 1):
        where = f"'{out / JOURNAL}', line {number}"
        try:
            record = parse_json(line, where=where, error=ShardError, fix=_FIX)
            lines.append({str(key): value for key, value in record.items()})
            if number > 1 and not {"shard", "rows", "left_out", "n_bytes"} <= record.keys():
                raise KeyError("shard")
        except (DiffprobeError, KeyError, AttributeError) as error:
            raise ShardError(f"{where} is not a line of a build from the hub.", fix=_FIX) from error
    now = json.loads(json.dumps(settings))
    if not lines:
        append_line(journal, now)
    elif lines[0] != now:
        differing = [f"{key}: {lines[0].get(key)} there, {now.get(key)} here" for key in sorted({*lines[0], *now})
                     if lines[0].get(key) != now.get(key)]  # fmt: skip
        raise ShardError(f"'{out}' has shards that were built with other settings.", *differing, fix=_FIX)
    done = {line["shard"]: line for line in lines[1:]}
    there = {path.name: path.stat().st_size for path in out.glob("*.tar*")}
    if there and not lines:
        raise ShardError(f"'{out}' has shards that this build did not write.", *sorted(there)[:_SHOWN], fix=_FIX)
    if changed := [shard for shard, line in done.items() if there.get(shard) != line["n_bytes"]]:
        raise ShardError(f"'{out}' has shards that were changed after they were built.", *changed[:_SHOWN], fix=_FIX)
    return done


def tiny(folder: Path) -> tuple[dict[str, object], int]:
    """Save a data set of 12 images in two splits to disk. Returns: the arguments of `build`, and 12 samples."""
    import io

    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
    from PIL import Image as Pixels

    def rows(start: int, n: int) -> Dataset:
        images = []
        for number in range(start, start + n):
            buffer = io.BytesIO()
            Pixels.new("RGB", (8, 8), (9 * number, 0, 9)).save(buffer, "png")
            images.append({"bytes": buffer.getvalue(), "path": None})
        columns = {
            "image": images,
            "label": [number % 2 for number in range(n)],
            "text": [f"number {number}" for number in range(n)],
            "size": list(range(n)),
        }
        kinds = {"image": Image(), "label": ClassLabel(names=["cat", "dog"]), "text": Value("string")}
        return Dataset.from_dict(columns, features=Features({**kinds, "size": Value("int64")}))

    DatasetDict({"train": rows(0, 8), "test": rows(8, 4)}).save_to_disk(str(folder / "saved"))
    return {"source": folder / "saved", "name": CARD.name, "samples_per_shard": 5}, 12
