"""Rows of real features for `diffprobe bench ksae --quality`: of a cell of a feature store, or of a file.

Training, validation and test rows come from the store's own splits. A store without a validation split gives every
tenth training image, all its rows together.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.core.safetensors_file import load_safetensors
from diffprobe.features.cell_selection import choose_cell
from diffprobe.features.reader import FeatureStore
from diffprobe.features.row_layout import by_place

PARTS = ("train", "val", "test")
TENTH = 10


class Rows(NamedTuple):
    """Rows by their use, float32, all of one width."""

    train: Float[Tensor, "train d_in"]
    val: Float[Tensor, "val d_in"]
    test: Float[Tensor, "test d_in"]
    name: str
    """Where they come from."""


def stored_rows(store: Path | str, cell: str, *, images: int | None = None) -> Rows:
    """Read the rows of a cell: a vector per image, or one per place, token and draw.

    Args:
        store: folder of a feature store.
        cell: its cell, or a unique prefix of one.
        images: the first images of each split; None for all.
    Raises: UnknownName for a cell; ConfigError for less than one image, for a store without a training or test split.
    """
    if images is not None and images < 1:
        raise ConfigError(f"images={images} of each split; allowed: at least 1.")
    opened = FeatureStore.open(store)
    name = choose_cell(cell, opened.cells)
    missing = [split for split in ("train", "test") if split not in opened.splits]
    if missing:
        raise ConfigError(f"the store '{store}' has no split {' and '.join(missing)}.", "needed: train and test")

    def read(split: str) -> Tensor:
        parts, missing = list[Tensor](), images
        for table in opened.iter_shards(split, [name]):
            parts.append(by_place(table.features[name][:missing], name).float())
            missing = None if missing is None else missing - len(parts[-1])
            if missing == 0:
                break
        return torch.cat(parts)

    train, test = read("train"), read("test")
    if "val" in opened.splits:
        val = read("val")
    else:
        held = torch.arange(len(train)) % TENTH == 0
        train, val = train[~held], train[held]
    train, val, test = (part.reshape(-1, part.shape[-1]).contiguous() for part in (train, val, test))
    return checked(Rows(train, val, test, f"{opened.manifest.recorded['backbone']} {name}"))


def load_rows(file: Path | str) -> Rows:
    """Read rows from a safetensors file with the tensors train, val and test. Raises: SchemaError."""
    tensors = load_safetensors(Path(file))
    if set(tensors) != set(PARTS):
        raise SchemaError(f"'{file}' has the tensors {', '.join(sorted(tensors))}; expected: {', '.join(PARTS)}.")
    train, val, test = (tensors[part].float() for part in PARTS)
    return checked(Rows(train, val, test, Path(file).stem))


def checked(rows: Rows) -> Rows:
    """Return the rows. Raises: ConfigError for parts that are empty, of other widths, or not finite."""
    parts = dict(zip(PARTS, rows[:3], strict=True))
    shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in parts.items())
    if any(part.ndim != 2 or 0 in part.shape or part.shape[1] != rows.train.shape[1] for part in parts.values()):
        raise ConfigError(f"rows of {rows.name} have the shapes {shapes}.", "needed: rows of one width in each part")
    for name, part in parts.items():
        if not bool(torch.isfinite(part).all()):
            raise ConfigError(f"the {name} rows of {rows.name} contain NaN or infinity.")
    return rows
