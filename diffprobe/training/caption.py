"""CaptionModule: maps between captions and features, in closed form or by gradient, beside two controls.

The text encoder reads each caption once, before training. Closed forms come from float64 sums over the training set and
need `trainer.validate` and `trainer.test` only; the others need `trainer.fit`.
"""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import EmptyClass
from diffprobe.core.groups import Groups
from diffprobe.core.registry import probes
from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics.moments import Moments, RunningMoments, add_moments
from diffprobe.probes.caption import CaptionConfig, CaptionRegressor
from diffprobe.probes.caption.bag_of_words import WordVectors
from diffprobe.probes.caption.base import CAPTIONS, FoldSums
from diffprobe.probes.caption.shuffled_captions import shuffle_captions
from diffprobe.probes.grouped_folds import unlabelled_folds
from diffprobe.training.caption_scores import R2, Ratio, ScoredSplit, chance, group_intervals, score_split
from diffprobe.training.module import ProbeModule, check_finite_loss, require_finite, vectors
from diffprobe.training.prediction_collector import PredictionCollector

OWN, SHUFFLED, WORDS = VARIANTS = ("captions", "shuffled_captions", "bag_of_words")
"""What each map is fitted on: the captions, and two controls."""
TARGET = "caption"
"""Target of the records."""
_SEPARATOR = "\0"


class Encoder(Protocol):
    """The text encoder: captions to vectors."""

    name: str
    digest: str
    width: int

    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> Float[Tensor, "caption width"]:
        """Return the vectors of captions, float32 on the CPU, encoded on a device."""


class CaptionModule(ProbeModule):
    """Fits a map between captions and the features of one cell, and the same map on two controls.

    `shuffled_captions` learns from captions that were exchanged between groups; `bag_of_words` reads the words of the
    captions instead of the text encoder's vectors. The three have no parameter in common. All processes hold the
    vectors of all different captions of the training set.

    Args:
        name: the map, a file of `probes/caption`.
        config: its settings.
        cell: name of the cell.
        d_features: width of its features.
        encoder: the text encoder.
        settings, seed: see `ProbeModule`. The seed fixes initial weights, the shuffle and the bootstrap.
    """

    default_learning_rate = 1e-3

    def __init__(
        self,
        name: str,
        config: CaptionConfig,
        *,
        cell: str,
        d_features: int,
        encoder: Encoder,
        settings: TrainerConfig,
        seed: int = 0,
    ) -> None:
        super().__init__(settings, seed=seed)
        self.name, self.config, self.cell = name, config, cell
        self._file, self._encoder = probes("caption").load(name), encoder
        self.is_trained = not hasattr(self._file, "estimate_cv")
        self._maps = nn.ModuleDict(
            {
                variant: CaptionRegressor(
                    name, config, d_features, config.vocabulary if variant == WORDS else encoder.width, cell=cell,
                    text_encoder=encoder.name, text_digest=encoder.digest, seed=derive_seed("caption", seed, variant),
                )
                for variant in VARIANTS
            }
        )  # fmt: skip
        self.scores: dict[str, list[dict[str, Any]]] = {}
        self._splits: dict[str, PredictionCollector] = {}
        self._rows: dict[str, dict[str, int]] = {}  # variant -> key of a training sample -> row of its inputs
        self._inputs: dict[str, Tensor] = {}  # variant -> vectors of the different captions
        self._shares: Tensor = torch.zeros(0)
        self._chosen: dict[str, Any] = {}
        self._words: WordVectors | None = None
        self._encoded: dict[str, tuple[list[str], Tensor, Tensor]] = {}  # split -> captions, vectors, words

    @property
    def seed_varies(self) -> tuple[str, ...]:
        """The shuffled captions, and of a trained map initial weights and the order of the samples."""
        return (*(["start", "order"] if self.is_trained else []), "shuffled_captions")

    @property
    def regressor(self) -> CaptionRegressor:
        """The map that was fitted on the captions."""
        return self.map_of(OWN)

    def map_of(self, variant: str) -> CaptionRegressor:
        """Return the map of one of `VARIANTS`."""
        return cast(CaptionRegressor, self._maps[variant])

    def prepare(self) -> None:
        """Encode the captions of the training set, sum over its features, and compute closed-form maps.

        Raises: EmptyClass without captions or with one alone; ConfigError for fewer groups than folds; NonFinite.
        """
        keys, captions, groups = self._training_captions()
        different = sorted(set(captions))
        self._words = WordVectors(captions, width=self.config.vocabulary)
        text, words = self._encoder(different, self.device), self._words(different)
        self._inputs = {OWN: text, SHUFFLED: text, WORDS: words}
        row = {caption: i for i, caption in enumerate(different)}
        own = np.array([row[caption] for caption in captions], dtype=np.int64)
        seed = derive_seed("shuffled_captions", self.seed)
        rows = {OWN: own, SHUFFLED: shuffle_captions(own, groups, seed=seed), WORDS: own}
        self._rows = {variant: dict(zip(keys, found.tolist(), strict=True)) for variant, found in rows.items()}
        self._inputs = {variant: found.to(self.device) for variant, found in self._inputs.items()}
        features, parts = self._sums(self._folds(keys, groups))
        total = features.variance.sum()
        if not total > 0:
            raise EmptyClass(f"cell '{self.cell}': the features of the training split are all alike.")
        self._shares = (features.variance / total).float()
        for variant in VARIANTS:
            inputs = self._inputs[variant][torch.from_numpy(rows[variant]).to(self.device)].double()
            variance = inputs.var(0, unbiased=False)
            variance = torch.where(variance > 1e-12 * inputs.mean(0).square(), variance, 0.0)
            self.map_of(variant).standardise((features.mean, features.variance), (inputs.mean(0), variance))
            if not self.is_trained:
                self._solve(variant, parts[variant])

    def _training_captions(self) -> tuple[list[str], list[str], np.ndarray]:
        collector = PredictionCollector({"group": (torch.int64, ())})
        for batch in self.raw_batches(self.train_split):
            collector.update(_named(batch), {"group": self.group_ids(batch)})
        names, found = collector.compute(self.gather_over_processes, self.device)
        keys, captions = (list(part) for part in zip(*(name.split(_SEPARATOR, 1) for name in names), strict=True))
        _require_captions(keys, captions, self.train_split)
        if len(set(captions)) < 2:
            raise EmptyClass(
                f"split '{self.train_split}' has {len(keys)} samples with one caption: nothing can be learnt from it.",
                fix="a split with at least two different captions",
            )
        return keys, captions, found["group"].numpy()

    def _folds(self, keys: Sequence[str], groups: np.ndarray) -> dict[str, int]:
        """Return the fold of each training sample by its key; all are in one fold for a trained map."""
        if self.is_trained:
            return dict.fromkeys(keys, 0)
        config = cast(Any, self.config)
        names = [f"sample {key}" if g < 0 else f"group {g}" for key, g in zip(keys, groups.tolist(), strict=True)]
        folds = unlabelled_folds(names, n_folds=config.folds, seed=config.fold_seed)
        return dict(zip(keys, folds.tolist(), strict=True))

    def _sums(self, folds: dict[str, int]) -> tuple[Moments, dict[str, list[FoldSums]]]:
        """Return the sums of the features, and for a closed form those of each fold, from one pass. Raises: NonFinite.

        Args:
            folds: fold of each training sample, by its key.
        """
        d_features, n_folds = len(self.regressor.feature_mean), max(folds.values()) + 1
        features = [RunningMoments(d_features).to(self.device) for _ in range(n_folds)]
        joint = {
            variant: [
                RunningMoments(len(self.map_of(variant).caption_mean), d_features, gram=True).to(self.device)
                for _ in range(n_folds)
            ]
            for variant in (() if self.is_trained else VARIANTS)
        }
        for batch in self.batches(self.train_split):
            require_finite(batch, [self.cell])
            h = vectors(batch, self.cell).double()
            fold = torch.tensor([folds[key] for key in batch.keys], device=h.device)
            for k in fold.unique().tolist():
                features[k].update(h[fold == k])
                for variant, sums in joint.items():
                    sums[k].update(self._inputs_of(variant, batch)[fold == k], h[fold == k])
        found = [part.compute() for part in features]
        of_folds = {
            variant: [FoldSums(part.compute(), own.square) for part, own in zip(sums, found, strict=True)]
            for variant, sums in joint.items()
        }
        return reduce(add_moments, found), of_folds

    def _solve(self, variant: str, folds: Sequence[FoldSums]) -> None:
        """Set the weights of a closed form."""
        weights, self._chosen[variant] = self._file.estimate_cv(folds, self.config)
        found = self.map_of(variant)
        scale = torch.where(found.feature_std > 0, 1 / found.feature_std, 0.0).double()
        standard = found.caption_std.double()[:, None] * weights * scale
        cast(nn.Linear, found.net).weight.copy_(standard.T)

    def _inputs_of(self, variant: str, batch: FeatureBatch) -> Tensor:
        rows = self._rows[variant]
        return self._inputs[variant][torch.tensor([rows[key] for key in batch.keys], device=self.device)]

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the sum of the losses of the map and of both controls.

        A map to captions is contrasted over the joint batch of all processes, so that N processes have the negatives of
        one with a batch N times as large.
        """
        h = vectors(batch, self.cell)
        losses = [self._loss(variant, batch, h) for variant in VARIANTS]
        loss = torch.stack(losses).sum()
        check_finite_loss(loss.detach(), batch, [self.cell])
        self.log("train/loss", losses[0].detach(), batch_size=len(batch), prog_bar=True)
        return loss

    def _loss(self, variant: str, batch: FeatureBatch, h: Tensor) -> Tensor:
        found = self.map_of(variant)
        features = found.standard_features(h)
        captions = found.standard_captions(self._inputs_of(variant, batch).to(h.dtype))
        if found.reads == CAPTIONS:
            return cast(Tensor, self._file.loss(found.net, captions, features, self._shares.to(h.device)))
        rows = torch.tensor([self._rows[variant][key] for key in batch.keys], device=h.device)
        if hasattr(self._file, "embed"):
            draws = [derive_seed("captions", self.seed, self.global_step, key) for key in batch.keys]
            embedded = self._file.embed(found.net, features, captions, draws)
        else:
            embedded = found.net(features)
        if self.share[1] > 1:  # gradients reach the outputs of all processes, each of which has the whole loss
            embedded = cast(Tensor, self.all_gather(embedded, sync_grads=True)).flatten(0, 1)
            captions, rows = self.gather_over_processes(captions), self.gather_over_processes(rows)
        same = rows[:, None] == rows
        return cast(Tensor, self._file.contrast(found.net, embedded, captions, same))

    def score(self, batch: FeatureBatch, split: str) -> None:
        """Collect the features of a batch. Raises: NonFinite."""
        require_finite(batch, [self.cell])
        h = vectors(batch, self.cell).float()
        if split not in self._splits:
            layout = {"group": (torch.int64, ()), "features": (torch.float32, (h.shape[1],))}
            self._splits[split] = PredictionCollector(layout)
        self._splits[split].update(_named(batch), {"group": self.group_ids(batch), "features": h})

    def finish(self, split: str) -> None:
        """Compute and log the scores. Raises: EmptyClass for samples without captions, or with one alone."""
        names, found = self._splits.pop(split).compute(self.gather_over_processes, self.device)
        keys, captions = (list(part) for part in zip(*(name.split(_SEPARATOR, 1) for name in names), strict=True))
        _require_captions(keys, captions, split)
        different = sorted(set(captions))
        row = {caption: i for i, caption in enumerate(different)}
        rows = torch.tensor([row[caption] for caption in captions], device=self.device)
        text, words = self._encode(split, different)
        parts: dict[str, dict[str, Ratio]] = {}
        with torch.autocast(self.device.type, enabled=False):
            for variant in VARIANTS:
                inputs = (words if variant == WORDS else text).to(self.device, self.regressor.caption_mean.dtype)
                features = found["features"].to(self.device, inputs.dtype)
                of_split = ScoredSplit(features=features, captions=inputs, caption=rows)
                of_split.require_several(split)
                parts[variant] = self._scores(variant, of_split)
        groups = Groups.of_values(found["group"].numpy())
        levels = {R2: {"constant": 0.0}} | {
            f"{name}{end}": {"chance": value} for name, value in chance(of_split).items() for end in self._ends.values()
        }
        self.scores[split] = [
            self._entry(name, {variant: parts[variant][name] for variant in VARIANTS}, groups, levels[name], split)
            | {"n": len(keys), "n_captions": len(different)}
            for name in parts[OWN]
        ]
        self.log_scores({f"{split}/{entry['name']}/{self.cell}": entry["value"] for entry in self.scores[split]})

    @property
    def _ends(self) -> dict[str | None, str]:
        """Return what the names of scores end in, by the inference of the map; the first one has no end."""
        first, *others = getattr(self._file, "INFERENCES", (None,))
        return {first: "", **{other: f"_{other}" for other in others}}

    def _scores(self, variant: str, split: ScoredSplit) -> dict[str, Ratio]:
        """Return the scores of one map by each of its inferences."""
        probe: Any = self.map_of(variant)
        found: dict[str, Ratio] = {}
        for inference, end in reversed(self._ends.items()):  # the first one is left as the map's own
            if inference is not None:
                probe.net.inference = inference
            found = {f"{name}{end}": ratio for name, ratio in score_split(probe, split).items()} | found
        return found

    def _encode(self, split: str, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Return the text encoder's vectors and those of the words; the same captions are encoded once per split."""
        assert self._words is not None
        if split not in self._encoded or self._encoded[split][0] != captions:
            self._encoded[split] = (captions, self._encoder(captions, self.device), self._words(captions))
        _, text, words = self._encoded[split]
        return text, words

    def _entry(
        self, name: str, parts: dict[str, Ratio], groups: Groups, level: dict[str, float], split: str
    ) -> dict[str, Any]:
        intervals, pairs = group_intervals(
            parts, groups, n_resamples=self.config.n_resamples, level=self.config.level,
            seed=derive_seed("bootstrap", self.seed),
        ) if self.keeps(split) else ({}, {})  # of the trained map alone, not after each epoch  # fmt: skip
        value = parts[OWN].value
        controls = level | {variant: parts[variant].value for variant in VARIANTS[1:]}
        differences = {
            other: {"value": value - parts[other].value, "low": low, "high": high}
            for (one, other), (low, high) in pairs.items()
            if one == OWN
        }
        detail = {
            "interval": list(intervals[OWN]) if intervals else None, "level": self.config.level,
            "n_groups": groups.n, "differences": differences,
        }  # fmt: skip
        return {"name": name, "value": value, "controls": controls, "detail": detail}

    def records(self, split: str) -> list[MetricRecord]:
        """Return the scores of a split beside their controls.

        `detail` has the bootstrap interval over groups, and the paired interval of the difference to each control.
        """
        shared = {"group_by": self.group_by, "text_encoder": self._encoder.name, **self._penalties()}
        return [
            MetricRecord(
                name=entry["name"], value=entry["value"], split=split, n=entry["n"], cell=self.cell, target=TARGET,
                probe=self.name, controls=entry["controls"],
                detail={**entry["detail"], "n_captions": entry["n_captions"], **shared},
            )
            for entry in self.scores[split]
        ]  # fmt: skip

    def _penalties(self) -> dict[str, Any]:
        if not self._chosen:
            return {}
        own = self._chosen[OWN]
        return {
            "alpha": own.alpha, "alpha_at_edge": own.at_edge, "alphas": list(own.path),
            "cv_squared_error": list(own.errors),
            "control_alpha": {variant: self._chosen[variant].alpha for variant in VARIANTS[1:]},
        }  # fmt: skip

    def save(self, folder: Path) -> list[Path]:
        """Write the map that was fitted on the captions."""
        return [self.regressor.save_pretrained(folder / TARGET / self.cell.replace(":", "."))]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig | None:
        """AdamW with a step size that falls linearly to 0; nothing for closed forms."""
        return self.falling_adamw() if self.is_trained else None


def _named(batch: Any) -> list[str]:
    """Return key and caption of each sample as one text, which is gathered over processes as keys are."""
    captions = batch.captions or [""] * len(batch.keys)
    return [f"{key}{_SEPARATOR}{caption}" for key, caption in zip(batch.keys, captions, strict=True)]


def _require_captions(keys: Sequence[str], captions: Sequence[str], split: str) -> None:
    without = [key for key, caption in zip(keys, captions, strict=True) if not caption.strip()]
    if without:
        raise EmptyClass(
            f"{len(without)} of {len(keys)} samples of split '{split}' have no caption, the first is '{without[0]}'.",
            fix="a data set with captions",
        )
