"""The contract of the runs that train a part of a diffusion model, and the validation of their common settings.

Validation runs when a configuration is built, before anything is loaded.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import lightning
import numpy as np
from numpy.typing import NDArray

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord


@dataclass(frozen=True, kw_only=True)
class HeldOutLosses:
    """Losses of held-out samples by a trained model as it is, and after changes of its input.

    Attributes:
        whole: loss of each sample.
        changed: name of a change or of a control -> the loss of each sample after it.
        controls: the names in `changed` that are controls.
        groups: group of each sample; samples of one group are not independent.
    """

    whole: Sequence[float]
    changed: Mapping[str, Sequence[float]]
    controls: Sequence[str]
    groups: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class DenseCounts:
    """Counts of test images by a head that was trained through a denoiser, and by its controls.

    Attributes:
        task: `segmentation`, `referring`, `depth`, or `classification`.
        probe: name of the head in records.
        groups: group of each image; images of one group are not independent.
        classes: names of the classes; empty for depth.
        own: of each image its confusion [true, predicted], or the sums of depth (`metrics.dense.DEPTH_PARTS`), or 1 for
            the right class and 0 otherwise.
        controls: name of a control -> the same of its head.
    """

    task: str
    probe: str
    groups: Sequence[str]
    classes: Sequence[str]
    own: NDArray[np.float64]
    controls: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class ProbedImages:
    """Which images the classifiers of a probed training classify rightly (`probed_training`).

    Attributes:
        groups: group of each image; images of one group are not independent.
        steps: measured steps, ascending.
        right: (cell, attribute) -> bool (step, image).
        raw_pixels: attribute -> bool (image), of the classifier of pixels.
    """

    groups: Sequence[str]
    steps: Sequence[int]
    right: Mapping[tuple[str, str], NDArray[np.bool_]]
    raw_pixels: Mapping[str, NDArray[np.bool_]]


class GenerativeModule(lightning.LightningModule):
    """A LightningModule that can export its weights."""

    result_kind = "train_backbone"
    """The kind of the run's result."""
    accumulation = 1
    """Batches per optimiser step."""
    held_out: HeldOutLosses | None = None
    """Set by the validation after training, in modules that measure it."""
    dense_counts: DenseCounts | None = None
    """Set by `save`, in modules that train dense heads."""
    records: Sequence[MetricRecord] = ()
    """Set during training, by what measures the module meanwhile (`probed_training`)."""
    probed: ProbedImages | None = None
    """The images behind `records`."""
    facts: Mapping[str, Any] = MappingProxyType({})
    """JSON values that the record of the run has in the detail of its metrics: what the training images turned out to
    be."""

    def save(self, folder: Path) -> None:
        """Write the weights in diffusers' format."""
        raise NotImplementedError


class GenerativeData(lightning.LightningDataModule):
    """The data of a generative training run; batches are row indices."""

    val: Sized
    """The validation rows."""


@runtime_checkable
class GenerativeTraining(Protocol):
    """The configuration of a run that trains a part of a diffusion model; it builds the module and its data."""

    @property
    def experiment(self) -> str:
        """Name of the experiment."""

    @property
    def trainer(self) -> TrainerConfig:
        """Length, precision, step size."""

    @property
    def logger(self) -> LoggerConfig:
        """Where curves go."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    @property
    def output(self) -> str:
        """Folder of runs."""

    @property
    def ema_decay(self) -> float:
        """Decay per step of the averaged weights; 0 for none."""

    @property
    def data(self) -> Any:
        """What it is trained on: a `DataConfig` of shards, or a configuration of scenes drawn on demand."""

    def require_weights(self) -> None:
        """Check that the trained weights that the run starts from exist. Raises: WeightsMissing."""

    def input_digests(self) -> dict[str, str]:
        """Return the digest of each input that the run opens besides shards, by name. Raises: WeightsMissing."""

    def make(self) -> tuple[GenerativeModule, GenerativeData]:
        """Build the module and its data."""


def validate_ema_decay(decay: float) -> None:
    """Check a decay per step. Raises: ConfigError."""
    if not 0 <= decay < 1:
        raise ConfigError(
            f"ema_decay={decay} is out of range: 0 to below 1.",
            "1 would keep the initial weights; 0 saves the weights of the last step",
        )


def validate_settings(config: Any, *, shares: tuple[str, ...] = (), not_negative: tuple[str, ...] = ()) -> None:
    """Validate the keys that all generative runs have (data, warmup_steps, ema_decay), and further ones.

    Args:
        config: the configuration of the run.
        shares: further keys with values in 0..1.
        not_negative: further keys with values of at least 0.
    Raises: ConfigError.
    """
    validate_ema_decay(config.ema_decay)
    for name in shares:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name}={getattr(config, name)} is out of range: 0 to 1.")
    for name in ("warmup_steps", *not_negative):
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name}={getattr(config, name)} is out of range: at least 0.")
    default = DataConfig(path="").shuffle_buffer
    if config.data.shuffle_buffer != default:  # it applies to streams; here a split is decoded once and kept in memory
        raise ConfigError(
            f"data.shuffle_buffer={config.data.shuffle_buffer} has no effect on generative training.",
            f"every epoch shuffles the whole split in memory; leave the key unset ({default})",
        )
