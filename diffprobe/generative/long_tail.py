"""Class-conditional training: captions by the value of an attribute, on a long-tailed subset of the training images.

The number of images falls exponentially from the first class to the last (Cao et al., 1906.07413, section 4.1): class k
of K has n_max * imbalance ** (k / (K - 1)) images. Order of classes and choice of images are seeded.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, EmptyClass, SampleError, unknown
from diffprobe.core.rng import derive_seed
from diffprobe.generative.image_table import ImageTable
from diffprobe.generative.regularizers.base import NO_CLASS, TrainingClasses

SHOTS = ("many", "medium", "few")
"""Thirds of the classes by their number of training images."""


@dataclass(frozen=True, kw_only=True)
class ClassesConfig:
    """What a class-conditional denoiser is conditioned on, and on how many images of each class it is trained."""

    attribute: str
    """Attribute whose values are the classes; every sample has to have it. With `clusters`, the name they get."""
    clusters: str | None = None
    """Finished run of kind `train_self_guided`: the classes are the clusters that it assigns the images to, and no
    label is read. None takes the values of the attribute."""
    template: str = "{value}"
    """Caption of a class; `{value}` stands for the value of the attribute. It replaces the captions of the images."""
    imbalance: float = 1.0
    """Images of the last class by images of the first, above 0 to 1; 1 leaves the training images as they are."""
    min_images: int = 20
    """Smallest number of training images of a class; fewer are refused."""
    max_images: int | None = None
    """Images of the first class; None takes the most that all classes allow. Has no effect with imbalance=1."""
    group_by: str | None = None
    """Attribute whose values are taken or left out whole (variants of one image); None takes single images."""
    seed: int = 0
    """Seed of the order of classes and of the choice of images; the same for all runs that are compared."""

    def __post_init__(self) -> None:
        if "{value}" not in self.template:
            raise ConfigError(f"classes.template={self.template!r} has no {{value}}.", fix='classes.template="{value}"')
        if not 0 < self.imbalance <= 1:
            raise ConfigError(f"classes.imbalance={self.imbalance} is out of range: above 0 to 1.")
        for name in ("min_images", "max_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"classes.{name}={value} is out of range: at least 1.")
        for name in ("max_images", "group_by"):
            if self.imbalance == 1 and getattr(self, name) is not None:
                raise ConfigError(f"classes.{name} has no effect with classes.imbalance=1.", fix="remove it")

    def caption(self, value: str) -> str:
        """Return the caption of a class."""
        return self.template.replace("{value}", value)

    def captioned(self, table: ImageTable) -> ImageTable:
        """Return the table with the caption of its class as each sample's only one.

        Raises: see `values_of`; with `clusters`, see `label_by_cluster`.
        """
        if self.clusters is not None and self.attribute not in table.attributes[0]:
            table = self._labelled(table)
        return replace(table, captions=[(self.caption(value),) for value in values_of(table, self.attribute)])

    def training_table(self, table: ImageTable) -> ImageTable:
        """Return the captioned long-tailed subset of a training split.

        Raises: see `values_of`; ConfigError for one class; EmptyClass, by name, for a class with too few images; with
            `clusters`, see `label_by_cluster`.
        """
        table = table if self.clusters is None else self._labelled(table)
        rows = long_tailed_rows(table, self)
        chosen = self.captioned(table if rows is None else table.take(rows))
        for name, count in class_counts(chosen, self.attribute).items():
            if count < self.min_images:
                raise EmptyClass(
                    f"class '{name}' of '{self.attribute}' has {count} training images; classes.min_images="
                    f"{self.min_images}.",
                    fix="more images in the set, a larger classes.imbalance, or a smaller classes.min_images",
                )
        return chosen

    def _labelled(self, table: ImageTable) -> ImageTable:
        from diffprobe.generative.cluster_assignment import label_by_cluster  # opens a denoiser

        assert self.clusters is not None
        return label_by_cluster(table, self.attribute, self.clusters)


def values_of(table: ImageTable, attribute: str) -> list[str]:
    """Return the class of each sample.

    Raises: UnknownName if no sample has the attribute, SampleError with the first sample that lacks it.
    """
    found = {key for sample in table.attributes for key in sample}
    if attribute not in found:
        raise unknown("attribute", attribute, found)
    for key, sample in zip(table.keys, table.attributes, strict=True):
        if attribute not in sample:
            raise SampleError(f"sample '{key}' has no attribute '{attribute}', so it has no class.")
    return [sample[attribute] for sample in table.attributes]


def class_counts(table: ImageTable, attribute: str) -> dict[str, int]:
    """Return the number of images of each class, the largest class first, equal ones by name."""
    counts = Counter(values_of(table, attribute))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def training_classes(table: ImageTable, attribute: str) -> TrainingClasses:
    """Return the classes of a training split for a class-contrast term. Raises: ConfigError, EmptyClass."""
    counts = class_counts(table, attribute)
    return TrainingClasses(attribute=attribute, names=tuple(counts), counts=tuple(counts.values()))


def class_numbers(
    table: ImageTable, rows: Sequence[int], captions: Sequence[str], classes: TrainingClasses
) -> Int[Tensor, " row"]:
    """Return the class of each row, `NO_CLASS` where its caption was dropped."""
    return torch.tensor(
        [
            NO_CLASS if caption == "" else classes.names.index(table.attributes[row][classes.attribute])
            for row, caption in zip(rows, captions, strict=True)
        ]
    )


def exponential_counts(n_max: int, n_classes: int, imbalance: float) -> list[int]:
    """Return the number of images of each class, falling exponentially from n_max to n_max * imbalance.

    >>> exponential_counts(100, 3, 0.01)
    [100, 10, 1]
    """
    steps = max(n_classes - 1, 1)
    return [round(n_max * imbalance ** (k / steps)) for k in range(n_classes)]


def long_tailed_rows(table: ImageTable, config: ClassesConfig) -> Int[Tensor, " row"] | None:
    """Return the rows of the subset in their order in the table; None where all are taken.

    With `group_by`, groups are taken in a seeded order; one that does not fit any more is left out, so that a class can
    have fewer images than its share.

    Raises: see `values_of`; ConfigError for one class or for a class that has fewer images than its share.
    """
    values = values_of(table, config.attribute)
    if config.imbalance == 1:
        return None
    available = Counter(values)
    names = sorted(available)
    if len(names) < 2:
        raise ConfigError(f"'{config.attribute}' has one class, '{names[0]}': classes.imbalance has no effect.")
    generator = torch.Generator().manual_seed(derive_seed("long_tail", config.seed))
    order = [names[k] for k in torch.randperm(len(names), generator=generator).tolist()]
    shares = [config.imbalance ** (k / (len(order) - 1)) for k in range(len(order))]
    most = int(min(available[name] / share for name, share in zip(order, shares, strict=True)))
    if config.max_images is not None and config.max_images > most:
        raise ConfigError(f"classes.max_images={config.max_images}: the classes allow {most}.")
    counts = exponential_counts(config.max_images or most, len(order), config.imbalance)
    drawn = torch.randperm(len(table), generator=generator).tolist()
    groups = table.groups(config.group_by)
    kept: list[int] = []
    for name, count in zip(order, counts, strict=True):
        members: dict[str, list[int]] = {}
        for row in drawn:
            if values[row] == name:
                members.setdefault(groups[row], []).append(row)
        left = count
        for rows in members.values():
            if len(rows) <= left:
                kept, left = kept + rows, left - len(rows)
    return torch.tensor(sorted(kept), dtype=torch.long)


def shots(counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the names of the classes with many, medium and few images: thirds by rank, the middle one the largest.

    >>> shots({"a": 100, "b": 30, "c": 10, "d": 1})
    {'many': ['a'], 'medium': ['b', 'c'], 'few': ['d']}
    """
    names = sorted(counts, key=lambda name: (-counts[name], name))
    third = max(len(names) // 3, 1) if len(names) > 1 else 0
    return dict(
        zip(SHOTS, (names[:third], names[third : len(names) - third], names[len(names) - third :]), strict=True)
    )
