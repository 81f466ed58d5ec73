"""What an audit reads: prompt latents from a folder, and rates per subject from a table or another result.

`PromptLatentLoader` is the one function that joins an audit with an extraction of prompt latents.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import ArrayLike

from diffprobe.analysis.audit.latents import AuditLatents
from diffprobe.core.audit_file import read_audit_tree
from diffprobe.core.errors import ConfigError, SchemaError, StoreIncomplete, StoreMismatch, nearest
from diffprobe.core.foreign import require_regular_file
from diffprobe.core.json_file import expect, read_json_object
from diffprobe.core.result import RESULT_FILE, read_result

PROMPTS_FILE, TENSORS_FILE = "prompts.json", "latents.safetensors"
"""Files of a folder of prompt latents as plain arrays."""
FORMAT = "diffprobe.prompt_latents/1"
"""Format that `prompts.json` names."""
_HOW = (
    f"needed: a folder with {PROMPTS_FILE} (format, prompts) and {TENSORS_FILE} (per cell a float32 array of shape "
    "(prompts, seeds, d)), docs/users/audit.md"
)


class PromptLatentLoader(Protocol):
    """Reads the prompt latents of one cell."""

    def __call__(self, store: Path, cell: str) -> tuple[ArrayLike, Sequence[str], object]:
        """Return latents of shape (prompts, seeds, d), the text of each prompt, and attributes, which are not used.

        Args:
            store: folder of the latents.
            cell: name of the cell, for example "mid_block@t200".
        """


def load_arrays(
    store: Path, cell: str
) -> tuple[Float32[np.ndarray, "prompts seeds d"], list[str], list[Mapping[str, str]]]:
    """Read prompt latents that are plain arrays: a `PromptLatentLoader`.

    Raises: StoreIncomplete for a folder without both files; SchemaError for another format or type; StoreMismatch for a
        cell that it does not have.
    """
    for name in (PROMPTS_FILE, TENSORS_FILE):
        if not (store / name).is_file():
            raise StoreIncomplete(f"'{store}' is not a folder of prompt latents: it has no {name}.", _HOW)
    tree = read_json_object(store / PROMPTS_FILE)
    if tree.get("format") != FORMAT:
        raise SchemaError(f"'{store / PROMPTS_FILE}' has the format {tree.get('format')!r}, expected '{FORMAT}'.")
    prompts = expect(tree.get("prompts"), list, where=f"'{store / PROMPTS_FILE}': prompts")
    if not all(isinstance(text, str) for text in prompts):
        raise SchemaError(f"'{store / PROMPTS_FILE}': prompts has an entry that is not a text.")
    from diffprobe.core.safetensors_file import open_safetensors

    with open_safetensors(store / TENSORS_FILE) as stored:
        cells = sorted(stored.keys())
        if cell not in cells:
            close = nearest(cell, cells)
            raise StoreMismatch(
                f"'{store}' has no cell '{cell}'.", *([f"nearest: {', '.join(close)}"] if close else []),
                f"it has: {', '.join(cells)}",
            )  # fmt: skip
        features = stored.get_tensor(cell)
    if str(features.dtype) != "torch.float32":
        raise SchemaError(f"'{store / TENSORS_FILE}': '{cell}' is {features.dtype}, expected float32.")
    return features.numpy(), list(prompts), [{} for _ in prompts]


def load_latents(
    store: Path, cell: str
) -> tuple[Float32[np.ndarray, "prompts seeds d"], list[str], list[Mapping[str, str]]]:
    """Read a folder of plain arrays, or a feature store that `diffprobe extract` made from prompts.

    Raises: those of `load_arrays`; of `load_prompt_latents` for a store.
    """
    from diffprobe.features.prompt_latents import load_prompt_latents
    from diffprobe.features.writer import MANIFEST

    if not (store / MANIFEST).is_file():
        return load_arrays(store, cell)

    found = load_prompt_latents(store, cell)
    return found.features.numpy(), found.prompts, [{} for _ in found.prompts]


def read_latents(store: str | Path, cell: str, *, load: PromptLatentLoader = load_latents) -> AuditLatents:
    """Return the prompt latents of a cell.

    Raises: StoreIncomplete for a folder that does not exist; ConfigError and NonFinite for latents that cannot be used;
        the errors of the loader.
    """
    folder = Path(store)
    if not folder.is_dir():
        raise StoreIncomplete(f"there is no folder '{store}' of prompt latents.", _HOW)
    features, prompts, _ = load(folder, cell)
    return AuditLatents(features=np.ascontiguousarray(features, dtype=np.float32), prompts=tuple(prompts))


def write_arrays(
    store: Path, prompts: Sequence[str], cells: Mapping[str, Float32[np.ndarray, "prompts seeds d"]]
) -> None:
    """Write prompt latents as plain arrays, atomically, into a folder that does not exist.

    Raises: ConfigError for arrays of another number of prompts.
    """
    import json

    from safetensors.numpy import save_file

    from diffprobe.core.atomic_file import atomic_folder

    for name, values in cells.items():
        AuditLatents(features=values, prompts=tuple(prompts))
        if values.dtype != np.float32:
            raise ConfigError(f"the latents of '{name}' are {values.dtype}, expected float32.")
    with atomic_folder(store) as temporary:
        text = json.dumps({"format": FORMAT, "prompts": list(prompts)}, ensure_ascii=False, indent=1)
        (temporary / PROMPTS_FILE).write_text(text, encoding="utf-8")
        save_file({name: np.ascontiguousarray(values) for name, values in cells.items()}, temporary / TENSORS_FILE)


@dataclass(frozen=True, kw_only=True, eq=False)
class RateTable:
    """Rates of subjects, 0..1, with intervals where the source has them."""

    rate: Float64[np.ndarray, " subjects"]
    """The rates."""
    low: Float64[np.ndarray, " subjects"] | None
    """Lower ends of intervals."""
    high: Float64[np.ndarray, " subjects"] | None
    """Upper ends."""


def read_rates(path: str | Path, subjects: Sequence[str]) -> RateTable:
    """Read rates of subjects.

    Args:
        path: a CSV file with the columns `subject` and `rate`, and with `low` and `high` or without them; an audit file
            (`diffprobe.audit/1`); or a result of `diffprobe eval rates` (the file or its folder).
        subjects: names of the subjects; other rows of the file are left out.

    Raises: FileNotFoundError; SchemaError for another format; ConfigError for subjects that are missing or given twice,
        and for rates that are not ordered numbers in 0..1.
    """
    path = Path(path) / RESULT_FILE if Path(path).is_dir() else Path(path)
    if path.name == RESULT_FILE:
        rows = _from_result(path)
    elif path.suffix == ".json":
        rows = _from_audit(path)
    else:
        rows = _from_csv(path)
    if missing := [name for name in subjects if name not in rows]:
        raise ConfigError(
            f"'{path}' has no rate of {len(missing)} of {len(subjects)} subjects.",
            f"missing: {', '.join(missing[:5])}",
            f"it has: {', '.join(list(rows)[:5])}",
        )  # fmt: skip
    found = [rows[name] for name in subjects]
    for name, (rate, low, high) in zip(subjects, found, strict=True):
        values = [value for value in (low, rate, high) if value is not None]
        if not all(0 <= value <= 1 for value in values) or values != sorted(values):
            raise ConfigError(f"'{path}': the rate of '{name}' is {rate:g} with the ends {low} and {high}.",
                              "allowed: 0 <= low <= rate <= high <= 1")  # fmt: skip
    has_ends = all(low is not None and high is not None for _, low, high in found)
    return RateTable(
        rate=np.array([row[0] for row in found], dtype=np.float64),
        low=np.array([row[1] for row in found], dtype=np.float64) if has_ends else None,
        high=np.array([row[2] for row in found], dtype=np.float64) if has_ends else None,
    )


_Row = tuple[float, float | None, float | None]


def _from_csv(path: Path) -> dict[str, _Row]:
    require_regular_file(path, error=SchemaError)
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        heads, lines = list(reader.fieldnames or []), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SchemaError(f"'{path}' is not a CSV file in UTF-8: {error}.") from None
    if twice := sorted({name for name in heads if heads.count(name) > 1}):
        raise SchemaError(f"'{path}' has a column twice: {', '.join(twice)}.")
    if missing := [name for name in ("subject", "rate") if name not in heads]:
        raise SchemaError(f"'{path}' has no column {', '.join(missing)}.", "needed: subject, rate; allowed: low, high")
    rows: dict[str, _Row] = {}
    for number, line in enumerate(lines, 2):
        name = line["subject"]
        if name in rows:
            raise ConfigError(f"'{path}', line {number}: '{name}' is given twice.")
        values = [_number(line.get(key), path, number, key) for key in ("rate", "low", "high")]
        if values[0] is None:
            raise ConfigError(f"'{path}', line {number}: the rate of '{name}' is missing.")
        rows[name] = (values[0], values[1], values[2])
    return rows


def _number(text: str | None, path: Path, line: int, key: str) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"'{path}', line {line}: {key} is '{text}', expected a number.") from None


def _from_audit(path: Path) -> dict[str, _Row]:
    tree = read_audit_tree(path)
    rates: dict[str, Any] = expect(tree.get("rates"), dict, where=f"'{path}': rates")
    rows: dict[str, _Row] = {}
    for name, row in rates.items():
        try:
            rows[name] = (float(row["rate"]), float(row["low"]), float(row["high"]))
        except (KeyError, TypeError, ValueError):
            raise SchemaError(f"'{path}': '{name}' has no numbers rate, low and high.") from None
    return rows


def _from_result(path: Path) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    for record in read_result(path).metrics:
        if record.name == "rate" and record.target is not None:
            low, high = record.detail.get("interval") or (None, None)
            rows[record.target] = (record.value, low, high)
    return rows
