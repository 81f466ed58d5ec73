"""The card of a data set: its name, its licence, and what its contract tests check."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """Facts that a file in `shards/datasets/` declares about its data set, as the constant `CARD`."""

    name: str
    """Name of the set in results; for a shipped set also the value of `data.path`."""
    licence: str
    """Terms of the images, with attribution where they ask for it."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Split -> number of samples of the released set; empty where the source decides."""
    n_classes: int | None = None
    """Number of classes of the released set; None where the source decides."""
    disjoint_by: Mapping[str, str] = field(default_factory=dict)
    """Split -> attribute (or `label`, `key`) whose values in that split occur in no other split."""
    group: str | None = None
    """Attribute whose samples are not independent, where the index names none."""
