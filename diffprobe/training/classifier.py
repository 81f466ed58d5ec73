"""ClassifierModule: classifiers of one file for every cell, target and control, trained in one pass.

Each head has its own loss and its own weights, and AdamW updates every weight by itself: a bank is as many separate
runs.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.column_names import path_part
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics import load_metrics
from diffprobe.metrics.confusion import ConfusionCounts
from diffprobe.metrics.label_collector import LabelCollector
from diffprobe.metrics.moments import RunningMoments
from diffprobe.probes.classifier.bank import Bank, make_bank
from diffprobe.probes.classifier.base import ClassifierConfig, ClassifierProbe, make_head
from diffprobe.probes.predictions import KeptHead, class_scores
from diffprobe.probes.shuffled_labels import ShuffledLabels, hash_keys
from diffprobe.training.convergence import FAR, GradientSums, ratios, warn_of_distance
from diffprobe.training.module import (
    ProbeModule,
    check_finite_loss,
    labels_of,
    require_finite,
    require_samples,
    vectors,
)  # fmt: skip

REAL = "none"
METRICS = ("accuracy", "balanced_accuracy")
"""Metrics that are recorded where a run names none."""


class Head(NamedTuple):
    """One classifier of the bank."""

    cell: str
    """Cell whose features it reads."""
    target: str
    """What it predicts."""
    control: str
    """"none", or "shuffled_labels": trained on labels permuted over the training set."""


class ClassifierModule(ProbeModule):
    """A bank of classifiers on standardised features.

    Args:
        name: file of the head in `probes/classifier`.
        config: its settings; `controls` are the control heads beside each real one.
        widths: cell name -> d_in.
        classes: target -> names of its classes.
        only_control: train all heads on shuffled labels; for a run that is itself the control.
        metrics: files of `metrics/` with `FOR = "classifier"`, the first of which is logged as a curve; () for
            accuracy and balanced accuracy.
        settings, seed: see `ProbeModule`. The seed fixes the initial weights and the shuffled labels. gradient_clip
            must be unset: the joint norm would couple the heads.

    Raises: UnknownName for an unknown head or metric, ConfigError for gradient_clip.
    """

    default_learning_rate = 3e-3

    def __init__(
        self,
        name: str,
        config: ClassifierConfig,
        *,
        widths: Mapping[str, int],
        classes: Mapping[str, Sequence[str]],
        only_control: bool = False,
        metrics: Sequence[str] = (),
        settings: TrainerConfig,
        seed: int = 0,
    ) -> None:
        super().__init__(settings, seed=seed)
        if settings.gradient_clip is not None:
            raise ConfigError("gradient_clip couples the heads of a classifier bank.", fix="leave it unset")
        self.name, self.config, self.only_control = name, config, only_control
        self.metrics = load_metrics("classifier", metrics or METRICS)
        self.cells, self.classes = tuple(widths), {target: tuple(names) for target, names in classes.items()}
        controls = () if only_control else config.controls
        self.tasks = [(target, control) for target in self.classes for control in (REAL, *controls)]
        n_classes = [len(self.classes[target]) for target, _ in self.tasks]
        self._banks = nn.ModuleList(
            [make_bank(name, config, d_in, n_classes, seeds=self._seeds(cell)) for cell, d_in in widths.items()]
        )
        self.heads = [Head(cell, target, control) for cell in self.cells for target, control in self.tasks]
        self.confusion = ConfusionCounts(n_classes * len(self.cells))
        self.scores: dict[str, list[dict[str, float]]] = {}
        self.gradient_ratios: dict[Head, float | None] = {}
        self._shuffled: dict[str, ShuffledLabels] = {}
        self._class_weights: list[Tensor | None] = []

    def _seeds(self, cell: str) -> list[int]:
        """Return the seed of each head on a cell; a control head starts from the weights of its real one."""
        return [derive_seed("classifier", self.seed, cell, target) for target, _ in self.tasks]

    @property
    def seed_varies(self) -> tuple[str, ...]:
        """The initial weights if the heads start at random ones, the order of the samples, the permuted labels."""
        heads = [make_head(self.name, self.config, 2, 2, seed=seed).state_dict() for seed in (0, 1)]
        random = any(not one.equal(heads[1][name]) for name, one in heads[0].items())
        return (*(["start"] if random else []), "order", *self.varied_labels)

    @property
    def varied_labels(self) -> tuple[str, ...]:
        """The permuted labels, if there are any: what the seed of a classifier without steps varies."""
        shuffled = any(control != REAL for _, control in self.tasks) or self.only_control
        return ("shuffled_labels",) if shuffled else ()

    def require_one_process(self) -> None:
        """Refuse several processes, for a classifier that holds the training set. Raises: ConfigError."""
        if self.share[1] > 1:
            raise ConfigError(
                f"probe '{self.name}' reads its features in one process, and this run has {self.share[1]}.",
                fix="trainer.devices=1 trainer.num_nodes=1",
            )

    @property
    def banks(self) -> list[Bank]:
        """One bank per cell, in the order of `cells`."""
        return cast(list[Bank], list(self._banks))

    def prepare(self) -> None:
        """Standardise by the training set and permute its labels for the controls."""
        targets = list(self.classes)
        keyed = LabelCollector(len(targets) + 1).to(self.device)
        fitted = all(bool(bank.fitted) for bank in self.banks)  # weights of a resumed run have their statistics
        moments = [RunningMoments(bank.d_in).to(self.device) for bank in self.banks]
        for batch in self.raw_batches(self.train_split) if fitted else self.batches(self.train_split):
            columns = [*(labels_of(batch, target) for target in targets), self.group_ids(batch)]
            rows = torch.stack(columns, dim=1)
            keyed.update(hash_keys(batch.keys).to(self.device), rows.to(self.device))
            if not fitted:
                require_finite(batch, self.cells)
                for cell, running in zip(self.cells, moments, strict=True):
                    running.update(vectors(batch, cell))
        if not fitted:
            for bank, running in zip(self.banks, moments, strict=True):
                sums = running.compute()
                bank.standardise(sums.mean, sums.variance)
        hashes, labels = (part.cpu() for part in keyed.compute())
        *known, group = labels.T
        for target, label in zip(targets, known, strict=True):
            if not (label >= 0).any():
                raise EmptyClass(f"no sample of split '{self.train_split}' has a value of target '{target}'.")
        self._shuffle(hashes, dict(zip(targets, known, strict=True)), group)
        self._class_weights = [None] * len(self.tasks)
        if self.config.balances_classes:
            found = {target: self._balance(target, label) for target, label in zip(targets, known, strict=True)}
            self._class_weights = [found[target] for target, _ in self.tasks]  # permuting labels keeps their counts

    def _balance(self, target: str, label: Tensor) -> Tensor:
        """Return samples / (classes with samples * samples of the class) for each class; 0 without a sample."""
        counts = torch.bincount(label[label >= 0], minlength=len(self.classes[target])).float()
        return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)

    def _shuffle(self, hashes: Tensor, labels: Mapping[str, Tensor], group: Tensor) -> None:
        """Permute the training labels of each target by group; group holds ids, -1 for a group of its own."""
        self._shuffled = {
            target: ShuffledLabels(hashes, label, group=group, group_by=self.group_by, seed=self.seed, target=target)
            for target, label in labels.items()
        }

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the sum of the heads' mean losses over the joint batch of all processes."""
        labels = self._task_labels(batch)
        n = self.sum_over_processes(torch.stack([(label >= 0).sum() for label in labels]))
        # DDP averages gradients over processes, so each process divides its sum by the mean number of labelled samples.
        weights = self.trainer.world_size / n.clamp(min=1)
        loss = torch.zeros((), device=self.device)
        of_classes = [None if found is None else found.to(self.device) for found in self._class_weights]
        for cell, bank in zip(self.cells, self.banks, strict=True):
            for logits, label, weight, per_class in zip(
                bank(vectors(batch, cell)), labels, weights, of_classes, strict=True
            ):
                loss = loss + weight * F.cross_entropy(
                    logits.float(), label, weight=per_class, ignore_index=-1, reduction="sum"
                )
            loss = loss + bank.penalty()
        check_finite_loss(loss, batch, self.cells)
        self.log("train/loss", loss.detach() / len(self.heads), batch_size=len(batch), prog_bar=True)
        return loss

    def _task_labels(self, batch: FeatureBatch) -> list[Tensor]:
        """Return what each head of a bank is trained on."""
        hashes = hash_keys(batch.keys)
        return [
            labels_of(batch, target)
            if control == REAL and not self.only_control
            else self._shuffled[target].of(hashes).to(self.device)
            for target, control in self.tasks
        ]

    def on_test_epoch_end(self) -> None:
        """Score the test set, and measure how far training stopped from a minimum."""
        super().on_test_epoch_end()
        plain = not (self.settings.weight_decay or self.config.has_penalty or self.config.balances_classes)
        if self.trainer.global_step > 0 and plain:  # the gradients are those of the plain cross entropy
            self._measure_convergence()

    def _measure_convergence(self) -> None:
        """Compare the gradients over the training set with the final and with the initial weights, and warn."""
        final = dict(zip(self.cells, self.banks, strict=True))
        start = {}
        for cell, bank in final.items():
            fresh = make_bank(self.name, self.config, bank.d_in, bank.n_classes, seeds=self._seeds(cell))
            start[cell] = fresh.to(bank.mean).eval()
            for name in ("mean", "inverse_std", "fitted"):
                getattr(fresh, name).copy_(getattr(bank, name))
        sums = GradientSums(final), GradientSums(start)
        for batch in self.batches(self.train_split):
            features, labels = {cell: vectors(batch, cell) for cell in self.cells}, self._task_labels(batch)
            for part in sums:
                part.update(features, labels)
        found = ratios(*(part.norms(self) for part in sums))
        self.gradient_ratios = dict(zip(self.heads, found, strict=True))
        if self.trainer.is_global_zero:
            named = {head: ratio for head, ratio in self.gradient_ratios.items() if head.control == REAL}
            warn_of_distance({f"'{head.target}' in {head.cell}": ratio for head, ratio in named.items()})

    def score(self, batch: FeatureBatch, split: str) -> None:
        """Count the predictions of a batch against the true labels, for control heads too. Raises: NonFinite."""
        require_finite(batch, self.cells)
        start, keeps = 0, self.keeps(split)
        kept: list[dict[str, Tensor]] = []
        for cell, bank in zip(self.cells, self.banks, strict=True):
            with torch.autocast(self.device.type, enabled=False):  # the probe that is saved is float32
                found = bank(vectors(batch, cell))
            for i, logits in enumerate(found):
                label = labels_of(batch, self.tasks[i][0])
                self.confusion.update(start + i, logits, label)
                if keeps:
                    kept.append(class_scores(logits, label))
            start += len(self.tasks)
        if keeps:
            self.keep(batch, split, kept)

    def target_values(self) -> Mapping[str, Sequence[str]]:
        """Return the classes that the heads have."""
        return self.classes

    def kept_heads(self) -> list[KeptHead]:
        """Return all heads, controls included."""
        only = "shuffled_labels" if self.only_control else REAL
        return [
            KeptHead(
                kind="classes",
                probe=self.name,
                cell=head.cell,
                target=head.target,
                control=only if head.control == REAL else head.control,
            )
            for head in self.heads
        ]

    def finish(self, split: str) -> None:
        """Compute and log the scores. Raises: EmptyClass for a target without samples."""
        counts = [matrix.cpu() for matrix in self.confusion.compute()]  # summed over the processes
        self.confusion.reset()
        scores = []
        for head, matrix in zip(self.heads, counts, strict=True):
            n = int(matrix.sum())
            require_samples(n, split=split, target=head.target)
            score: dict[str, float] = {"n": n, "n_seen": int((matrix.sum(1) > 0).sum())}
            for metric in self.metrics:
                score[metric.NAME] = metric.from_confusion(matrix)
                score[f"chance/{metric.NAME}"] = metric.chance(matrix)
            scores.append(score)
        self.scores[split] = scores
        curve = self.metrics[0].NAME
        names = [
            f"{split}/{curve}/{h.cell}/{path_part(h.target)}" + f"/{h.control}" * (h.control != REAL)
            for h in self.heads
        ]
        self.log_scores({name: score[curve] for name, score in zip(names, scores, strict=True)})

    def records(self, split: str) -> list[MetricRecord]:
        """Return the metrics of each real head, beside chance and its control heads.

        `detail` has the number of classes of the data set and the number of which the split has samples; after training
        on the plain cross entropy also `gradient_ratio` and `far_from_convergence` (`convergence.py`), and where labels
        were shuffled, how (`ShuffledLabels.describe`).
        """
        by_head = dict(zip(self.heads, self.scores[split], strict=True))
        made = []
        for head, score in by_head.items():
            if head.control != REAL:
                continue
            controls = [control for target, control in self.tasks if target == head.target and control != REAL]
            beside = {control: by_head[head._replace(control=control)] for control in controls}
            for metric in self.metrics:
                values = {control: other[metric.NAME] for control, other in beside.items()}
                made.append(
                    MetricRecord(
                        name=metric.NAME,
                        value=score[metric.NAME],
                        split=split,
                        n=int(score["n"]),
                        cell=head.cell,
                        target=head.target,
                        probe=self.name,
                        controls={"chance": score[f"chance/{metric.NAME}"], **values},
                        detail={
                            "n_classes": len(self.classes[head.target]),
                            "n_classes_held": int(score["n_seen"]),
                            **self._shuffles(head.target, controls),
                            **self._convergence(head),
                        },
                    )
                )
        return made

    def _shuffles(self, target: str, controls: Sequence[str]) -> dict[str, Any]:
        """Return how the labels of a target were shuffled, {} if nothing was trained on them."""
        if not self.only_control and "shuffled_labels" not in controls:
            return {}
        return {"shuffled_labels": self._shuffled[target].describe()}

    def _convergence(self, head: Head) -> dict[str, float | bool]:
        """Return how far a head stopped from a minimum, {} if that was not measured."""
        ratio = self.gradient_ratios.get(head)
        return {} if ratio is None else {"gradient_ratio": ratio, "far_from_convergence": ratio > FAR}

    def probe(self, cell: str, target: str) -> ClassifierProbe:
        """Copy one trained classifier out of the bank."""
        return self.banks[self.cells.index(cell)].head(self.tasks.index((target, REAL)))

    def save(self, folder: Path) -> list[Path]:
        """Write each real classifier to a folder of its own."""
        return [
            self.probe(cell, target).save_pretrained(
                folder / path_part(target) / cell.replace(":", "."),
                cell=cell,
                target=target,
                classes=self.classes[target],
            )
            for cell, target, control in self.heads
            if control == REAL
        ]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a step size that falls to 0 along a cosine."""
        decay = self.settings.weight_decay
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=decay)
        return self.schedule(optimizer, lambda progress: (1 + math.cos(math.pi * progress)) / 2)
