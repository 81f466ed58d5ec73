"""Settings of the overlap of classes that `diffprobe score` measures beside its accuracies, and what they need."""

from dataclasses import dataclass, fields

from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OverlapRule:
    """Settings below `overlap`."""

    images: int = 0
    """Images per class, of the training split, at which kernels are compared; 0 measures no overlap."""
    classifier: str | None = None
    """Folder of a finished classifier run whose confusion of the same classes is compared; None takes the confusion of
    the scores themselves."""
    cell: str | None = None
    """Cell of that classifier; None where it has one alone."""
    n_permutations: int = 2000
    """Permutations of the classes."""

    def __post_init__(self) -> None:
        if not self.images and any(getattr(self, field.name) != field.default for field in fields(self)):
            raise ConfigError("settings of overlap have no effect with overlap.images=0.", fix="overlap.images=10")
        if self.images < 0 or self.n_permutations < 1:
            raise ConfigError(f"overlap: images={self.images}, n_permutations={self.n_permutations} are out of range.")
        if self.cell is not None and self.classifier is None:
            raise ConfigError("overlap.cell has no effect without overlap.classifier.", fix="remove it")


def check_overlap(rule: OverlapRule, kind: str) -> None:
    """Refuse an overlap of candidates that are not classes. Raises: ConfigError."""
    if rule.images and kind != "classes":
        raise ConfigError(
            f"overlap.images={rule.images} with candidates.kind={kind}: kernels of classes are compared.",
            fix="candidates.kind=classes with candidates.attribute, or overlap.images=0",
        )
