"""Probing accuracy during the training of a denoiser: which attributes its features hold after how many steps.

At each measured step the averaged weights are written as a pipeline and read back like any backbone, so that the
numbers are those of the weights that would be saved, in the precision in which they would be saved.
"""

import csv
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from diffprobe.backbones.cell import Cell, parse_pool
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.config.validators import at_least
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import ConfigError, EmptyClass, unknown
from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.generative.image_table import ImageTable
from diffprobe.generative.run_settings import ProbedImages
from diffprobe.generative.snapshots import require_reached, run_folder, save_averaged
from diffprobe.probes.ridge_classifier import FOLDS, ridge_predictions

CURVES = "probes.csv"
"""File of the curves inside the run folder."""
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class TrainingProbesConfig:
    """What is probed during a training, and when. Step 0 and the last step are always measured."""

    attributes: tuple[str, ...]
    """Attributes of the images that linear classifiers predict."""
    taps: tuple[str, ...]
    """Taps of the denoiser, as `features.taps`."""
    timesteps: tuple[int, ...]
    """Timesteps on the training grid; larger is noisier."""
    steps: tuple[int, ...] = ()
    """Optimiser steps that are measured."""
    every_n_steps: int | None = None
    """Also measure each multiple of this number of steps."""
    n_train: int = 2000
    """Training images that the classifiers are fitted to, drawn once; all if there are fewer."""
    n_val: int = 1000
    """Validation images that are classified, drawn once; all if there are fewer."""
    group_by: str | None = None
    """Attribute whose values are resampled whole for the intervals; None: images are independent."""
    pool: str = "mean"
    """Pooling of a feature map: mean, max or gridK."""

    def __post_init__(self) -> None:
        for name in ("attributes", "taps", "timesteps"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"probes.{name}={list(values)}: at least one, and each once.")
        if list(self.steps) != sorted(set(self.steps)) or min(self.steps, default=1) < 1:
            raise ConfigError(
                f"probes.steps={list(self.steps)}: ascending whole numbers from 1; step 0 is always measured."
            )
        at_least(1, every_n_steps=self.every_n_steps, n_val=self.n_val)
        at_least(2 * FOLDS, n_train=self.n_train)
        if parse_pool(self.pool)[0] in ("none", "tokens"):
            raise ConfigError(f"probes.pool={self.pool}: a classifier reads one row per image: mean, max or gridK.")

    def measures(self, step: int) -> bool:
        """Return whether a step of the training is measured."""
        return step in self.steps or (self.every_n_steps is not None and step % self.every_n_steps == 0)


@dataclass(frozen=True)
class _Images:
    """The images of one split: what is read of them, and the class ids of each attribute (-1: not in training)."""

    table: ImageTable
    labels: Int[Tensor, "sample target"]


Accuracies = dict[str, dict[str, float]]
"""Cell name -> attribute -> accuracy on the validation images."""


class TrainingProbes(Callback):
    """Measures and logs probing accuracy during a training, without any influence on it.

    Features are read under the empty condition, with noise that is fixed for each image; a linear classifier is fitted
    in closed form to those of training images. Accuracies are logged as `probe/ATTRIBUTE/TAP@tTIMESTEP`, become
    `records` of the module, and are written to `probes.csv`. They are part of the checkpoint.

    Args:
        config: what is probed, and when.
        random_start: whether step 0 has random weights, and so is a control.
    """

    def __init__(self, config: TrainingProbesConfig, *, random_start: bool) -> None:
        self.config, self.random_start = config, random_start
        self.curve: dict[int, Accuracies] = {}
        self._right: dict[int, dict[str, Tensor]] = {}
        self._splits: tuple[_Images, _Images] | None = None
        self._latents: tuple[Tensor, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the curve so far, with the images that were classified rightly at each step."""
        return {"curve": self.curve, "right": self._right}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a curve."""
        self.curve, self._right = dict(state_dict["curve"]), dict(state_dict["right"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure step 0.

        Raises: ConfigError for a step that is not reached, and the errors of `_open` and of reading features.
        """
        require_reached(trainer, max(self.config.steps, default=0), "probes.steps")
        require_reached(trainer, self.config.every_n_steps or 0, "probes.every_n_steps")
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Measure if the step is one to be measured."""
        if self.config.measures(trainer.global_step):
            self._measure(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step, and hand over the curves."""
        self._measure(trainer, pl_module)
        pl_module.records, pl_module.probed = self.records(trainer.datamodule.train, trainer.datamodule.val)
        with atomic_file(run_folder(trainer) / CURVES) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=["attribute", "tap", "timestep", "step", "accuracy"])
            writer.writeheader()
            writer.writerows(curve_rows(pl_module.records))

    def _measure(self, trainer: Any, module: Any) -> None:
        step = trainer.global_step
        if step in self.curve:  # batches whose gradients are accumulated, and the end
            return
        train, val = self._open(trainer.datamodule.train, trainer.datamodule.val)
        with tempfile.TemporaryDirectory() as folder, isolate_rng():
            save_averaged(trainer, module, Path(folder) / "pipeline")
            reader = DiffusionFeatures.from_pretrained(
                str(Path(folder) / "pipeline"), taps=self.config.taps, timesteps=self.config.timesteps,
                pool=self.config.pool, resolution=module.resolution, device=str(module.device),
            )  # fmt: skip
            if self._latents is None:
                self._latents = _encode(reader, train.table), _encode(reader, val.table)
            fitted, held_out = (
                _read(reader, latents, split.table.keys)
                for latents, split in zip(self._latents, (train, val), strict=True)
            )
            self._right[step] = {cell: self._classify(fitted[cell], held_out[cell], train, val) for cell in fitted}
        self.curve[step] = {cell: self._accuracies(right) for cell, right in self._right[step].items()}
        found = {f"probe/{attribute}/{_short(cell)}": accuracy for cell, attribute, accuracy in self._at(step)}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=step)

    def _at(self, step: int) -> list[tuple[str, str, float]]:
        return [(cell, name, value) for cell, found in self.curve[step].items() for name, value in found.items()]

    def _classify(
        self, fitted: Tensor, held_out: Tensor, train: _Images, val: _Images
    ) -> Bool[Tensor, "sample target"]:
        """Fit a classifier per attribute to the rows of one cell; return which of the others it classifies rightly."""
        n_classes = (train.labels.amax(0) + 1).tolist()
        predicted: Tensor = ridge_predictions(fitted, train.labels, held_out, n_classes=n_classes)
        return predicted == val.labels

    def _accuracies(self, right: Bool[Tensor, "sample target"]) -> dict[str, float]:
        return dict(zip(self.config.attributes, right.double().mean(0).tolist(), strict=True))

    def _open(self, train: ImageTable, val: ImageTable) -> tuple[_Images, _Images]:
        """Draw the images of both splits, of those that have all attributes; the same in every run.

        Raises: UnknownName for an attribute that no image has; EmptyClass if no image has all, or all have one value.
        """
        if self._splits is None:
            names = self.config.attributes
            chosen = [
                _draw(table, names, n, split)
                for table, n, split in ((train, self.config.n_train, "train"), (val, self.config.n_val, "val"))
            ]
            values = {name: sorted({sample[name] for sample in chosen[0].attributes}) for name in names}
            constant = [name for name, found in values.items() if len(found) < 2]
            if constant:
                raise EmptyClass(f"probes.attributes: all images that are fitted to have one value of {constant[0]}.")
            first, second = (_Images(table, _labels(table, values)) for table in chosen)
            self._splits = first, second
        return self._splits

    def records(self, train: ImageTable, val: ImageTable) -> tuple[list[MetricRecord], ProbedImages]:
        """Return one record per cell and attribute, with the last accuracy, its controls and the curve, and the images.

        Controls: `random_weights`, step 0; `raw_pixels`, the same classifier on images of 16 x 16; `chance`, the share
        of the value that is most frequent among the training images.
        """
        fitted, held_out = self._open(train, val)
        right_by_pixels = self._pixels(fitted, held_out)
        pixels = self._accuracies(right_by_pixels)
        steps = sorted(self.curve)
        found = []
        for cell, attribute, accuracy in self._at(steps[-1]):
            target = self.config.attributes.index(attribute)
            most = Counter(fitted.labels[:, target].tolist()).most_common(1)[0][0]
            chance = float((held_out.labels[:, target] == most).double().mean())
            curve = [self.curve[step][cell][attribute] for step in steps]
            random_weights = {"random_weights": curve[0]} if self.random_start else {}
            found.append(
                MetricRecord(
                    name="accuracy", value=accuracy, split="val", n=len(held_out.table), cell=cell, target=attribute,
                    probe="ridge", controls={**random_weights, "raw_pixels": pixels[attribute], "chance": chance},
                    detail={"steps": steps, "curve": curve},
                )
            )  # fmt: skip
        names = self.config.attributes
        right = {
            (cell, name): torch.stack([self._right[step][cell][:, target] for step in steps]).numpy()
            for cell in self._right[steps[-1]]
            for target, name in enumerate(names)
        }
        by_pixels = {name: right_by_pixels[:, target].numpy() for target, name in enumerate(names)}
        groups = held_out.table.groups(self.config.group_by)
        return found, ProbedImages(groups=groups, steps=steps, right=right, raw_pixels=by_pixels)

    def _pixels(self, train: _Images, val: _Images) -> Bool[Tensor, "sample target"]:
        side = train.table.images.shape[-1]
        reader = DiffusionFeatures.from_pretrained(
            "pixels", taps=["pixels"], timesteps=[0], resolution=side, device="cpu"
        )
        rows = [_read(reader, _encode(reader, split.table), split.table.keys) for split in (train, val)]
        (cell,) = rows[0]
        return self._classify(rows[0][cell], rows[1][cell], train, val)


def curve_rows(records: Sequence[MetricRecord]) -> list[dict[str, str | int | float]]:
    """Return a row per attribute, tap, timestep and measured step."""
    rows: list[dict[str, str | int | float]] = []
    for record in records:
        cell = Cell.parse(record.cell or "")
        for step, accuracy in zip(record.detail["steps"], record.detail["curve"], strict=True):
            rows.append(
                {"attribute": record.target or "", "tap": cell.tap, "timestep": cell.timestep, "step": step,
                 "accuracy": accuracy}
            )  # fmt: skip
    return rows


def _short(cell: str) -> str:
    parsed = Cell.parse(cell)
    return f"{parsed.tap}@t{parsed.timestep}"


def _draw(table: ImageTable, names: Sequence[str], n: int, split: str) -> ImageTable:
    known = sorted({name for sample in table.attributes for name in sample})
    for name in names:
        if name not in known:
            raise unknown("attribute of probes.attributes", name, known)
    rows = [row for row, sample in enumerate(table.attributes) if all(name in sample for name in names)]
    if not rows:
        raise EmptyClass(f"probes.attributes: no image of split '{split}' has all of {', '.join(names)}.")
    generator = torch.Generator().manual_seed(derive_seed("probed images", split))
    return table.take(torch.tensor(rows)[torch.randperm(len(rows), generator=generator)[:n]])


def _labels(table: ImageTable, values: Mapping[str, Sequence[str]]) -> Int[Tensor, "sample target"]:
    numbers = {name: {value: i for i, value in enumerate(found)} for name, found in values.items()}
    return torch.tensor(
        [[numbers[name].get(sample[name], -1) for name in values] for sample in table.attributes], dtype=torch.long
    )


def _encode(reader: DiffusionFeatures, table: ImageTable) -> Float[Tensor, "sample c h w"]:
    return torch.cat([reader.encode(table.to_float(rows)).cpu() for rows in torch.arange(len(table)).split(_BATCH)])


def _read(reader: DiffusionFeatures, latents: Tensor, keys: Sequence[str]) -> dict[str, Float[Tensor, "sample d_in"]]:
    parts = [
        {
            cell: values.cpu()
            for cell, values in reader.from_latents(latents[i : i + _BATCH], keys=keys[i : i + _BATCH]).items()
        }
        for i in range(0, len(latents), _BATCH)
    ]
    return {cell: torch.cat([part[cell] for part in parts]) for cell in parts[0]}
