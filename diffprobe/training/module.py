"""The base of all probe modules: exact passes over a split, evaluation hooks, sums over processes, step size."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite, RunFailed, unknown
from diffprobe.core.groups import SINGLE_SAMPLES
from diffprobe.core.result import MetricRecord
from diffprobe.features.batch import FeatureBatch
from diffprobe.probes.predictions import LABEL, KeptHead, Predictions, layout_of
from diffprobe.training.prediction_collector import PredictionCollector
from diffprobe.training.sae_rows import ShuffleBuffer

SHUFFLE_BUFFERS = "shuffle_buffers"
"""Key of a checkpoint that holds the row buffers, by the names of their modules."""
KEPT_SPLITS = ("val", "test")
"""Splits whose predictions are kept: those that a probe was not trained on."""


class ProbeModule(lightning.LightningModule):
    """Base class of the LightningModules of probes.

    A subclass implements `training_step` and `configure_optimizers` (if it has anything to train), `score`, `finish`,
    `records` and `save`, and optionally `prepare`. Statistics of the training set are computed once, exactly, before
    the first step or evaluation (`prepare`): each sample counts once for any number of processes, although training
    batches may repeat some so that all processes have equally many.

    Evaluations after training (`trainer.validate`, `trainer.test`) keep the predictions of each sample for which
    `score` calls `keep`; they are in `predictions` afterwards.

    Args:
        settings: step size, weight decay and the like.
        seed: seed of the probe.
    """

    default_learning_rate = 1e-3
    scores_training_set = False
    """Whether a test run scores the training set with the final weights too."""
    saving_note = ""
    """What the line "saving: probe and result" adds; for a probe whose files can be large."""
    scores: dict[str, Any]
    """Split -> the result of its evaluation."""

    def __init__(self, settings: TrainerConfig, *, seed: int) -> None:
        super().__init__()
        self.settings, self.seed = settings, seed
        self.predictions: dict[str, Predictions] = {}
        self._kept: dict[str, PredictionCollector] = {}
        self._is_prepared = False
        self.watch_pass: Callable[[Iterable[Any], str], Iterable[Any]] = lambda batches, split: batches
        """Takes the batches of an exact pass and the split, and yields them; a progress bar puts itself here."""

    def prepare(self) -> None:
        """Compute statistics of the training set before the first step. Runs on all processes."""

    @property
    def seed_varies(self) -> tuple[str, ...]:
        """What the seed of the run changes: "start" (initial weights), "order" (of the samples in an epoch),
        "shuffled_labels", "random_direction".
        """
        return ("start", "order")

    @property
    def seed_counts(self) -> bool:
        """Whether anything that is measured depends on the seed, apart from the order of the samples."""
        return bool(set(self.seed_varies) - {"order"})

    @property
    def members(self) -> "Sequence[ProbeModule]":
        """The probes of a grid, in the order of its points; () for a module that is not a grid."""
        return ()

    def score(self, batch: FeatureBatch, split: str) -> None:
        """Add the samples of a batch to the metrics of a split: "val", "test", or "train" for `scores_training_set`."""
        raise NotImplementedError

    def finish(self, split: str) -> None:
        """Compute the scores of a split from all that `score` added, log them and keep them in `scores`."""
        raise NotImplementedError

    def records(self, split: str) -> list[MetricRecord]:
        """Return the metrics of one split after its evaluation."""
        raise NotImplementedError

    def save(self, folder: Path) -> list[Path]:
        """Write the trained probes below `folder` and return their folders."""
        raise NotImplementedError

    def save_together(self, folder: Path) -> None:
        """Write what takes all processes, before the main one calls `save` with the same folder. Runs on all."""

    def kept_heads(self) -> list[KeptHead]:
        """Return the heads whose predictions are kept, in the order in which `keep` gets them; [] for none."""
        return []

    def target_values(self) -> Mapping[str, Sequence[str]]:
        """Return the names of the values of targets, where they may differ from those of the data."""
        return {}

    def finish_heads(self, split: str, heads: list[KeptHead], tensors: dict[str, Tensor]) -> list[KeptHead]:
        """Complete what is kept of a split, once all samples are there; changes `tensors`. Runs on all processes."""
        return heads

    def keeps(self, split: str) -> bool:
        """Return whether the predictions of the samples that are scored now are kept."""
        if self._trainer is None or split not in KEPT_SPLITS:
            return False
        return self.trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING)

    def keep(self, batch: FeatureBatch, split: str, found: Sequence[Mapping[str, Tensor]]) -> None:
        """Keep the predictions of a batch.

        Args:
            batch: the samples.
            split: their split.
            found: tensors of each head (samples, ...), as `probes/predictions.py` describes them; of a control of a
                direction, its scores in their own unit.
        """
        values = self._sample_columns()
        if split not in self._kept:
            self._kept[split] = PredictionCollector(self._collected(self.kept_heads(), values))
        columns = [labels_of(batch, name).cpu() for name in values]
        named = {f"{name}.{i}": tensor for i, head in enumerate(found) for name, tensor in head.items()}
        self._kept[split].update(batch.keys, {"ids": torch.stack(columns, dim=1), **named})

    def gather_predictions(self, split: str) -> None:
        """Gather the predictions of a split over the processes into `predictions`. Collective."""
        heads = self.kept_heads()
        if not heads or not self.keeps(split):
            return
        values = self._sample_columns()
        collector = self._kept.pop(split, None) or PredictionCollector(self._collected(heads, values))
        keys, tensors = collector.compute(self.gather_over_processes, self.device)
        heads = self.finish_heads(split, heads, tensors)
        self.predictions[split] = Predictions(
            split=split, keys=keys, values=values, heads=tuple(heads), tensors=tensors
        )

    def _sample_columns(self) -> dict[str, tuple[str, ...]]:
        source = self.source
        attributes = {name: tuple(source.attributes[name]) for name in sorted(source.attributes)}
        known = {LABEL: tuple(source.classes), **attributes}
        return known | {target: tuple(names) for target, names in self.target_values().items()}

    @staticmethod
    def _collected(heads: Sequence[KeptHead], values: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Return the layout of what is collected: draws of a control in 32 bits, as they are not standardised yet."""
        layout = layout_of([replace(head, control="none") if head.kind == "axis" else head for head in heads], values)
        for i, head in enumerate(heads):
            if head.kind == "axis" and head.control != "none":
                layout[f"scores.{i}"] = (torch.float32, (head.draws,))
        return layout

    def on_fit_start(self) -> None:
        """Prepare before the first step; the weights of a resumed run are already loaded."""
        self._prepare_once()

    def on_validation_start(self) -> None:
        """Prepare if nothing was trained before."""
        self._prepare_once()

    def on_test_start(self) -> None:
        """Prepare if nothing was trained before."""
        self._prepare_once()

    def validation_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Add validation samples to the metrics."""
        self.score(batch, "val")

    def test_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Add test samples to the metrics."""
        self.score(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Compute and log the validation scores."""
        self.finish("val")
        self._gather_all("val")

    def on_test_epoch_end(self) -> None:
        """Compute and log the scores of the test set, and of the training set for `scores_training_set`."""
        self.finish("test")
        self._gather_all("test")
        if self.scores_training_set:
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                for batch in self.batches(self.train_split):
                    self.score(batch, "train")
            self.finish("train")

    def _gather_all(self, split: str) -> None:
        for part in self.members or [self]:
            part.gather_predictions(split)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the row buffers, of which each process has its share; Lightning calls this on all processes."""
        found = {name: part.shares(self.gather_over_processes) for name, part in self._shuffle_buffers()}
        if found:
            checkpoint[SHUFFLE_BUFFERS] = found

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this process's shares of the row buffers. Raises: ConfigError for another number of processes."""
        for name, part in self._shuffle_buffers():
            if name in checkpoint.get(SHUFFLE_BUFFERS, {}):
                part.place(*self.share)
                part.restore(checkpoint[SHUFFLE_BUFFERS][name])

    def _shuffle_buffers(self) -> list[tuple[str, ShuffleBuffer]]:
        return [(name, part) for name, part in self.named_modules() if isinstance(part, ShuffleBuffer)]

    @property
    def share(self) -> tuple[int, int]:
        """Number of this process's share of the samples, and of all shares: 0 and 1 where each process has all samples.

        Each process has its own share, but where processes share the latents of an autoencoder.
        """
        found = self.trainer.distributed_sampler_kwargs
        return (0, 1) if found is None else (int(found["rank"]), int(found["num_replicas"]))

    def gather_over_processes(self, values: Tensor) -> Tensor:
        """Concatenate the tensors of all processes, which have equal shapes."""
        n_parts = self.share[1]
        if n_parts == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(n_parts)]
        torch.distributed.all_gather(parts, values.detach().contiguous())  # gradients do not flow through it
        return torch.cat(parts)

    def _prepare_once(self) -> None:
        if not self._is_prepared:
            with torch.no_grad():
                self.prepare()
            self._is_prepared = True

    @property
    def source(self) -> Any:
        """The DataModule of the Trainer. Raises: RunFailed without one."""
        found = getattr(self.trainer, "datamodule", None)
        if found is None:
            raise RunFailed(
                f"{type(self).__name__} needs a DataModule for its exact pass over the training set.",
                fix="trainer.fit(module, datamodule=StoredFeatures(...))",
            )
        return found

    def raw_batches(self, split: str) -> Iterator[Any]:
        """Yield this process's share of a split, each sample once over all processes; images if features are live."""
        rank, n_parts = self.share
        loader = self.source.loader(split, shuffle=False, rank=rank, world_size=n_parts)
        yield from self.watch_pass(loader, split)

    def batches(self, split: str) -> Iterator[FeatureBatch]:
        """Yield this process's share of a split as feature batches on the probe's device."""
        for batch in self.raw_batches(split):
            yield self.trainer.strategy.batch_to_device(batch, self.device)

    @property
    def group_by(self) -> str:
        """Attribute whose samples are not independent, as the data set names it; "sample" where it names none."""
        return data_group(self.source)

    def group_ids(self, batch: Any) -> Tensor:
        """Return the group of each sample, -1 for a group of its own. Raises: UnknownName for an unknown attribute."""
        by, known = self.group_by, self.source.attributes
        if by == SINGLE_SAMPLES:
            return torch.full_like(batch.label, -1)
        if by not in known:
            raise unknown("group attribute", by, [SINGLE_SAMPLES, *known])
        return batch.attributes[by]  # type: ignore[no-any-return]

    @property
    def train_split(self) -> str:
        """Name of the split that the probe learns from."""
        return str(self.source.data.train_split)

    def sum_over_processes(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; itself in one process."""
        if self.share[1] == 1:
            return value
        return self.trainer.strategy.reduce(value.clone(), reduce_op="sum")  # type: ignore[return-value]

    def mean_over_processes(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        return self.sum_over_processes(value) / self.share[1]

    def log_scores(self, scores: dict[str, float]) -> None:
        """Log values that are already equal on all processes."""
        self.log_dict(scores, sync_dist=False, rank_zero_only=True)

    def log_at_once(self, scores: Mapping[str, float]) -> None:
        """Log many values after an evaluation, already equal on all processes: once, not value by value.

        Lightning's `log` copies all values of an epoch for each new one.
        """
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in scores.items()}
        self.trainer.callback_metrics.update(values)
        self.trainer._logger_connector.log_metrics({**values})

    @property
    def learning_rate(self) -> float:
        """Step size of the settings, or the probe's own default."""
        return self.settings.learning_rate or self.default_learning_rate

    def schedule(
        self, optimizer: torch.optim.Optimizer, factor: Callable[[float], float]
    ) -> OptimizerLRSchedulerConfig:
        """Scale the step size by `factor(progress)`, where progress runs from 0 to 1 over all steps of the run."""
        total = self._total_steps()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(min(step / total, 1.0)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def falling_adamw(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW for all parameters, with a step size that falls linearly to 0."""
        decay = self.settings.weight_decay
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=decay)
        return self.schedule(optimizer, lambda progress: 1 - progress)

    def _total_steps(self) -> int:
        # Not trainer.estimated_stepping_batches: it opens the training loader before the Trainer's own state is
        # restored, and a run that resumes in the middle of an epoch would start that epoch again.
        trainer = self.trainer
        limit = trainer.limit_train_batches
        batches = len(self.source.train_dataloader())
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        total = batches * (trainer.max_epochs or 1)
        return max(min(total, trainer.max_steps) if trainer.max_steps >= 0 else total, 1)


def data_group(source: Any) -> str:
    """Return the attribute that a DataModule's data set groups samples by; "sample" for none, or data in memory."""
    request = getattr(source, "request", None)
    return str((request and request.shard_set.group) or SINGLE_SAMPLES)


def vectors(batch: FeatureBatch, cell: str) -> Tensor:
    """Return the pooled features of one cell. Raises: ConfigError for feature maps, tokens and separate draws."""
    x = batch.features[cell]
    if x.ndim != 2:
        raise ConfigError(
            f"cell '{cell}' has values of shape {tuple(x.shape[1:])} per sample; this probe reads one vector.",
            "features.pool=none and tokensN keep places, features.keep_draws=true keeps draws",
            fix="features.pool=mean, max or gridK, and features.keep_draws=false",
        )
    return x


def labels_of(batch: Any, target: str) -> Tensor:
    """Return the class ids of `target`: the label, or an attribute; -1 where a sample has none."""
    return batch.label if target == "label" else batch.attributes[target]  # type: ignore[no-any-return]


def require_finite(batch: FeatureBatch, cells: Iterable[str]) -> None:
    """Refuse features with NaN or infinity. Raises: NonFinite, naming cell and first sample."""
    for cell in cells:
        bad = ~torch.isfinite(batch.features[cell]).flatten(1).all(1)
        if bad.any():
            key = batch.keys[int(bad.nonzero()[0])]
            raise NonFinite(f"cell '{cell}' has NaN or infinity in {int(bad.sum())} samples, the first is '{key}'.")


def check_finite_loss(loss: Tensor, batch: FeatureBatch, cells: Sequence[str]) -> None:
    """Stop at a loss of NaN or infinity. Raises: NonFinite, which names the features if they caused it."""
    if torch.isfinite(loss):
        return
    require_finite(batch, cells)
    raise NonFinite(
        f"the loss became {float(loss)} on finite features.",
        fix="a smaller trainer.learning_rate, or precision=32-true",
    )


def require_samples(n: float, *, split: str, target: str) -> None:
    """Refuse a score without samples. Raises: EmptyClass."""
    if n == 0:
        raise EmptyClass(f"no sample of split '{split}' has a value of target '{target}'.")
