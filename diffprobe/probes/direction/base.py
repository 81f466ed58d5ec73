"""What all estimates of a direction share: its two poles, its file, and the random directions it must beat."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, EmptyClass, unknown
from diffprobe.core.rng import derive_seed
from diffprobe.metrics.moments import Moments
from diffprobe.probes.serialization import load_probe, save_probe

KIND, SCHEMA_VERSION = "probe/direction", 2


@dataclass(frozen=True, kw_only=True)
class DirectionConfig:
    """Keys below `probe.params` that every estimator has."""

    positive: str | tuple[str, ...]
    """Value at the positive end, one for each of probe.targets; several values of one end are joined by "|"."""
    negative: str | tuple[str, ...] = "*"
    """Value at the negative end, one for each of probe.targets; "*" for every other value."""
    n_random: int = 100
    """Random directions of the control."""
    n_shuffles: int = 10
    """Estimates from shuffled training labels, of the control."""

    def __post_init__(self) -> None:
        if self.n_random < 2 or self.n_shuffles < 2:
            raise ConfigError(
                f"n_random={self.n_random}, n_shuffles={self.n_shuffles}: a control with a spread needs 2."
            )

    def axes(self, cells: Sequence[str], classes: Mapping[str, Sequence[str]]) -> list["ContrastPair"]:
        """Name the axes of some cells, for targets with their class names.

        Raises: ConfigError if the ends are not as many as the targets, meet, or leave no value; UnknownName for a
            value that a target does not have.
        """
        positive, negative = _each(self.positive, len(classes)), _each(self.negative, len(classes))
        if len(positive) != len(classes) or len(negative) != len(classes):
            raise ConfigError(
                f"{len(classes)} targets ({', '.join(classes)}) with {len(positive)} positive and {len(negative)} "
                "negative ends.",
                "probe.params.positive and .negative need one value for each target, in their order",
            )
        made = []
        for (target, names), above, below in zip(classes.items(), positive, negative, strict=True):
            up = _ids(target, above, names)
            down = tuple(i for i in range(len(names)) if i not in up) if below == "*" else _ids(target, below, names)
            if not down or set(up) & set(down):
                raise ConfigError(f"target '{target}': the ends '{above}' and '{below}' must be two different sides.")
            label = "other than " + above if below == "*" else below
            made += [ContrastPair(cell, target, above, label, up, down) for cell in cells]
        return made


class ContrastPair(NamedTuple):
    """Two ends of one target in the features of one cell."""

    cell: str
    target: str
    positive: str
    negative: str
    positive_ids: tuple[int, ...]
    negative_ids: tuple[int, ...]

    def side(self, label: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return 1 at the positive end, 0 at the negative end, -1 elsewhere."""
        side = torch.full_like(label, -1)
        side[torch.isin(label, label.new_tensor(self.negative_ids))] = 0
        side[torch.isin(label, label.new_tensor(self.positive_ids))] = 1
        return side


def _each(ends: str | tuple[str, ...], n: int) -> tuple[str, ...]:
    if isinstance(ends, str):  # one end serves one target; "*" serves them all
        return (ends,) * (n if ends == "*" else 1)
    return ends


def _ids(target: str, ends: str, names: Sequence[str]) -> tuple[int, ...]:
    for name in ends.split("|"):
        if name not in names:
            raise unknown(f"value of target '{target}'", name, names)
    return tuple(sorted(names.index(name) for name in ends.split("|")))


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """A unit vector in the feature space of one cell.

    Attributes:
        vector: unit norm, float32; points from the negative to the positive pole.
        scale: distance of the poles' means along the vector on the training set, in the unit of the features:
            adding scale * vector to a feature moves a negative sample to the positive mean.
        target, positive, negative: the attribute and the values at both ends.
        cell: name of the cell whose features it lives in.
        estimator: how it was found.
    """

    vector: Float[Tensor, " d_in"]
    scale: float
    target: str
    positive: str
    negative: str
    cell: str
    estimator: str

    def project(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        """Return the coordinate of features along the direction, in their unit."""
        return x @ self.vector.to(x)

    def save(self, folder: Path | str) -> Path:
        """Write the direction to a folder (safetensors and JSON)."""
        settings = asdict(self)
        tensors = {"vector": settings.pop("vector")}
        return save_probe(folder, kind=KIND, schema_version=SCHEMA_VERSION, settings=settings, tensors=tensors)

    @classmethod
    def load(cls, folder: Path | str) -> "Direction":
        """Read what `save` wrote. Raises: SchemaError."""
        settings, tensors = load_probe(folder, kind=KIND, schema_version=SCHEMA_VERSION)
        return cls(vector=tensors["vector"], **settings)


def class_means(moments: Moments) -> tuple[Float[Tensor, "d_in columns"], Float[Tensor, "d_in columns"]]:
    """Return the means of the positive and of the negative side of each column, float64.

    Raises: EmptyClass if a side has no sample.
    """
    n_positive, n_negative = moments.y, moments.n - moments.y
    if (n_positive == 0).any() or (n_negative == 0).any():
        raise EmptyClass(
            f"a direction needs training samples at both ends; there are {int(n_positive.min())} positive and "
            f"{int(n_negative.min())} negative ones.",
        )
    return moments.xy / n_positive, (moments.x[:, None] - moments.xy) / n_negative


def random_directions(d_in: int, n: int, *, seed: int) -> Float[Tensor, "d_in n"]:
    """Draw unit vectors, uniform on the sphere, as columns (float64). They depend on seed, d_in and n alone."""
    generator = torch.Generator().manual_seed(derive_seed("random_direction", seed, d_in))
    columns = torch.randn(d_in, n, generator=generator, dtype=torch.float64)
    return columns / columns.norm(dim=0, keepdim=True)


def sides(x: Float[Tensor, "batch d_in"], positive: Tensor, *, gram: bool) -> Moments:
    """Sum a whole set at once: the notebook's way to the moments that a Trainer gathers batch by batch."""
    x, y = x.double(), positive.double().reshape(len(x), -1)
    return Moments(len(x), x.sum(0), x.square().sum(0), y.sum(0), x.T @ y, x.T @ x if gram else None)
