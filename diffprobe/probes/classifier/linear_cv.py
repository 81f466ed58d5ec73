"""Linear, tuned and exact: logistic regression whose L2 penalty is chosen by grouped cross-validation.

The head is that of `linear`; `training/linear_cv.py` solves it. It has no gradient steps, epochs or learning rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier import linear
from diffprobe.probes.classifier.base import ClassifierConfig
from diffprobe.probes.l2_selection import DEFAULT_PATH, check_path


@dataclass(frozen=True, kw_only=True)
class Config(ClassifierConfig):
    """Keys of `probe=linear_cv`, below `probe.params`."""

    folds: int = 5
    """Folds of the cross-validation on the training split."""
    fold_seed: int = 0
    """Seed of the folds; the seed of the run does not change them."""
    l2: tuple[float, ...] = DEFAULT_PATH
    """Penalties to choose from: l2 / 2 * sum(w^2) on standardised features, beside the mean cross entropy in nats."""
    patience: int | None = 2
    """A path ends after this many penalties in a row whose loss is above the smallest by more than one standard error;
    null tries all of `l2`."""
    one_standard_error: bool = False
    """Take the largest penalty whose loss is within one standard error of the best, instead of the best."""
    class_weight: Literal["balanced", "none"] = "balanced"
    """balanced: all classes have equal weight, in the fit and in the cross-validated loss; none: all samples."""
    components: int | None = None
    """Fit on this many principal components of the standardised training features, so that features of different widths
    are compared at one; null fits on all dimensions."""
    group: str | None = None
    """Attribute whose samples stay in one fold; None: the group of the data set; sample: each sample by itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds < 2:
            raise ConfigError(f"folds={self.folds} is out of range: at least 2.")
        check_path(self.l2)
        if self.components is not None and self.components < 1:
            raise ConfigError(f"components={self.components} is out of range: at least 1, or null.")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience={self.patience} is out of range: at least 1, or null.")


def make(config: Config, d_in: int, n_classes: int, *, seed: int) -> nn.Linear:
    """Return the head before it is solved, at zero."""
    return linear.make(linear.Config(controls=config.controls), d_in, n_classes, seed=seed)


def make_bank(config: Config, d_in: int, n_classes: Sequence[int], seeds: Sequence[int] = ()) -> linear.LinearBank:
    """Return the bank in one matrix."""
    return linear.LinearBank(d_in, n_classes)
