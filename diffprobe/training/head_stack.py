"""All heads of some classifiers as stacks of equal numbers of classes: losses, gradients and predictions at once.

The loss of each head is that of `ClassifierModule.joint_loss`, in sums over one tensor instead of calls for each head,
so it is equal to rounding. Logits have the classes first: a softmax over the slowest axis is vectorised over heads and
samples, one over a last axis of few classes is not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import lightning
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics.confusion import ConfusionCounts
from diffprobe.probes.classifier.bank import Bank
from diffprobe.probes.classifier.base import ClassifierConfig
from diffprobe.probes.label_subset import LabelSubset
from diffprobe.probes.predictions import class_scores
from diffprobe.probes.shuffled_labels import ShuffledLabels, hash_keys, rows_among
from diffprobe.training.convergence import GradientSums, trained_weights
from diffprobe.training.ended_heads import EndedHeads
from diffprobe.training.module import labels_of, require_finite


class Head(NamedTuple):
    """One classifier of a run."""

    cell: str
    """Cell whose features it reads; `inputs.JOINT` for several."""
    target: str
    """What it predicts."""
    control: str
    """"none", or "shuffled_labels": trained on labels permuted over the training set."""


class HeadModule(Protocol):
    """What a stack uses of a `ClassifierModule`."""

    config: ClassifierConfig
    seed: int
    cells: tuple[str, ...]
    tasks: list[tuple[str, str]]
    heads: list[Head]
    ends: EndedHeads
    shuffled: dict[str, ShuffledLabels]
    subsets: dict[str, LabelSubset]
    class_weights: list[Tensor | None]

    @property
    def trainer(self) -> lightning.Trainer:
        """The Trainer that it is attached to."""

    @property
    def banks(self) -> list[Bank]:
        """One bank per cell."""

    @property
    def features(self) -> tuple[str, ...]:
        """All cells whose features are read."""

    def read(self, batch: FeatureBatch, cell: str) -> Tensor:
        """Return what the heads on a cell read."""

    def is_shuffled(self, control: str) -> bool:
        """Return whether a head is trained on shuffled labels."""

    def end(self, failed: Tensor) -> None:
        """End the heads that failed on any process."""

    def sum_over_processes(self, value: Tensor) -> Tensor:
        """Return the sum over all processes."""

    def keeps(self, split: str) -> bool:
        """Return whether predictions are kept."""

    def keep(self, batch: FeatureBatch, split: str, found: Sequence[Mapping[str, Tensor]]) -> None:
        """Keep the predictions of a batch."""


@dataclass(frozen=True)
class _Rows:
    """Which heads one tensor of logits is of."""

    numbers: Int[Tensor, " heads"]
    """Number of each head in the stack."""
    columns: Int[Tensor, " heads"]
    """Which of the rows of `HeadStack.labels` it learns from."""
    targets: Int[Tensor, " heads"]
    """Which of the targets it predicts."""


class HeadStack:
    """The heads of some modules that read the same batches, numbered module by module.

    Args:
        modules: classifiers.
        joined: compute banks of one cell as one product, equal to rounding; otherwise one after the other.
        banks: cell -> bank, for each module; None for the banks of the modules.
    """

    def __init__(
        self, modules: Sequence[HeadModule], *, joined: bool, banks: Sequence[Mapping[str, Bank]] | None = None
    ) -> None:
        self.modules, self.joined = list(modules), joined
        self._banks = banks or [dict(zip(one.cells, one.banks, strict=True)) for one in self.modules]
        self.targets = [head.target for module in self.modules for head in module.heads]
        """What each head predicts."""
        self.sizes = [len(module.heads) for module in self.modules]
        """Number of heads of each module."""
        self._names = list(dict.fromkeys(self.targets))
        self._sources: dict[tuple[object, ...], tuple[int, int]] = {}  # module and task of each row of labels
        cells = dict.fromkeys(cell for module in self.modules for cell in module.cells)
        self._readers = {cell: [i for i, one in enumerate(self.modules) if cell in one.cells] for cell in cells}
        self._rows = {cell: self._rows_of(cell, readers) for cell, readers in self._readers.items()}
        self._class_weights: dict[int, Tensor] = {}
        self.has_failed = False
        """Whether the last loss of a head was not finite, or a head ended before."""

    def _rows_of(self, cell: str, readers: Sequence[int]) -> dict[int, _Rows]:
        """Return the heads on a cell by their number of classes, in the order of `Bank.stacked`."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        for i in readers:
            module = self.modules[i]
            first = sum(self.sizes[:i]) + module.cells.index(cell) * len(module.tasks)
            n_classes = self._banks[i][cell].n_classes
            for task, ((target, control), count) in enumerate(zip(module.tasks, n_classes, strict=True)):
                fraction, seed = module.config.label_subset
                shuffled = module.seed if module.is_shuffled(control) else None
                key = (target, shuffled, fraction, seed if fraction < 1 else None)
                self._sources.setdefault(key, (i, task))
                entry = first + task, list(self._sources).index(key), self._names.index(target)
                found.setdefault(count, []).append(entry)
        return {count: _Rows(*torch.tensor(own).T.contiguous()) for count, own in found.items()}

    @property
    def features(self) -> tuple[str, ...]:
        """All cells whose features are read."""
        return tuple(dict.fromkeys(cell for module in self.modules for cell in module.features))

    def logits(self, batch: FeatureBatch) -> Iterator[tuple[int, _Rows, Float[Tensor, "n_classes heads batch"]]]:
        """Yield number of classes, heads and logits, cell by cell."""
        for cell, readers in self._readers.items():
            banks = [self._banks[i][cell] for i in readers]
            x = self.modules[readers[0]].read(batch, cell)
            for count, own in type(banks[0]).stacked(banks, x, joined=self.joined).items():
                yield count, self._rows[cell][count], own

    def labels(self, batch: FeatureBatch) -> Int[Tensor, "rows batch"]:
        """Return what heads are trained on, one row for all heads of equal labels; -1 for samples that are left out."""
        device, found = batch.label.device, []
        rows: Tensor | None = None
        for i, task in self._sources.values():
            module, (target, control) = self.modules[i], self.modules[i].tasks[task]
            subset, label = module.subsets.get(target), None
            if rows is None and (subset is not None or module.is_shuffled(control)):
                rows = rows_among(module.shuffled[target].hashes, hash_keys(batch.keys))
            if rows is not None and module.is_shuffled(control):
                label = module.shuffled[target].at(rows).to(device)
            label = labels_of(batch, target) if label is None else label
            if rows is not None and subset is not None:
                label = torch.where(subset.kept[rows].to(device), label, -1)
            found.append(label)
        return torch.stack(found)

    def loss(self, batch: FeatureBatch) -> Float[Tensor, ""]:
        """Return the sum of the mean losses of all heads over the joint batch of all processes, and of the penalties.

        Heads whose loss is not finite are noted in their modules. Raises: NonFinite for features that are not finite.
        """
        lead, labels = self.modules[0], self.labels(batch)
        device = labels.device
        failed = torch.cat([module.ends.failed for module in self.modules]).to(device)
        n, failed = lead.sum_over_processes(torch.cat([(labels >= 0).sum(1), failed])).split([len(labels), len(failed)])
        if failed.any():
            for module, own in zip(self.modules, failed.split(self.sizes), strict=True):
                module.end(own)
        # DDP averages gradients over processes, so each process divides its sum by the mean number of labelled samples.
        weights = lead.trainer.world_size / n.clamp(min=1)
        ended = torch.cat([module.ends.step for module in self.modules]) >= 0
        losses, numbers = [], []
        for count, heads, logits in self._by_count(batch):
            at, columns = heads.numbers.to(device), heads.columns.to(device)
            usable = _all_finite(logits) & ~ended[at]
            if not usable.all():  # before the loss: NaN times a gradient of 0 would be NaN
                logits = torch.where(usable[:, None], logits, 0.0)
            loss = summed_cross_entropy(logits, labels[columns], self._weights_of_classes(count, heads.numbers))
            losses.append(torch.where(usable, weights[columns] * loss, torch.nan))
            numbers.append(at)
        found = torch.cat(losses)
        finite = torch.isfinite(found.detach())
        self.has_failed = not finite.all()
        if self.has_failed:
            self._note_failed(~finite[torch.cat(numbers).argsort()])
            require_finite(batch, self.features)
            found = torch.where(finite, found, 0.0)
        penalties = [
            bank.penalty()
            for module, banks in zip(self.modules, self._banks, strict=True)
            for bank in (banks.values() if module.config.has_penalty else ())
        ]
        return torch.stack([found.sum(), *penalties]).sum()

    def _by_count(self, batch: FeatureBatch) -> Iterator[tuple[int, _Rows, Tensor]]:
        """Yield the logits of all cells together, in float32."""
        parts: dict[int, list[tuple[_Rows, Tensor]]] = {}
        for count, heads, logits in self.logits(batch):
            parts.setdefault(count, []).append((heads, logits))
        for count, own in parts.items():
            rows = _Rows(*(torch.cat([getattr(heads, name) for heads, _ in own]) for name in _Rows.__annotations__))
            yield count, rows, torch.cat([logits for _, logits in own], dim=1).float()

    def _weights_of_classes(self, count: int, numbers: Tensor) -> Float[Tensor, "heads n_classes"] | None:
        if not any(module.config.balances_classes for module in self.modules):
            return None
        if count not in self._class_weights:
            weights = [
                module.class_weights[i % len(module.tasks)] for module in self.modules for i in range(len(module.heads))
            ]
            known = [weights[i] for i in numbers.tolist()]
            own = [torch.ones(count) if weight is None else weight.cpu() for weight in known]
            self._class_weights[count] = torch.stack(own)
        return self._class_weights[count]

    def _note_failed(self, failed: Bool[Tensor, " heads"]) -> None:
        for module, own in zip(self.modules, failed.split(self.sizes), strict=True):
            module.ends.failed = ((module.ends.step < 0) & own).float()

    def add_gradients(self, batch: FeatureBatch, sums: Sequence[GradientSums]) -> None:
        """Add the gradients of the summed losses over a batch of the training set.

        Args:
            sums: of each module, over the banks that this stack was made of.
        """
        with torch.enable_grad(), torch.autocast(batch.label.device.type, enabled=False):
            labels = self.labels(batch)
            losses = [
                summed_cross_entropy(logits, labels[heads.columns.to(labels.device)]).sum()
                for _, heads, logits in self._by_count(batch)
            ]
            places = [(into, cell, trained_weights(bank)) for into in sums for cell, bank in into.banks.items()]
            weights = [weight for _, _, own in places for weight in own]
            gradients = iter(torch.autograd.grad(torch.stack(losses).sum(), weights))
        for into, cell, own in places:
            into.add(cell, [next(gradients) for _ in own])

    @torch.no_grad()
    def score(self, batch: FeatureBatch, split: str, confusion: ConfusionCounts) -> None:
        """Count the predictions of a batch, controls included, and keep them where the modules keep those of the split.

        A head that ended predicts the first class.

        Args:
            split: the split of the batch.
            confusion: counts of all heads of the stack.

        Raises: NonFinite, naming cell and sample, for features that are not finite.
        """
        require_finite(batch, self.features)
        keeps = self.modules[0].keeps(split)
        kept: list[dict[str, Tensor]] = [{} for _ in self.targets]
        truth = torch.stack([labels_of(batch, target) for target in self._names])
        ended = torch.cat([module.ends.step for module in self.modules]) >= 0
        with torch.autocast(truth.device.type, enabled=False):  # the probe that is saved is float32
            for count, heads, logits in self.logits(batch):
                if ended.any():
                    logits = torch.where(ended[heads.numbers.to(ended.device)][:, None], 0.0, logits)
                label = truth[heads.targets.to(truth.device)]
                confusion.update(heads.numbers, logits.argmax(0), label)
                if keeps:
                    found = class_scores(logits.permute(1, 2, 0).reshape(-1, count), label.flatten())
                    parts = {name: part.unflatten(0, label.shape) for name, part in found.items()}
                    for at, number in enumerate(heads.numbers.tolist()):
                        kept[number] = {name: part[at] for name, part in parts.items()}
        own = iter(kept)
        for module in self.modules if keeps else ():
            module.keep(batch, split, [next(own) for _ in module.heads])


def summed_cross_entropy(
    logits: Float[Tensor, "n_classes heads batch"],
    label: Int[Tensor, "heads batch"],
    weight: Float[Tensor, "heads n_classes"] | None = None,
) -> Float[Tensor, " heads"]:
    """Return the cross entropy of each head in nats, summed over its samples; those labelled -1 are left out.

    Args:
        weight: weight of the samples of each class, for each head.
    """
    at = label.clamp(min=0)
    losses = -logits.log_softmax(0).gather(0, at[None])[0]
    if weight is not None:
        losses = losses * weight.to(losses).gather(1, at)
    return torch.where(label >= 0, losses, 0.0).sum(1)


def _all_finite(logits: Float[Tensor, "n_classes heads batch"]) -> Bool[Tensor, " heads"]:
    """Return for each head whether all of its logits are finite."""
    known = logits.detach()
    sums = torch.isfinite(known.sum((0, 2)))
    return sums if sums.all() else torch.isfinite(known).all(2).all(0)
