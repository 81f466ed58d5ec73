"""ClassifierModule: linear classifiers for every cell, target and control, trained in one pass.

Each head has its own loss and its own weights, and AdamW treats every weight alone: a bank is as many separate runs.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.result import MetricRecord
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics.accuracy import ClassCounts
from diffprobe.metrics.label_collector import LabelCollector
from diffprobe.metrics.moments import RunningMoments
from diffprobe.probes.classifier.linear import LinearBank, LinearProbe
from diffprobe.probes.shuffled_labels import ShuffledLabels, hash_keys
from diffprobe.training.module import (
    ProbeModule,
    check_finite_loss,
    labels_of,
    require_finite,
    require_samples,
    vectors,
)  # fmt: skip

REAL = "none"


class Head(NamedTuple):
    """One classifier of the bank."""

    cell: str
    """Whose features it reads."""
    target: str
    """What it predicts."""
    control: str
    """"none", or "shuffled_labels": trained on labels permuted over the training set."""


class ClassifierModule(ProbeModule):
    """A bank of linear classifiers on standardised features.

    Args:
        widths: cell name -> d_in.
        classes: target -> names of its classes.
        controls: control heads beside each real one.
        only_control: train all heads on shuffled labels; for a run that is itself the control.
        settings, seed: see `ProbeModule`. The seed fixes the shuffled labels. gradient_clip must be off: the joint norm
            would tie the heads to each other.
    """

    default_learning_rate = 3e-3

    def __init__(
        self,
        *,
        widths: Mapping[str, int],
        classes: Mapping[str, Sequence[str]],
        controls: Sequence[str] = ("shuffled_labels",),
        only_control: bool = False,
        settings: TrainerConfig,
        seed: int = 0,
    ) -> None:
        super().__init__(settings, seed=seed)
        if settings.gradient_clip is not None:
            raise ConfigError("gradient_clip ties the heads of a classifier bank to each other.", fix="leave it unset")
        self.only_control, controls = only_control, () if only_control else controls
        self.cells, self.classes = tuple(widths), {target: tuple(names) for target, names in classes.items()}
        self.tasks = [(target, control) for target in self.classes for control in (REAL, *controls)]
        n_classes = [len(self.classes[target]) for target, _ in self.tasks]
        self._banks = nn.ModuleList([LinearBank(d_in, n_classes) for d_in in widths.values()])
        self.heads = [Head(cell, target, control) for cell in self.cells for target, control in self.tasks]
        self._counts = nn.ModuleDict({split: ClassCounts(n_classes * len(self.cells)) for split in ("val", "test")})
        self.scores: dict[str, list[dict[str, float]]] = {}
        self._shuffled: dict[str, ShuffledLabels] = {}

    @property
    def banks(self) -> list[LinearBank]:
        """One bank a cell, in the order of `cells`."""
        return cast(list[LinearBank], list(self._banks))

    def counts(self, split: str) -> ClassCounts:
        """Hits and samples on one split, heads in the order of `heads`."""
        return cast(ClassCounts, self._counts[split])

    def prepare(self) -> None:
        """Standardise by the training set, permute its labels for the controls."""
        targets = list(self.classes)
        keyed = LabelCollector(len(targets)).to(self.device)
        fitted = all(bool(bank.fitted) for bank in self.banks)  # in a resumed run the weights bring their own
        moments = [RunningMoments(bank.d_in).to(self.device) for bank in self.banks]
        for batch in self.raw_batches(self.train_split) if fitted else self.batches(self.train_split):
            rows = torch.stack([labels_of(batch, target) for target in targets], dim=1)
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
        for target, label in zip(targets, labels.T, strict=True):
            if not (label >= 0).any():
                raise EmptyClass(f"no sample of split '{self.train_split}' has a value of target '{target}'.")
            self._shuffled[target] = ShuffledLabels(hashes, label, seed=self.seed, target=target)

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the sum of the heads' mean losses over the joint batch of all processes."""
        hashes = hash_keys(batch.keys)
        labels = [
            labels_of(batch, target)
            if control == REAL and not self.only_control
            else self._shuffled[target].of(hashes).to(self.device)
            for target, control in self.tasks
        ]
        n = self.sum_over_processes(torch.stack([(label >= 0).sum() for label in labels]))
        # DDP averages gradients over processes, so each divides its sum by the mean count of labelled samples.
        weights = self.trainer.world_size / n.clamp(min=1)
        loss = torch.zeros((), device=self.device)
        for cell, bank in zip(self.cells, self.banks, strict=True):
            for logits, label, weight in zip(bank(vectors(batch, cell)), labels, weights, strict=True):
                loss = loss + weight * F.cross_entropy(logits.float(), label, ignore_index=-1, reduction="sum")
        check_finite_loss(loss, batch, self.cells)
        self.log("train/loss", loss.detach() / len(self.heads), batch_size=len(batch), prog_bar=True)
        return loss

    def _count(self, batch: FeatureBatch, split: str) -> None:
        require_finite(batch, self.cells)
        start = 0
        for cell, bank in zip(self.cells, self.banks, strict=True):
            with torch.autocast(self.device.type, enabled=False):  # what is saved is a float32 probe
                found = bank(vectors(batch, cell))
            for i, logits in enumerate(found):
                self.counts(split).update(start + i, logits, labels_of(batch, self.tasks[i][0]))
            start += len(self.tasks)

    def validation_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Count hits on validation samples, against the true labels for control heads too."""
        self._count(batch, "val")

    def test_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Count hits on test samples."""
        self._count(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Compute and log the scores."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Compute and log the scores."""
        self._finish("test")

    def _finish(self, split: str) -> None:
        counts = self.counts(split)
        scores = counts.compute()
        with counts.sync_context():
            for i, (head, score) in enumerate(zip(self.heads, scores, strict=True)):
                require_samples(score["n"], split=split, target=head.target)
                seen = counts.samples.split(counts.n_classes)[i] > 0
                score["chance"] = counts.best_constant(i)
                score["n_seen"] = int(seen.sum())
                score["balanced_chance"] = 1 / score["n_seen"]
        counts.reset()
        self.scores[split] = scores
        names = [f"{split}/accuracy/{h.cell}/{h.target}" + f"/{h.control}" * (h.control != REAL) for h in self.heads]
        self.log_scores({name: score["accuracy"] for name, score in zip(names, scores, strict=True)})

    def records(self, split: str) -> list[MetricRecord]:
        """Return accuracy and balanced accuracy of each real head, beside chance and its control heads.

        `detail` counts the classes of the data set and those of which the split holds samples.
        """
        by_head = dict(zip(self.heads, self.scores[split], strict=True))
        made = []
        for head, score in by_head.items():
            if head.control != REAL:
                continue
            beside = {
                control: by_head[head._replace(control=control)]
                for t, control in self.tasks
                if t == head.target != control
            }
            beside.pop(REAL, None)
            for name, chance in (("accuracy", "chance"), ("balanced_accuracy", "balanced_chance")):
                controls = {"chance": score[chance], **{control: other[name] for control, other in beside.items()}}
                made.append(
                    MetricRecord(
                        name=name,
                        value=score[name],
                        split=split,
                        n=int(score["n"]),
                        cell=head.cell,
                        target=head.target,
                        probe="linear",
                        controls=controls,
                        detail={"n_classes": len(self.classes[head.target]), "n_classes_held": int(score["n_seen"])},
                    )
                )
        return made

    def probe(self, cell: str, target: str) -> LinearProbe:
        """Copy one trained classifier out of the bank."""
        return self.banks[self.cells.index(cell)].head(self.tasks.index((target, REAL)))

    def save(self, folder: Path) -> list[Path]:
        """Write each real classifier to a folder of its own."""
        return [
            self.probe(cell, target).save_pretrained(
                folder / target / cell.replace(":", "."), cell=cell, target=target, classes=self.classes[target]
            )
            for cell, target, control in self.heads
            if control == REAL
        ]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW; the step size falls to 0 along a cosine."""
        decay = self.settings.weight_decay
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=decay)
        return self.schedule(optimizer, lambda progress: (1 + math.cos(math.pi * progress)) / 2)
