"""ClassifierModule: classifiers of one file for every cell, target and control, trained in one pass.

Each head has its own loss and its own weights, and AdamW updates every weight by itself: a bank is as many separate
runs.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.column_names import path_part
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics import load_metrics
from diffprobe.metrics.confusion import ConfusionCounts, score_heads
from diffprobe.probes.classifier.bank import Bank, make_bank
from diffprobe.probes.classifier.base import ClassifierConfig, ClassifierProbe, make_head
from diffprobe.probes.classifier.inputs import JOINT, VECTOR, n_values, plan_inputs, reads
from diffprobe.probes.label_subset import LabelSubset
from diffprobe.probes.predictions import KeptHead
from diffprobe.probes.shuffled_labels import ShuffledLabels, hash_keys
from diffprobe.training.classifier_pass import TrainingPass, absent_classes, balanced_weights, read
from diffprobe.training.convergence import FAR, GradientSums, ratios, warn_of_distance
from diffprobe.training.ended_heads import EndedHeads
from diffprobe.training.head_stack import Head, HeadStack
from diffprobe.training.module import ProbeModule, labels_of, require_finite, require_samples

REAL = "none"
METRICS = ("accuracy", "balanced_accuracy")
"""Metrics that are recorded where a run names none."""
DIVERGED = "diverged_at_step"
"""Metric of a head whose loss became NaN or infinite: the step at which that was found. It has no other."""


class ClassifierModule(ProbeModule):
    """A bank of classifiers on standardised features.

    A head whose loss becomes NaN or infinite on finite features ends there: it takes no part in the following steps,
    disturbs no other head, and its record is the step. A run all of whose heads end so stops.

    Args:
        name: file of the head in `probes/classifier`.
        config: its settings; `controls` are the control heads beside each real one.
        widths: cell name -> d_in; the channels, where maps are kept.
        sizes: cell name -> height and width of its maps, for the cells whose maps are kept.
        classes: target -> names of its classes.
        only_control: train all heads on shuffled labels; for a run that is itself the control.
        metrics: files of `metrics/` with `FOR = "classifier"`, the first of which is logged as a curve; () for
            accuracy and balanced accuracy.
        settings, seed: see `ProbeModule`. The seed fixes the initial weights and the shuffled labels. gradient_clip
            must be unset: the joint norm would couple the heads.

    Raises: UnknownName for an unknown head or metric, ConfigError for gradient_clip.
    """

    stops_without_heads = True
    """Whether a run stops when the losses of all its heads are not finite."""
    prefix = ""
    """What warnings begin with."""
    fused: bool | None = None
    """Whether one kernel steps all weights, equal to rounding."""

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
        sizes: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(settings, seed=seed)
        if settings.gradient_clip is not None:
            raise ConfigError("gradient_clip couples the heads of a classifier bank.", fix="leave it unset")
        self.name, self.config, self.only_control = name, config, only_control
        self.metrics = load_metrics("classifier", metrics or METRICS)
        self.inputs = plan_inputs(name, widths, sizes or {})
        self.cells, self.classes = tuple(self.inputs), {target: tuple(names) for target, names in classes.items()}
        controls = () if only_control else config.controls
        self.tasks = [(target, control) for target in self.classes for control in (REAL, *controls)]
        n_classes = [len(self.classes[target]) for target, _ in self.tasks]
        self._d_in = {
            cell: widths[cell] if shapes is None else n_values(shapes) for cell, shapes in self.inputs.items()
        }
        self._banks = nn.ModuleList([self._make_bank(cell, n_classes) for cell in self.cells])
        self.heads = [Head(cell, target, control) for cell in self.cells for target, control in self.tasks]
        self.confusion = ConfusionCounts(n_classes * len(self.cells))
        self.scores: dict[str, list[dict[str, float]]] = {}
        self.absent: dict[str, tuple[str, ...]] = {}
        self.unseen: dict[tuple[str, str], tuple[str, ...]] = {}
        self.gradient_ratios: dict[Head, float | None] = {}
        self.shuffled: dict[str, ShuffledLabels] = {}
        """Target -> its labels, permuted, once the training set was read."""
        self.subsets: dict[str, LabelSubset] = {}
        """Target -> the labels that are learned from; {} for all."""
        self.ends = EndedHeads(len(self.heads))
        self.class_weights: list[Tensor | None] = []
        """Weight of the samples of each class in the loss of each task; None for 1."""
        self._stack: HeadStack | None = None

    def _make_bank(self, cell: str, n_classes: Sequence[int]) -> Bank:
        d_in, shapes = self._d_in[cell], self.inputs[cell]
        return make_bank(self.name, self.config, d_in, n_classes, seeds=self._seeds(cell), shapes=shapes)

    def _seeds(self, cell: str) -> list[int]:
        """Return the seed of each head on a cell; a control head starts from the weights of its real one."""
        return [derive_seed("classifier", self.seed, cell, target) for target, _ in self.tasks]

    def read(self, batch: FeatureBatch, cell: str) -> Tensor:
        """Return what the heads of a bank read, a vector per sample. Raises: ConfigError, see `inputs.joined`."""
        return read(batch, cell, self.inputs[cell])

    @property
    def features(self) -> tuple[str, ...]:
        """All cells whose features are read."""
        return tuple(key for cell, shapes in self.inputs.items() for key in (shapes or (cell,)))

    @property
    def seed_varies(self) -> tuple[str, ...]:
        """The initial weights if the heads start at random ones, the order of the samples, the permuted labels."""
        if reads(self.name) != VECTOR:
            return ("start", "order", *self.varied_labels)
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
        found = self.training_pass()
        exact = self.batches if found.moments else self.raw_batches
        for batch in exact(self.train_split):
            found.update(batch, self.group_ids(batch), self.device)
        self.initialise(found, self.train_split, self.group_by)

    def training_pass(self) -> TrainingPass:
        """Return what to collect; no moments where banks have them, as those of a resumed run do."""
        fitted = all(bool(bank.fitted) for bank in self.banks)
        return TrainingPass(self.inputs, {} if fitted else self._d_in, list(self.classes), self.device)

    def initialise(self, found: TrainingPass, split: str, group_by: str) -> None:
        """Take what a pass over the training set found; with label_fraction below 1, choose the samples.

        Raises: EmptyClass for a target without samples.
        """
        for cell, bank in zip(self.cells, self.banks, strict=True):
            if not bank.fitted:
                sums = found.sums(cell)
                bank.standardise(sums.mean, sums.variance)
        hashes, known, group = found.labels(split)
        fraction, seed = self.config.label_subset
        if fraction < 1:
            self.subsets = {
                target: found.shared(
                    ("subset", target, fraction, seed),
                    partial(LabelSubset, hashes, label, fraction=fraction, seed=seed, target=target),
                )
                for target, label in known.items()
            }
        self._shuffle(hashes, known, group, group_by, found)
        learned = {target: self.subsets[target].label if self.subsets else label for target, label in known.items()}
        for target, label in learned.items():
            self.absent[target] = absent_classes(target, label, self.classes[target], split=split, cells=self.features)
        self.class_weights = [None] * len(self.tasks)
        if self.config.balances_classes:
            weights = {target: balanced_weights(label, len(self.classes[target])) for target, label in learned.items()}
            self.class_weights = [weights[target] for target, _ in self.tasks]  # permuting labels keeps their counts

    def _shuffle(
        self, hashes: Tensor, known: Mapping[str, Tensor], group: Tensor, by: str = "", made: TrainingPass | None = None
    ) -> None:
        """Permute the training labels of each target by group; group holds ids, -1 for a group of its own."""
        fixed: dict[str, Any] = {"group": group, "group_by": by or self.group_by, "seed": self.seed}
        for target, label in known.items():
            make = partial(ShuffledLabels, hashes, label, target=target, **fixed)
            self.shuffled[target] = make() if made is None else made.shared((by, target, self.seed), make)

    def is_shuffled(self, control: str) -> bool:
        """Return whether a head, or a control head, is trained on shuffled labels."""
        return control != REAL or self.only_control

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the sum of the heads' mean losses over the joint batch of all processes."""
        found = {cell: bank(self.read(batch, cell)) for cell, bank in zip(self.cells, self.banks, strict=True)}
        loss = self.joint_loss(batch, found)
        self.log("train/loss", loss.detach() / len(self.heads), batch_size=len(batch), prog_bar=True)
        return loss

    def joint_loss(
        self, batch: FeatureBatch, found: Mapping[str, Sequence[Tensor]], hashes: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the heads' mean losses over the joint batch of all processes.

        Args:
            found: logits of each head, by cell.
            hashes: `hash_keys` of the batch, where they are known.

        Raises: NonFinite for features that are not finite, and if no head is left.
        """
        labels = self._task_labels(batch, hashes)
        counts = torch.stack([(label >= 0).sum() for label in labels])
        sums = self.sum_over_processes(torch.cat([counts, self.ends.failed.to(counts.device)]))
        n, failed = sums.split([len(counts), len(self.heads)])
        self.end(failed)
        # DDP averages gradients over processes, so each process divides its sum by the mean number of labelled samples.
        weights = self.trainer.world_size / n.clamp(min=1)
        of_classes = [None if part is None else part.to(self.device) for part in self.class_weights]
        losses = []
        for i, logits in enumerate(part for cell in self.cells for part in found[cell]):
            task = i % len(self.tasks)
            masked, usable = self.ends.masked(i, logits)
            loss = F.cross_entropy(masked, labels[task], weight=of_classes[task], ignore_index=-1, reduction="sum")
            losses.append(torch.where(usable, weights[task] * loss, torch.nan))
        whole, finite = self.ends.add_up(torch.stack(losses))
        if not finite.all():
            require_finite(batch, self.features)
            if self.stops_without_heads:
                self.require_heads()
        return whole + torch.stack([bank.penalty() for bank in self.banks]).sum()

    def require_heads(self) -> None:
        """Refuse to go on if no head is left. Raises: NonFinite."""
        if self.is_exhausted:
            raise NonFinite(
                "the loss of all heads became NaN or infinite on finite features.",
                f"cells: {', '.join(self.features)}",
                fix="a smaller trainer.learning_rate, or precision=32-true",
            )

    def on_train_end(self) -> None:
        """End the heads whose loss was not finite in the last step."""
        self.end(self.sum_over_processes(self.ends.failed.to(self.device)))

    def end(self, failed: Tensor) -> None:
        """End the heads that failed on any process, and warn of them."""
        new = self.ends.take(failed, self.trainer.global_step)
        if new and self.trainer.is_global_zero:
            heads = [self.heads[i] for i in new]
            names = [f"'{h.target}' in {h.cell}" + f" ({h.control})" * (h.control != REAL) for h in heads]
            warnings.warn(
                f"{self.prefix}the loss of {len(names)} of {len(self.heads)} heads became NaN or infinite at step "
                f"{self.trainer.global_step}; they are trained no further: {', '.join(names[:5])}"
                f"{f' and {len(names) - 5} more' if len(names) > 5 else ''}. A smaller learning rate may help",
                stacklevel=2,
            )

    @property
    def is_exhausted(self) -> bool:
        """Whether no head but controls is left."""
        left = (self.ends.step < 0) & (self.ends.failed.to(self.ends.step.device) == 0)
        return not any(ok for ok, head in zip(left.tolist(), self.heads, strict=True) if head.control == REAL)

    @property
    def ended(self) -> dict[Head, int]:
        """The heads whose loss was not finite -> the step at which that was found."""
        return {head: step for head, step in zip(self.heads, self.ends.step.tolist(), strict=True) if step >= 0}

    def _task_labels(self, batch: FeatureBatch, hashes: Tensor | None = None) -> list[Tensor]:
        """Return what each head of a bank is trained on."""
        hashes = hash_keys(batch.keys) if hashes is None else hashes
        kept = {target: subset.mask(hashes).to(self.device) for target, subset in self.subsets.items()}
        found = []
        for target, control in self.tasks:
            shuffled = self.is_shuffled(control)
            label = self.shuffled[target].of(hashes).to(self.device) if shuffled else labels_of(batch, target)
            found.append(torch.where(kept[target], label, -1) if target in kept else label)
        return found

    def on_test_epoch_end(self) -> None:
        """Score the test set, and measure how far training stopped from a minimum."""
        super().on_test_epoch_end()
        if self.has_distance():
            sums = self.gradient_sums()
            for batch in self.batches(self.train_split):
                self.add_gradients(batch, sums)
            found = self.compare_gradients(sums)
            if self.trainer.is_global_zero:
                warn_of_distance(found)

    def has_distance(self) -> bool:
        """Return whether the distance from a minimum is measured: the loss is the plain cross entropy of the images."""
        config, drawn = self.config, any(getattr(self.source, name, None) for name in ("balance", "has_views"))
        plain = not (self.settings.weight_decay or config.has_penalty or config.balances_classes or drawn)
        return self.trainer.global_step > 0 and plain and config.measures_distance

    def gradient_sums(self) -> tuple[GradientSums, GradientSums]:
        """Return sums of the gradients with the final and with the initial weights, still 0."""
        final = dict(zip(self.cells, self.banks, strict=True))
        start = {}
        for cell, bank in final.items():
            fresh = self._make_bank(cell, bank.n_classes)
            start[cell] = fresh.to(bank.mean).eval()
            for name in ("mean", "inverse_std", "fitted"):
                getattr(fresh, name).copy_(getattr(bank, name))
        return GradientSums(final), GradientSums(start)

    def add_gradients(self, batch: FeatureBatch, sums: Iterable[GradientSums]) -> None:
        """Add the gradients of a batch of the training set."""
        features, labels = {cell: self.read(batch, cell) for cell in self.cells}, self._task_labels(batch)
        for part in sums:
            part.update(features, labels)

    def compare_gradients(self, sums: Iterable[GradientSums]) -> dict[str, float | None]:
        """Compare the gradients over the training set with the final and with the initial weights.

        Returns: name of each real head -> ratio of the gradients.
        """
        found = ratios(*(part.norms(self) for part in sums))
        self.gradient_ratios = dict(zip(self.heads, found, strict=True))
        named = {head: ratio for head, ratio in self.gradient_ratios.items() if head.control == REAL}
        return {f"'{head.target}' in {head.cell}": ratio for head, ratio in named.items() if head not in self.ended}

    def score(self, batch: FeatureBatch, split: str) -> None:
        """Count the predictions of a batch against the true labels, for control heads too. Raises: NonFinite."""
        self._stack = self._stack or HeadStack([self], joined=False)
        self._stack.score(batch, split, self.confusion)

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
                cell=None if head.cell == JOINT else head.cell,
                target=head.target,
                control=only if head.control == REAL else head.control,
            )
            for head in self.heads
        ]

    def finish(self, split: str) -> None:
        """Compute and log the scores. Raises: EmptyClass for a target without samples."""
        counts = [matrix.cpu() for matrix in self.confusion.compute()]  # summed over the processes
        self.confusion.reset()
        self.log_at_once(self.take_scores(split, *score_heads(self.metrics, counts, [h.target for h in self.heads])))

    def take_scores(self, split: str, scores: list[dict[str, float]], held: Sequence[Tensor]) -> dict[str, float]:
        """Keep the scores of all heads on a split.

        Args:
            scores, held: of each head, see `score_heads`.

        Returns: those that are logged, by their names. Raises: EmptyClass for a target without samples.
        """
        for head, score, samples in zip(self.heads, scores, held, strict=True):
            require_samples(score["n"], split=split, target=head.target)
            if head == self.heads[0]._replace(target=head.target):
                self._note_unseen(head, samples, split)
        self.scores[split] = scores
        curve = self.metrics[0].NAME
        names = [
            f"{split}/{curve}/{h.cell}/{path_part(h.target)}" + f"/{h.control}" * (h.control != REAL)
            for h in self.heads
        ]
        return {name: score[curve] for name, score in zip(names, scores, strict=True)}

    def _note_unseen(self, head: Head, samples: Tensor, split: str) -> None:
        """Keep the classes of a split that training lacks, and warn once for each target."""
        absent = self.absent.get(head.target, ())
        held = [self.classes[head.target][i] for i in (samples > 0).nonzero()[:, 0].tolist()]
        found = tuple(name for name in held if name in absent)
        known = self.unseen.setdefault((split, head.target), found)
        if found and known == found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            rank_zero_warn(
                f"{self.prefix}target '{head.target}': split '{split}' has {len(found)} classes without a training "
                f"sample, which no probe can name: {', '.join(found[:5])}{more} (cells: {', '.join(self.features)})."
            )

    def records(self, split: str) -> list[MetricRecord]:
        """Return the metrics of each real head, beside chance and its control heads.

        `detail` has the number of classes of the data set and the number of which the split has samples; after training
        on the plain cross entropy also `gradient_ratio` and `far_from_convergence` (`convergence.py`), and where labels
        were shuffled, how (`ShuffledLabels.describe`).
        """
        by_head = dict(zip(self.heads, self.scores[split], strict=True))
        made, ended = [], self.ended
        for head, score in by_head.items():
            if head.control != REAL:
                continue
            if head in ended:
                made.append(self._record(head, DIVERGED, ended[head], split, score))
                continue
            controls = [control for target, control in self.tasks if target == head.target and control != REAL]
            controls = [control for control in controls if head._replace(control=control) not in ended]
            beside = {control: by_head[head._replace(control=control)] for control in controls}
            for metric in self.metrics:
                values = {control: other[metric.NAME] for control, other in beside.items()}
                detail = {**self._shuffles(head.target, controls), **self._convergence(head)}
                record = self._record(head, metric.NAME, score[metric.NAME], split, score)
                record.controls.update({"chance": score[f"chance/{metric.NAME}"], **values})
                record.detail.update(detail)
                made.append(record)
        return made

    def _record(self, head: Head, name: str, value: float, split: str, score: Mapping[str, float]) -> MetricRecord:
        """Return the record of one number of a head, without controls."""
        detail: dict[str, Any] = {"n_classes": len(self.classes[head.target]), "n_classes_held": int(score["n_seen"])}
        shapes = self.inputs[head.cell]
        if head.cell == JOINT and shapes is not None:
            detail["cells"] = list(shapes)
        if unseen := self.unseen.get((split, head.target)):
            detail["classes_without_training"] = list(unseen)
        fraction, seed = self.config.label_subset
        if fraction < 1:
            detail |= {"label_fraction": fraction, "label_seed": seed}
        return MetricRecord(
            name=name,
            value=value,
            split=split,
            n=int(score["n"]),
            cell=None if head.cell == JOINT else head.cell,
            target=head.target,
            probe=self.name,
            detail=detail,
        )

    def _shuffles(self, target: str, controls: Sequence[str]) -> dict[str, Any]:
        """Return how the labels of a target were shuffled, {} if nothing was trained on them."""
        if not self.only_control and "shuffled_labels" not in controls:
            return {}
        return {"shuffled_labels": self.shuffled[target].describe()}

    def _convergence(self, head: Head) -> dict[str, float | bool]:
        """Return how far a head stopped from a minimum, {} if that was not measured."""
        ratio = self.gradient_ratios.get(head)
        return (
            {}
            if ratio is None or not math.isfinite(ratio)
            else {"gradient_ratio": ratio, "far_from_convergence": ratio > FAR}
        )

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
            if control == REAL and Head(cell, target, control) not in self.ended
        ]

    @property
    def learning_rate(self) -> float:
        """Step size of the probe's own settings, of the trainer's, or the default of the classifier."""
        config = self.config
        return config.own_learning_rate or self.settings.learning_rate or config.default_learning_rate

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a step size that falls to 0 along a cosine."""
        decay = self.settings.weight_decay
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=decay, fused=self.fused)
        return self.schedule(optimizer, lambda progress: (1 + math.cos(math.pi * progress)) / 2)
