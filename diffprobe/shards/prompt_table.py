"""Read prompts, with attributes, from a text file (one prompt per line) or from a CSV, TSV or JSONL table.

Of a table, `prompt` is the text, `id` its name, `split` the split that it belongs to; every further column is an
attribute.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffprobe.core.column_names import column_faults, describe_faults
from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.core.foreign import refuse_lfs_pointer, require_regular_file
from diffprobe.shards.annotation import has_value
from diffprobe.shards.annotation_table import table_rows

TEXT_COLUMN, ID_COLUMN, SPLIT_COLUMN = "prompt", "id", "split"
PROMPT_ID, SEED = "prompt_id", "seed"
"""Attributes that every sample of a prompt gets: the prompt's id, and the number of the seed."""
SPLIT = "train"
"""Split of prompts for which the file names none."""
_ENDINGS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt.

    Attributes:
        id: unique in the file; by default 12 hexadecimal digits of the text's SHA-256, so it does not depend on the
            line.
        text: the prompt itself, without spaces at its ends.
        split: split that it belongs to.
        attributes: attribute name -> value; those without a value are left out.
    """

    id: str
    text: str
    split: str = SPLIT
    attributes: dict[str, str] = field(default_factory=dict)


def read_prompts(path: Path | str) -> tuple[Prompt, ...]:
    """Read the prompts of a file in their order.

    Args:
        path: `.txt` (one prompt per line; blank lines are skipped), `.csv` or `.tsv` (with a heading line), or `.jsonl`
            (one object per line), in UTF-8.
    Raises: ConfigError, with the line, for a file that is missing, of another format, or without a prompt; for a prompt
        or id that occurs twice or is empty; and for columns that cannot be attributes.
    """
    path = Path(path)
    if path.suffix.lower() not in _ENDINGS:
        raise ConfigError(f"'{path}' is not a file of prompts.", f"read are {', '.join(_ENDINGS)}")
    try:
        lines = _text_lines(path) if path.suffix.lower() == ".txt" else _table_lines(path)
    except ShardError as error:
        raise ConfigError(error.what, *error.details, fix=error.fix) from error
    if not lines:
        raise ConfigError(f"'{path}' has no prompt.", fix="write one prompt per line")
    prompts = [prompt for _, prompt in lines]
    _refuse_repeated(path, [(line, prompt.text) for line, prompt in lines], "prompt")
    _refuse_repeated(path, [(line, prompt.id) for line, prompt in lines], "id")
    return tuple(prompts)


def prompt_id(text: str) -> str:
    """Return the default id of a prompt.

    >>> prompt_id("a photo of a nurse")
    'cc89dd6a181b'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def attribute_values(prompts: Sequence[Prompt], n_seeds: int) -> dict[str, list[str]]:
    """Return attribute name -> its values, sorted; the ids of the prompts and the numbers of the seeds are two."""
    found: dict[str, set[str]] = {}
    for prompt in prompts:
        for name, value in prompt.attributes.items():
            found.setdefault(name, set()).add(value)
    return {
        **{name: sorted(values) for name, values in sorted(found.items())},
        PROMPT_ID: sorted(prompt.id for prompt in prompts),
        SEED: [str(number) for number in range(n_seeds)],
    }


def _text_lines(path: Path) -> list[tuple[int, Prompt]]:
    try:
        require_regular_file(path, error=ConfigError)
    except FileNotFoundError as error:
        raise ConfigError(f"file of prompts '{path}' not found.") from error
    content = path.read_bytes()
    refuse_lfs_pointer(content[:64], f"'{path}'", error=ConfigError)
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"'{path}', line {line}: not UTF-8 text.", fix="save the file as UTF-8") from error
    texts = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    return [(number, Prompt(id=prompt_id(text), text=text)) for number, text in texts if text]


def _table_lines(path: Path) -> list[tuple[int, Prompt]]:
    rows = table_rows(path)
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    if TEXT_COLUMN not in columns:
        raise ConfigError(
            f"'{path}' has no column '{TEXT_COLUMN}'.",
            f"its columns: {', '.join(columns[:30])}",
            fix=f"name the column of the texts '{TEXT_COLUMN}'",
        )
    names = [name for name in columns if name not in (TEXT_COLUMN, ID_COLUMN, SPLIT_COLUMN)]
    faults = describe_faults(column_faults(names))
    faults += [f"attribute '{name}': every prompt has one already" for name in names if name in (PROMPT_ID, SEED)]
    if faults:
        raise ConfigError(f"'{path}' has columns that cannot be attributes.", *faults[:_SHOWN], fix="rename them")
    found = []
    for line, row in rows:
        where = f"'{path}', line {line}"
        values = {name: _value(row.get(name), name, where) for name in columns}
        text = values[TEXT_COLUMN]
        if text is None:
            raise ConfigError(f"{where}: the prompt is empty.", fix="remove the line; an empty prompt has no subject")
        if ID_COLUMN in columns and values[ID_COLUMN] is None:
            raise ConfigError(f"{where}: the prompt '{text[:80]}' has no id.", fix="give every prompt an id, or none")
        attributes = {name: value for name in names if (value := values[name]) is not None}
        identity, split = values.get(ID_COLUMN) or prompt_id(text), values.get(SPLIT_COLUMN) or SPLIT
        found.append((line, Prompt(id=identity, text=text, split=split, attributes=attributes)))
    return found


def _value(value: object, column: str, where: str) -> str | None:
    if isinstance(value, dict | list):
        raise ConfigError(f"{where}: column '{column}' must be one value, not {type(value).__name__}.")
    if isinstance(value, bool):
        return str(value).lower()
    found = None if value is None else has_value(str(value))
    return None if found is None else found.strip()


def _refuse_repeated(path: Path, values: Sequence[tuple[int, str]], what: str) -> None:
    first: dict[str, int] = {}
    repeated = []
    for line, value in values:
        if value in first:
            repeated.append(f"line {line} repeats line {first[value]}: '{value[:80]}'")
        first.setdefault(value, line)
    if repeated:
        raise ConfigError(
            f"'{path}' has {len(repeated)} duplicate {what}s.",
            *repeated[:_SHOWN],
            fix=f"keep each {what} once; more samples of a prompt: seeds=N",
        )
