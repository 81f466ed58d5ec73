"""Further numbers and texts of latents from files, as columns of the explorer: results of other measurements.

A CSV file has a head; its column `latent` has the number of the latent, and each other column becomes one of the
explorer. A JSON file has an object from the number of the latent to its values:

    {"17": {"delta_mse": 0.0031, "verdict": "read, not used"}, "18": {"delta_mse": 0.0}}

A latent without a row or a value has none in the table.
"""

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from diffprobe.core.errors import ConfigError
from diffprobe.core.json_file import parse_json
from diffprobe.evaluation.explore import Findings
from diffprobe.evaluation.explore_columns import ACTIVITY
from diffprobe.evaluation.explore_runs import ExploredRun
from diffprobe.report.explorer.records import Column, TextColumn

LATENT = "latent"
_OWN = (*ACTIVITY, "nearest_cosine", "recurrence", LATENT)
Values = Mapping[str, str | float | int | None]


def columns_from_files(paths: Iterable[str], n_latents: int) -> Findings:
    """Return the columns of some files, in their order.

    A column is one of numbers if all its values are, else one of texts.

    Args:
        paths: CSV files (`.csv`) and JSON files (`.json`).
        n_latents: number of latents of the run.

    Raises: ConfigError for a file of another kind or form, a latent that does not exist or comes twice, a number that
        is not finite, a name that the explorer has itself.
    """
    columns: list[Column] = []
    texts: list[TextColumn] = []
    notes = []
    for path in map(Path, paths):
        rows = _read(path)
        wrong = [latent for latent in rows if not latent.isdecimal() or int(latent) >= n_latents]
        if wrong:
            raise ConfigError(
                f"'{path}' has a latent '{wrong[0]}', which does not exist.", f"allowed: 0 to {n_latents - 1}"
            )
        by_latent = {int(latent): values for latent, values in rows.items()}
        if len(by_latent) < len(rows):
            raise ConfigError(f"'{path}' has a latent twice.")
        names = list(dict.fromkeys(name for values in rows.values() for name in values))
        for name in names:
            found = {latent: values[name] for latent, values in by_latent.items() if values.get(name) not in (None, "")}
            _add(path, name, found, n_latents, columns, texts)
        notes.append(f"From '{path.name}', for {len(rows):,} of {n_latents:,} latents: {', '.join(names)}.")
    return Findings(columns=columns, texts=texts, notes=notes)


def columns_of_files(paths: Iterable[str], run: ExploredRun) -> Findings:
    """Return the columns of some files for the latents of a run; arguments and errors as `columns_from_files`."""
    return columns_from_files(paths, run.sae.n_latents)


def _read(path: Path) -> dict[str, Values]:
    """Return number of a latent -> its values."""
    if path.suffix not in (".csv", ".json"):
        raise ConfigError(f"columns: '{path}' is neither a .csv nor a .json file.")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"columns: '{path}' cannot be read: {error}.") from error
    if path.suffix == ".json":
        found = parse_json(text, where=f"columns: '{path}'", error=ConfigError)
        if not isinstance(found, dict) or not all(isinstance(values, dict) for values in found.values()):
            raise ConfigError(f"columns: '{path}' has another form.", 'needed: {"17": {"NAME": VALUE, ...}, ...}')
        wrong = next(
            (v for values in found.values() for v in values.values() if isinstance(v, (list, dict, bool))), None
        )
        if wrong is not None:
            raise ConfigError(f"columns: '{path}' has the value {wrong}.", "allowed: numbers, texts and null")
        return found
    reader = csv.DictReader(text.splitlines(), strict=True)
    if LATENT not in (reader.fieldnames or ()) or len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
        raise ConfigError(
            f"columns: the head of '{path}' is {', '.join(reader.fieldnames or ()) or 'empty'}.",
            f"needed: a column '{LATENT}' with the number of the latent, and names that differ",
        )
    rows: dict[str, Values] = {}
    for row in reader:
        if None in row or None in row.values():
            raise ConfigError(
                f"columns: line {reader.line_num} of '{path}' has another number of values than its head."
            )
        latent = row.pop(LATENT).strip()
        if latent in rows:
            raise ConfigError(f"'{path}' has latent {latent} twice.")
        rows[latent] = {name: value.strip() for name, value in row.items()}
    return rows


def _add(
    path: Path, name: str, found: dict[int, str | float | int | None], n_latents: int, columns: list[Column],
    texts: list[TextColumn],
) -> None:  # fmt: skip
    key = re.sub(r"\W", "_", name)
    if key in _OWN:
        raise ConfigError(f"'{path}' has a column '{name}', which the explorer has itself.", fix="rename it")
    numbers = {latent: _number(value) for latent, value in found.items()}
    about = f"'{name}' of {path.name}."
    if found and all(value is not None for value in numbers.values()):
        bad = [latent for latent, value in numbers.items() if value is None or not abs(value) < float("inf")]
        if bad:
            raise ConfigError(f"'{path}': '{name}' of latent {bad[0]} is not finite.", "leave the value out")
        values = [numbers.get(latent) for latent in range(n_latents)]
        columns.append(Column(key=key, title=name, help=about, values=values))
    else:
        shown = ["" if found.get(latent) is None else str(found[latent]) for latent in range(n_latents)]
        texts.append(TextColumn(key=key, title=name, help=about, values=shown))


def _number(value: str | float | int | None) -> float | None:
    """Return a value as a number; None for a text that is none."""
    try:
        return float(value) if value is not None else None
    except ValueError:
        return None
