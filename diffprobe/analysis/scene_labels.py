"""Labels of images of scenes as a CSV file: those of the nearest re-rendering, and those that a person gives by eye.

One row is one label: ``key,factor,value,by``. The key names the image, the value is a name of the world, and `by` is
who or what gave the label. A person copies rows of a written file, corrects `value` and sets `by`; images and factors
that the person does not name keep the label of the re-rendering.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import ConfigError, SchemaError, unknown
from diffprobe.shards.scenes.spec import WorldSpec

COLUMNS = ("key", "factor", "value", "by")
"""Header of a file of labels."""
RERENDERING = "rerendering"
"""`by` of labels of the nearest re-rendering."""


@dataclass(frozen=True, kw_only=True)
class SceneLabel:
    """The value of one factor of one image, and who gave it."""

    key: str
    factor: str
    value: str
    by: str


def write_labels(path: Path, labels: Iterable[SceneLabel]) -> None:
    """Write labels as CSV, in the given order."""
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((label.key, label.factor, label.value, label.by) for label in labels)


def read_labels(path: Path | str, spec: WorldSpec, keys: Iterable[str]) -> dict[tuple[str, str], SceneLabel]:
    """Read labels: (key, factor) -> label.

    Args:
        path: a CSV file with the header `COLUMNS`.
        spec: of the world whose factors and values are allowed.
        keys: of the images that can be labelled.

    Raises: FileNotFoundError; SchemaError for another header or a row with missing or further fields; UnknownName for a
        factor or value that the world lacks; ConfigError for an unknown image, an image and factor that is labelled
        twice, or a label without `by`. All name the line.
    """
    known, found = set(keys), {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if tuple(header) != COLUMNS:
            raise SchemaError(
                f"'{path}' is not a file of labels.", f"its header: {','.join(header)}",
                f"expected: {','.join(COLUMNS)}",
            )  # fmt: skip
        for number, row in enumerate(rows, start=2):
            where = f"'{path}', line {number}"
            if len(row) != len(COLUMNS):
                raise SchemaError(f"{where}: {len(row)} fields, expected {len(COLUMNS)} ({','.join(COLUMNS)}).")
            label = SceneLabel(**dict(zip(COLUMNS, row, strict=True)))
            if label.factor not in spec.values:
                raise unknown(f"factor ({where})", label.factor, spec.values)
            if label.value not in spec.names(label.factor):
                raise unknown(f"value of '{label.factor}' ({where})", label.value, spec.names(label.factor))
            if not label.by:
                raise ConfigError(f"{where}: 'by' is empty; it names who gave the label.")
            if label.key not in known:
                raise ConfigError(f"{where}: there is no image '{label.key}'.", f"images: {len(known)}")
            if (label.key, label.factor) in found:
                raise ConfigError(f"{where}: '{label.factor}' of image '{label.key}' is labelled twice.")
            found[label.key, label.factor] = label
    return found


def merged(
    automatic: Mapping[tuple[str, str], SceneLabel], by_eye: Mapping[tuple[str, str], SceneLabel]
) -> tuple[dict[tuple[str, str], SceneLabel], int]:
    """Return the labels with those by eye in place of automatic ones, and in how many both differ."""
    n_differing = sum(automatic[place].value != label.value for place, label in by_eye.items() if place in automatic)
    return {**automatic, **by_eye}, n_differing
