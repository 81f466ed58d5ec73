"""DirectionModule: directions by closed form or by gradient, and how well each separates held-out samples.

Closed-form estimates come from float64 sums over the training set, so they are the same for any number of processes;
they need `trainer.validate` and `trainer.test` only. The logistic direction is trained by `trainer.fit`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.result import MetricRecord
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics.auroc import Auroc
from diffprobe.metrics.label_collector import LabelCollector
from diffprobe.metrics.moments import Moments, RunningMoments
from diffprobe.probes.direction import ContrastPair, Direction, DirectionConfig, class_means, random_directions
from diffprobe.probes.direction.logistic import LogisticDirections
from diffprobe.probes.shuffled_labels import ShuffledLabels, hash_keys
from diffprobe.training.module import ProbeModule, check_finite_loss, labels_of, require_finite, vectors

TRAINED = ("logistic",)


class DirectionModule(ProbeModule):
    """Estimates a direction for each axis, beside two controls: random directions and shuffled training labels.

    Columns of every estimate: the true labels first, then `n_shuffles` permutations of them over the training samples
    of the axis. A random direction is turned so that it points to the positive end on the training set, as an
    estimate does; otherwise it would be right half of the time by sign alone.

    Args:
        name: the estimator, a file of probes/direction.
        estimate: its `estimate(moments, config)`; None for the trained one.
        needs_gram: whether it needs the sum of x x^T.
        config: its settings.
        axes: what to find.
        widths: cell name -> d_in.
        settings, seed: see `ProbeModule`. The seed fixes both controls. For a trained direction gradient_clip must be off:
            the joint norm would tie it to its controls.
    """

    default_learning_rate = 1e-2

    def __init__(
        self,
        name: str,
        config: DirectionConfig,
        *,
        estimate: Any,
        needs_gram: bool,
        axes: Sequence[ContrastPair],
        widths: dict[str, int],
        settings: TrainerConfig,
        seed: int = 0,
    ) -> None:
        super().__init__(settings, seed=seed)
        if name in TRAINED and settings.gradient_clip is not None:
            raise ConfigError(
                "gradient_clip ties the directions and their controls to each other.", fix="leave it unset"
            )
        self.name, self.config, self.axes, self.widths = name, config, list(axes), widths
        self._estimate, self._needs_gram = estimate, needs_gram
        n_columns = 1 + config.n_shuffles
        trained = self.axes if name in TRAINED else []
        self._models = nn.ModuleList([LogisticDirections(widths[axis.cell], n_columns) for axis in trained])
        n_scores = n_columns + config.n_random
        self._areas = nn.ModuleDict(
            {split: nn.ModuleList([Auroc(n_scores) for _ in self.axes]) for split in ("val", "test")}
        )
        self.scores: dict[str, list[dict[str, Any]]] = {}
        self._moments: list[Moments] = []
        self._closed: list[Tensor] = []
        self._shuffled: list[list[ShuffledLabels]] = []
        self._columns: list[Tensor] = []

    @property
    def is_trained(self) -> bool:
        """Whether there is something for `trainer.fit` to do."""
        return len(self._models) > 0

    @property
    def models(self) -> list[LogisticDirections]:
        """The trained estimates, one an axis; none for closed forms."""
        return cast(list[LogisticDirections], list(self._models))

    def areas(self, split: str) -> list[Auroc]:
        """The areas on one split, one an axis."""
        return cast(list[Auroc], list(cast(nn.ModuleList, self._areas[split])))

    def prepare(self) -> None:
        """Permute the training labels, sum over the training set, and estimate what has a closed form."""
        self._shuffle()
        n_columns = 1 + self.config.n_shuffles
        running = [
            RunningMoments(self.widths[axis.cell], n_columns, gram=self._needs_gram).to(self.device)
            for axis in self.axes
        ]
        for batch in self.batches(self.train_split):
            require_finite(batch, self.widths)
            hashes = hash_keys(batch.keys)
            for i, axis in enumerate(self.axes):
                known, sides = self._sides(i, batch, hashes)
                running[i].update(vectors(batch, axis.cell)[known], sides)
        self._moments = [sums.compute() for sums in running]
        for axis, sums in zip(self.axes, self._moments, strict=True):
            self._check_ends(axis, sums)
        if self.is_trained:
            for model, sums in zip(self.models, self._moments, strict=True):
                model.standardise(sums.mean, sums.variance)
        else:
            self._closed = [self._estimate(sums, self.config) for sums in self._moments]

    def _shuffle(self) -> None:
        keyed = LabelCollector(len(self.axes)).to(self.device)
        for batch in self.raw_batches(self.train_split):
            sides = torch.stack([axis.side(labels_of(batch, axis.target)) for axis in self.axes], dim=1)
            keyed.update(hash_keys(batch.keys).to(self.device), sides.to(self.device))
        hashes, sides = (part.cpu() for part in keyed.compute())
        self._shuffled = [
            [
                ShuffledLabels(hashes, side, seed=self.seed, target=axis.target, draw=draw)
                for draw in range(self.config.n_shuffles)
            ]
            for axis, side in zip(self.axes, sides.T, strict=True)
        ]

    def _check_ends(self, axis: ContrastPair, sums: Moments) -> None:
        n_positive = int(sums.y[0])
        if n_positive == 0 or n_positive == sums.n:
            raise EmptyClass(
                f"target '{axis.target}': the training set has {n_positive} samples of '{axis.positive}' and "
                f"{sums.n - n_positive} of '{axis.negative}'; both ends need one."
            )

    def _sides(self, i: int, batch: FeatureBatch, hashes: Tensor) -> tuple[Tensor, Tensor]:
        """Return which samples lie on axis i, and their 0/1 sides: true, then shuffled."""
        true = self.axes[i].side(labels_of(batch, self.axes[i].target))
        known = true >= 0
        columns = [true, *(shuffled.of(hashes).to(true.device) for shuffled in self._shuffled[i])]
        return known, torch.stack(columns, dim=1)[known]

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the sum of the columns' mean logistic losses over the joint batch of all processes."""
        hashes = hash_keys(batch.keys)
        sided = [self._sides(i, batch, hashes) for i in range(len(self.axes))]
        n = self.sum_over_processes(torch.stack([known.sum() for known, _ in sided]))
        weights = self.trainer.world_size / n.clamp(min=1)
        loss = torch.zeros((), device=self.device)
        for axis, model, (known, sides), weight in zip(self.axes, self.models, sided, weights, strict=True):
            logits = model(vectors(batch, axis.cell))[known].float()
            loss = loss + weight * F.binary_cross_entropy_with_logits(logits, sides.float(), reduction="sum")
        check_finite_loss(loss.detach(), batch, list(self.widths))
        mean = loss.detach() / (len(self.axes) * (1 + self.config.n_shuffles))
        self.log("train/loss", mean, batch_size=len(batch), prog_bar=True)
        return loss

    def _refresh(self) -> None:
        """Line up the unit vectors of each axis: estimate, shuffled ones, random ones."""
        self._columns = []
        for i in range(len(self.axes)):
            found = self.models[i].directions() if self.is_trained else self._closed[i]
            above, below = class_means(self._moments[i])
            random = random_directions(len(found), self.config.n_random, seed=self.seed).to(found)
            along = random.T @ (above - below)[:, 0]
            random = random * torch.where(along < 0, -1.0, 1.0)
            unit = found / found.norm(dim=0, keepdim=True).clamp(min=1e-300)
            self._columns.append(torch.cat([unit, random], dim=1))

    def on_validation_epoch_start(self) -> None:
        """Take the directions as they are now."""
        self._refresh()

    def on_test_epoch_start(self) -> None:
        """Take the directions as they are now."""
        self._refresh()

    def _project(self, batch: FeatureBatch, split: str) -> None:
        require_finite(batch, self.widths)
        for axis, columns, area in zip(self.axes, self._columns, self.areas(split), strict=True):
            side = axis.side(labels_of(batch, axis.target))
            x = vectors(batch, axis.cell)[side >= 0].double()
            area.update(x @ columns.to(x), side[side >= 0] == 1)

    def validation_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Project validation samples."""
        self._project(batch, "val")

    def test_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Project test samples."""
        self._project(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Compute and log the areas."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Compute and log the areas."""
        self._finish("test")

    def _finish(self, split: str) -> None:
        self.scores[split] = [
            self._area(axis, area, split) for axis, area in zip(self.axes, self.areas(split), strict=True)
        ]
        names = [f"{split}/auroc/{axis.cell}/{axis.target}" for axis in self.axes]
        self.log_scores({name: score["auroc"] for name, score in zip(names, self.scores[split], strict=True)})

    def _area(self, axis: ContrastPair, area: Auroc, split: str) -> dict[str, Any]:
        with area.sync_context():
            n_positive, n_negative = area.counts
        if min(n_positive, n_negative) == 0:
            raise EmptyClass(
                f"split '{split}' has {n_positive} samples of '{axis.positive}' and {n_negative} of '{axis.negative}' "
                f"(target '{axis.target}'); an area under the curve needs both."
            )
        values = area.compute()
        area.reset()
        shuffled, random = values[1:].split([self.config.n_shuffles, self.config.n_random])
        return {
            "auroc": float(values[0]),
            "controls": {
                "chance": 0.5,
                "random_direction": float(random.mean()),
                "shuffled_labels": float(shuffled.mean()),
            },
            "spreads": {"random_direction": float(random.std()), "shuffled_labels": float(shuffled.std())},
            "n": (n_positive, n_negative),
        }

    def records(self, split: str) -> list[MetricRecord]:
        """Return the AUROC of each direction beside its controls (their means; their spreads stand in the detail)."""
        return [
            MetricRecord(
                name="auroc",
                value=score["auroc"],
                split=split,
                n=sum(score["n"]),
                cell=axis.cell,
                target=axis.target,
                probe=self.name,
                controls=score["controls"],
                detail={
                    "positive": axis.positive,
                    "negative": axis.negative,
                    "n_positive": score["n"][0],
                    "n_negative": score["n"][1],
                    "control_spread": score["spreads"],
                    "n_random": self.config.n_random,
                    "n_shuffles": self.config.n_shuffles,
                },
            )
            for axis, score in zip(self.axes, self.scores[split], strict=True)
        ]

    def directions(self) -> list[Direction]:
        """Return the estimates as artifacts, one an axis."""
        self._refresh()
        made = []
        for axis, columns, sums in zip(self.axes, self._columns, self._moments, strict=True):
            unit = columns[:, 0]
            above, below = class_means(sums)
            scale = float((above - below)[:, 0] @ unit)
            made.append(
                Direction(
                    vector=unit.float().cpu(),
                    scale=scale,
                    target=axis.target,
                    positive=axis.positive,
                    negative=axis.negative,
                    cell=axis.cell,
                    estimator=self.name,
                )
            )
        return made

    def save(self, folder: Path) -> list[Path]:
        """Write each direction to a folder of its own."""
        return [found.save(folder / found.target / found.cell.replace(":", ".")) for found in self.directions()]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig | None:
        """AdamW with a step size that falls linearly to 0; nothing for closed forms."""
        if not self.is_trained:
            return None
        decay = self.settings.weight_decay
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=decay)
        return self.schedule(optimizer, lambda progress: 1 - progress)
