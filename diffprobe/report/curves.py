"""Training curves of a run, from the CSV files that `logger=csv` writes: one point per step and logged name."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from diffprobe.core.errors import SchemaError

CURVES = "curves*/metrics.csv"
"""Where a run's folder has them: a resumed run writes a further folder."""
_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One logged quantity over the optimiser steps."""

    name: str
    """Its name in the log, for example "train/loss"."""
    steps: tuple[int, ...]
    """Optimiser steps, ascending, each once."""
    values: tuple[float, ...]
    """The values at these steps, finite."""


def read_curves(run_dir: Path | str) -> list[Curve]:
    """Read the curves of a run in alphabetical order; none if it was not logged to CSV.

    A run that was interrupted repeats the steps after its last checkpoint: the later value of a step counts.

    Raises: SchemaError, with the file, if a file is too large or not a log of Lightning's CSV logger.
    """
    found: dict[str, dict[int, float]] = {}
    for path in sorted(Path(run_dir).glob(CURVES), key=_order):
        if path.stat().st_size > _MAX_BYTES:
            raise SchemaError(f"'{path}' is larger than {_MAX_BYTES:,} bytes; curves are not read.")
        for step, name, value in _points(path):
            found.setdefault(name, {})[step] = value
    curves = []
    for name, points in sorted(found.items()):
        steps = sorted(points)
        curves.append(Curve(name=name, steps=tuple(steps), values=tuple(points[step] for step in steps)))
    return curves


def thinned(curve: Curve, n: int = 400) -> Curve:
    """Return a curve with at most about n points, first and last among them, for drawing."""
    stride = math.ceil(len(curve.steps) / n)
    if stride <= 1:
        return curve
    keep = sorted({*range(0, len(curve.steps), stride), len(curve.steps) - 1})
    return Curve(
        name=curve.name, steps=tuple(curve.steps[i] for i in keep), values=tuple(curve.values[i] for i in keep)
    )


def _order(path: Path) -> tuple[int, str]:
    number = path.parent.name.rpartition("-")[2]
    return (int(number) if number.isdecimal() else 0, path.parent.name)


def _points(path: Path) -> list[tuple[int, str, float]]:
    points = []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if "step" not in (reader.fieldnames or ()):
                raise SchemaError(f"'{path}' is not a log of curves: it has no column 'step'.")
            for row in reader:
                if None in row:
                    raise SchemaError(f"'{path}' is not a log of curves: line {reader.line_num} is too long.")
                step = int(row["step"])
                for name, text in row.items():
                    if name in ("step", "epoch") or not text:
                        continue
                    value = float(text)
                    if math.isfinite(value):
                        points.append((step, name, value))
    except (UnicodeDecodeError, csv.Error, ValueError, TypeError) as error:
        if isinstance(error, SchemaError):
            raise
        raise SchemaError(f"'{path}' is not a readable log of curves: {error}.", fix="remove the file") from error
    return points
