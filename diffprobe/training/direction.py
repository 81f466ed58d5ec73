"""DirectionModule: directions in closed form or by gradient, and how well each separates held-out samples.

Closed-form estimates come from float64 sums over the training set, so they are the same for any number of processes;
they need `trainer.validate` and `trainer.test` only. Trained ones need `trainer.fit`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.column_names import path_part
from diffprobe.core.errors import ConfigError, DiffprobeError, EmptyClass
from diffprobe.core.registry import probes
from diffprobe.core.result import MetricRecord
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics.auroc import Auroc
from diffprobe.metrics.label_collector import LabelCollector
from diffprobe.metrics.moments import Moments, RunningMoments, add_moments
from diffprobe.probes.direction import ContrastPair, Direction, DirectionConfig, class_means, random_directions
from diffprobe.probes.direction.base import (
    AdjustedMoments,
    ChosenPenalty,
    FoldConfig,
    NuisanceConfig,
    is_adjusted,
    is_cross_validated,
    is_trained,
)
from diffprobe.probes.grouped_folds import grouped_folds
from diffprobe.probes.null_distribution import Null
from diffprobe.probes.predictions import KeptHead
from diffprobe.probes.shuffled_labels import ShuffledLabels, hash_keys
from diffprobe.training.module import ProbeModule, check_finite_loss, labels_of, require_finite, vectors

DRAWN = ("shuffled_labels", "random_direction")
"""The controls of a direction that are distributions, in the order of their columns."""


class TrainedDirections(Protocol):
    """What the `make` of a trained estimator returns, besides an nn.Module."""

    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_columns"]:
        """Return the log-odds of the positive end, for features in their own unit."""

    def standardise(self, mean: Float[Tensor, " d_in"], variance: Float[Tensor, " d_in"]) -> None:
        """Set the mean and variance of the training set."""

    def directions(self) -> Float[Tensor, "d_in n_columns"]:
        """Return the directions in the unit of the features, float64."""


class _NuisanceSums:
    """Sums over the nuisances of one axis: a 0/1 column per value, and one for samples without a value.

    Args:
        axis: the contrast pair; its own target is not a nuisance.
        sizes: attribute -> number of its values.
        d_in, n_columns: width of the features, and number of label columns.
    """

    def __init__(self, axis: ContrastPair, sizes: Mapping[str, int], d_in: int, n_columns: int) -> None:
        self._sizes = {name: n + 1 for name, n in sizes.items() if name != axis.target}
        n_nuisances = sum(self._sizes.values())
        self._cross = RunningMoments(d_in, n_nuisances)
        self._design = RunningMoments(n_nuisances, n_columns, gram=True)

    def to(self, device: torch.device) -> None:
        self._cross, self._design = self._cross.to(device), self._design.to(device)

    def update(self, batch: FeatureBatch, known: Tensor, x: Tensor, sides: Tensor) -> None:
        """Add the samples of an axis: their features and 0/1 label columns; `known` says which of the batch."""
        columns = []
        for name, n in self._sizes.items():
            values = labels_of(batch, name)[known].to(x.device)
            columns.append(F.one_hot(torch.where(values < 0, n - 1, values), n))
        nuisances = torch.cat(columns, dim=1)
        self._cross.update(x, nuisances)
        self._design.update(nuisances.double(), sides)

    def compute(self, labels: Moments) -> AdjustedMoments:
        return AdjustedMoments(labels, self._cross.compute(), self._design.compute())


class DirectionModule(ProbeModule):
    """Estimates a direction for each axis, beside two controls: random directions and shuffled training labels.

    Columns of every estimate: the true labels first, then `n_shuffles` permutations of them over the training samples
    of the axis. A random direction is flipped so that it points to the positive end on the training set, as an estimate
    does; otherwise its AUROC would be below one half in half of the draws.

    Args:
        name: the estimator, a file of `probes/direction`.
        config: its settings.
        axes: the contrast pairs.
        widths: cell name -> d_in.
        nuisances: attribute -> number of its values, of an estimator that adjusts for them.
        settings, seed: see `ProbeModule`. The seed fixes both controls. For a trained direction gradient_clip must be
            unset: the joint norm would couple it to its controls.

    Raises: UnknownName for an unknown estimator, ConfigError for gradient_clip.
    """

    default_learning_rate = 1e-2

    def __init__(
        self,
        name: str,
        config: DirectionConfig,
        *,
        axes: Sequence[ContrastPair],
        widths: dict[str, int],
        settings: TrainerConfig,
        seed: int = 0,
        nuisances: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(settings, seed=seed)
        self._nuisances = dict(nuisances or {})
        self._is_adjusted = is_adjusted(name)
        self._file, self.is_trained = probes("direction").load(name), is_trained(name)
        if self.is_trained and settings.gradient_clip is not None:
            raise ConfigError("gradient_clip couples the directions to their controls.", fix="leave it unset")
        self.name, self.config, self.axes, self.widths = name, config, list(axes), widths
        for axis in self.axes if self._is_adjusted else ():
            if set(cast(NuisanceConfig, config).nuisances) <= {axis.target}:
                raise ConfigError(
                    f"target '{axis.target}' has no nuisance but itself.", fix="probe.params.nuisances=[A]"
                )
        n_columns = 1 + config.n_shuffles
        trained = self.axes if self.is_trained else []
        self._models = nn.ModuleList([self._file.make(config, widths[axis.cell], n_columns) for axis in trained])
        n_scores = n_columns + config.n_random
        self._areas = nn.ModuleDict(
            {split: nn.ModuleList([Auroc(n_scores) for _ in self.axes]) for split in ("val", "test")}
        )
        self.scores: dict[str, list[dict[str, Any]]] = {}
        self._moments: list[Moments] = []
        self._closed: list[Tensor] = []
        self._shuffled: list[ShuffledLabels] = []
        self._columns: list[Tensor] = []
        self._is_cross_validated = is_cross_validated(name)
        self._folds: list[dict[int, int]] = []  # of each axis: hash of a key -> fold
        self._chosen: list[dict[str, Any]] = [{} for _ in self.axes]

    @property
    def seed_varies(self) -> tuple[str, ...]:
        """Both controls, and for a trained direction, which starts at zero, the order of the samples."""
        return (*(["order"] if self.is_trained else []), "shuffled_labels", "random_direction")

    @property
    def _cv(self) -> FoldConfig:
        """The settings of an estimator with cross-validation."""
        return cast(FoldConfig, self.config)

    @property
    def models(self) -> list[TrainedDirections]:
        """The trained estimates, one per axis; none for closed forms."""
        return cast(list[TrainedDirections], list(self._models))

    def areas(self, split: str) -> list[Auroc]:
        """The areas under the ROC curve on one split, one per axis."""
        return cast(list[Auroc], list(cast(nn.ModuleList, self._areas[split])))

    def prepare(self) -> None:
        """Permute the training labels, sum over the training set, and compute closed-form estimates."""
        self._shuffle()
        n_columns = 1 + self.config.n_shuffles
        n_parts = self._cv.folds if self._is_cross_validated else 1
        running = [
            [
                RunningMoments(self.widths[axis.cell], n_columns, gram=self._file.NEEDS_GRAM).to(self.device)
                for _ in range(n_parts)
            ]
            for axis in self.axes
        ]
        adjusted = [
            _NuisanceSums(axis, self._nuisances, self.widths[axis.cell], n_columns)
            for axis in (self.axes if self._is_adjusted else ())
        ]
        for nuisance_sums in adjusted:
            nuisance_sums.to(self.device)
        for batch in self.batches(self.train_split):
            require_finite(batch, self.widths)
            hashes = hash_keys(batch.keys)
            for i, axis in enumerate(self.axes):
                known, sides = self._sides(i, batch, hashes)
                x = vectors(batch, axis.cell)[known]
                for part, rows in self._parts(i, hashes[known.to(hashes.device)]):
                    running[i][part].update(x[rows], sides[rows])
                if self._is_adjusted:
                    adjusted[i].update(batch, known, x, sides)
        parts = [[sums.compute() for sums in of_axis] for of_axis in running]
        self._moments = [of_axis[0] if len(of_axis) == 1 else reduce(add_moments, of_axis) for of_axis in parts]
        for axis, sums in zip(self.axes, self._moments, strict=True):
            self._check_ends(axis, sums)
        if self.is_trained:
            for model, sums in zip(self.models, self._moments, strict=True):
                model.standardise(sums.mean, sums.variance)
        elif self._is_adjusted:
            self._closed = [
                self._file.estimate_adjusted(part.compute(sums), self.config)
                for part, sums in zip(adjusted, self._moments, strict=True)
            ]
        elif self._is_cross_validated:
            found = [self._file.estimate_cv(of_axis, self.config) for of_axis in parts]
            self._closed = [columns for columns, _ in found]
            self._chosen = [self._describe(chosen) for _, chosen in found]
        else:
            self._closed = [self._file.estimate(sums, self.config) for sums in self._moments]

    def _parts(self, i: int, hashes: Tensor) -> Sequence[tuple[int, Tensor | slice]]:
        """Return each fold of axis i with the positions of its samples among these; all of them without folds."""
        if not self._is_cross_validated:
            return [(0, slice(None))]
        fold = torch.tensor([self._folds[i][key] for key in hashes.tolist()], dtype=torch.int64, device=self.device)
        return [(k, (fold == k).nonzero().flatten()) for k in range(self._cv.folds)]

    def _describe(self, chosen: list[ChosenPenalty]) -> dict[str, Any]:
        """Return how the penalty of the labels, and those of the permutations, were chosen."""
        real, *shuffled = chosen
        return {
            "alpha": real.alpha,
            "alpha_at_edge": real.at_edge,
            "alphas": list(real.path),
            "cv_squared_error": list(real.errors),
            "cv_folds": self._cv.folds,
            "group": self.group_by,
            "control_alpha": {f"{alpha:g}": n for alpha, n in sorted(Counter(one.alpha for one in shuffled).items())},
        }

    def _shuffle(self) -> None:
        keyed = LabelCollector(len(self.axes) + 1).to(self.device)
        for batch in self.raw_batches(self.train_split):
            columns = [*(axis.side(labels_of(batch, axis.target)) for axis in self.axes), self.group_ids(batch)]
            sides = torch.stack(columns, dim=1)
            keyed.update(hash_keys(batch.keys).to(self.device), sides.to(self.device))
        hashes, sides = (part.cpu() for part in keyed.compute())
        *columns, group = sides.T
        self._shuffled = [
            ShuffledLabels(
                hashes, side, group=group, group_by=self.group_by, seed=self.seed, target=axis.target,
                n_draws=self.config.n_shuffles,
            )
            for axis, side in zip(self.axes, columns, strict=True)
        ]  # fmt: skip
        if self._is_cross_validated:
            self._folds = [self._fold(axis, hashes, side, group) for axis, side in zip(self.axes, columns, strict=True)]

    def _fold(self, axis: ContrastPair, hashes: Tensor, side: Tensor, group: Tensor) -> dict[int, int]:
        """Return the fold of each sample of an axis by the hash of its key; whole groups are in one fold.

        Raises: ConfigError for fewer groups than folds, EmptyClass for an end that is in one fold alone.
        """
        keys = hashes.tolist()
        # a sample without a value of the group is a group of its own
        names = [f"sample {key}" if g < 0 else f"group {g}" for key, g in zip(keys, group.tolist(), strict=True)]
        try:
            found = grouped_folds(names, side.numpy(), n_folds=self._cv.folds, seed=self._cv.fold_seed).fold
        except DiffprobeError as error:
            where = f"target '{axis.target}', groups by '{self.group_by}'"
            raise type(error)(f"{where}: {error.what}", *error.details, fix=error.fix) from error
        return dict(zip(keys, found.tolist(), strict=True))

    def _check_ends(self, axis: ContrastPair, sums: Moments) -> None:
        n_positive = int(sums.y[0])
        if n_positive == 0 or n_positive == sums.n:
            raise EmptyClass(
                f"target '{axis.target}': the training set has {n_positive} samples of '{axis.positive}' and "
                f"{sums.n - n_positive} of '{axis.negative}'; both ends need one."
            )

    def _sides(self, i: int, batch: FeatureBatch, hashes: Tensor) -> tuple[Tensor, Tensor]:
        """Return which samples are on axis i, and their 0/1 sides: true, then shuffled."""
        true = self.axes[i].side(labels_of(batch, self.axes[i].target))
        known = true >= 0
        shuffled = self._shuffled[i].draws_of(hashes).to(true.device)
        return known, torch.cat([true[:, None], shuffled], dim=1)[known]

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the sum over columns of the mean logistic loss over the joint batch of all processes."""
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
        """Collect the unit vectors of each axis: the estimate, those of shuffled labels, random ones.

        The Trainer moves parameters and buffers back from a GPU when it ends; the sums stay where they were made.
        """
        self._columns = []
        for i in range(len(self.axes)):
            found = (self.models[i].directions() if self.is_trained else self._closed[i]).to(
                self._moments[i].mean.device
            )
            above, below = class_means(self._moments[i])
            random = random_directions(len(found), self.config.n_random, seed=self.seed).to(found)
            along = random.T @ (above - below)[:, 0]
            random = random * torch.where(along < 0, -1.0, 1.0)
            unit = found / found.norm(dim=0, keepdim=True).clamp(min=1e-300)
            self._columns.append(torch.cat([unit, random], dim=1))

    def on_validation_epoch_start(self) -> None:
        """Collect the current directions."""
        self._refresh()

    def on_test_epoch_start(self) -> None:
        """Collect the current directions."""
        self._refresh()

    def score(self, batch: FeatureBatch, split: str) -> None:
        """Project the samples of a batch. Raises: NonFinite."""
        require_finite(batch, self.widths)
        kept: list[dict[str, Tensor]] = []
        n_shuffles, n_random = self.config.n_shuffles, self.config.n_random
        for axis, columns, area in zip(self.axes, self._columns, self.areas(split), strict=True):
            side = axis.side(labels_of(batch, axis.target))
            x = vectors(batch, axis.cell).double()
            scores = x @ columns.to(x)
            area.update(scores[side >= 0], side[side >= 0] == 1)
            own, shuffled, random = scores.split([1, n_shuffles, n_random], dim=1)
            kept += [{"scores": own[:, 0]}, {"scores": shuffled}, {"scores": random}]
        if self.keeps(split):
            self.keep(batch, split, kept)

    def kept_heads(self) -> list[KeptHead]:
        """Return each direction, followed by its two controls."""
        draws = {"none": 1, "shuffled_labels": self.config.n_shuffles, "random_direction": self.config.n_random}
        return [
            KeptHead(
                kind="axis",
                probe=self.name,
                cell=axis.cell,
                target=axis.target,
                control=control,
                draws=n,
                positive=axis.positive,
                negative=axis.negative,
                positive_ids=axis.positive_ids,
                negative_ids=axis.negative_ids,
            )
            for axis in self.axes
            for control, n in draws.items()
        ]

    def finish_heads(self, split: str, heads: list[KeptHead], tensors: dict[str, Tensor]) -> list[KeptHead]:
        """Standardise the draws of each control over the split, so that 16 bits keep their order."""
        for i, head in enumerate(heads):
            if head.control != "none":
                scores = tensors[f"scores.{i}"].double()
                spread = scores.std(0, unbiased=False)
                standard = (scores - scores.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread))
                tensors[f"scores.{i}"] = standard.half()
        return heads

    def finish(self, split: str) -> None:
        """Compute and log the areas. Raises: EmptyClass for an end without samples."""
        self.scores[split] = [
            self._area(axis, area, shuffled, split)
            for axis, area, shuffled in zip(self.axes, self.areas(split), self._shuffled, strict=True)
        ]
        names = [f"{split}/auroc/{axis.cell}/{path_part(axis.target)}" for axis in self.axes]
        self.log_scores({name: score["auroc"] for name, score in zip(names, self.scores[split], strict=True)})

    def _area(self, axis: ContrastPair, area: Auroc, shuffled: ShuffledLabels, split: str) -> dict[str, Any]:
        with area.sync_context():
            n_positive, n_negative = area.counts
        if min(n_positive, n_negative) == 0:
            raise EmptyClass(
                f"split '{split}' has {n_positive} samples of '{axis.positive}' and {n_negative} of '{axis.negative}' "
                f"(target '{axis.target}'); an area under the curve needs both."
            )
        values = area.compute()
        area.reset()
        drawn = dict(zip(DRAWN, values[1:].split([self.config.n_shuffles, self.config.n_random]), strict=True))
        nulls = {
            name: Null(
                observed=float(values[0]), values=found.cpu().double().numpy(), n_permutations=len(found),
                n_distinct=shuffled.permutation.n_distinct if name == "shuffled_labels" else math.inf,
            )
            for name, found in drawn.items()
        }  # fmt: skip
        how = shuffled.describe()
        return {
            "auroc": float(values[0]),
            "controls": {"chance": 0.5, **{name: float(found.mean()) for name, found in drawn.items()}},
            "spreads": {name: float(found.std()) for name, found in drawn.items()},
            "nulls": {
                name: null.describe() | (how if name == "shuffled_labels" else {}) for name, null in nulls.items()
            },
            "n": (n_positive, n_negative),
        }

    def records(self, split: str) -> list[MetricRecord]:
        """Return the AUROC of each direction beside the means of its controls.

        `detail` has their spreads (`control_spread`) and, of both controls as distributions, what `Null.describe`
        returns (`control_nulls`), with the way in which labels were shuffled (`ShuffledLabels.describe`).
        """
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
                    "control_nulls": score["nulls"],
                    "n_random": self.config.n_random,
                    "n_shuffles": self.config.n_shuffles,
                    **chosen,
                },
            )
            for axis, score, chosen in zip(self.axes, self.scores[split], self._chosen, strict=True)
        ]

    def directions(self) -> list[Direction]:
        """Return the estimates as artifacts, one per axis."""
        self._refresh()
        return [
            Direction.of(
                columns[:, 0],
                sums,
                target=axis.target,
                positive=axis.positive,
                negative=axis.negative,
                cell=axis.cell,
                estimator=self.name,
            )
            for axis, columns, sums in zip(self.axes, self._columns, self._moments, strict=True)
        ]

    def save(self, folder: Path) -> list[Path]:
        """Write each direction to a folder of its own."""
        return [
            found.save(folder / path_part(found.target) / found.cell.replace(":", ".")) for found in self.directions()
        ]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig | None:
        """AdamW with a step size that falls linearly to 0; nothing for closed forms."""
        return self.falling_adamw() if self.is_trained else None
