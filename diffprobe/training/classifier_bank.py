"""Training of a grid of classifiers in one run: cells, step sizes, seeds, label fractions and settings of the heads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.result import MetricRecord
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics.confusion import ConfusionCounts, score_heads
from diffprobe.probes.classifier.base import ClassifierConfig
from diffprobe.probes.shuffled_labels import hash_keys
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.classifier_pass import TrainingPass
from diffprobe.training.convergence import GradientSums, warn_of_distance
from diffprobe.training.head_stack import HeadStack
from diffprobe.training.module import ProbeModule


@dataclass(frozen=True, kw_only=True)
class MemberSpec:
    """Settings of one member of a bank: the classifiers of one point of a grid."""

    name: str
    """Name in logs and folders, unique in the bank."""
    config: ClassifierConfig
    """Settings of the heads."""
    cells: tuple[str, ...]
    """Cells whose features are read."""
    seed: int
    """Seed of the initial weights and the shuffled labels."""


class Member(ClassifierModule):
    """The classifiers of one point of a grid. The bank scores and logs them, under the name of the point.

    Args:
        spec: the settings of the point.
        name, widths, sizes, classes, only_control, metrics, settings: see `ClassifierModule`.
    """

    stops_without_heads = False

    def __init__(
        self,
        spec: MemberSpec,
        *,
        name: str,
        widths: Mapping[str, int],
        sizes: Mapping[str, tuple[int, int]],
        classes: Mapping[str, Sequence[str]],
        only_control: bool,
        metrics: Sequence[str],
        settings: TrainerConfig,
    ) -> None:
        super().__init__(
            name, spec.config, widths={cell: widths[cell] for cell in spec.cells}, sizes=sizes, classes=classes,
            only_control=only_control, metrics=metrics, settings=settings, seed=spec.seed,
        )  # fmt: skip
        self.label, self.prefix = spec.name, f"{spec.name}: "
        self.confusion = ConfusionCounts([])  # the bank counts for all members


class ClassifierBankModule(ProbeModule):
    """Trains the classifiers of several points of a grid on the same batches.

    The training set is read once per epoch, once before training and once after it, for all members together; so is
    the backbone run, where features are live. Members share no weights and AdamW works elementwise, so one optimizer
    with a group of parameters per member takes the steps of single runs, bit for bit. With `batched`, all heads are
    computed as stacks (`HeadStack`) and a member is updated by one kernel, equal to rounding. A head that diverges ends
    (`ClassifierModule`).

    Args:
        name: file of the head in `probes/classifier`.
        specs: the members.
        widths, sizes, classes, only_control, metrics, settings: see `ClassifierModule`.
        seed: members have their own seeds; nothing depends on this one.
        batched: compute members together.

    Raises: ConfigError for no member, two members of one name, seeds that change nothing, and precision=16-mixed.
    """

    def __init__(
        self,
        name: str,
        specs: Sequence[MemberSpec],
        *,
        widths: Mapping[str, int],
        sizes: Mapping[str, tuple[int, int]] | None = None,
        classes: Mapping[str, Sequence[str]],
        only_control: bool = False,
        metrics: Sequence[str] = (),
        settings: TrainerConfig,
        seed: int = 0,
        batched: bool = False,
    ) -> None:
        super().__init__(settings, seed=seed)
        names = [spec.name for spec in specs]
        if not names or len(set(names)) < len(names):
            raise ConfigError("a bank needs members of unique names.", f"given: {', '.join(names) or 'none'}")
        if settings.precision == "16-mixed":
            raise ConfigError(
                "precision=16-mixed scales the loss of all members together: an overflow in one member would skip a "
                "step of the others.",
                fix="trainer.precision=bf16-mixed or 32-true, or one run per member",
            )
        self.batched, self.n_members = batched, len(specs)
        for i, spec in enumerate(specs):
            member = Member(
                spec, name=name, widths=widths, sizes=sizes or {}, classes=classes, only_control=only_control,
                metrics=metrics, settings=settings,
            )  # fmt: skip
            self.add_module(f"member_{i}", member)  # direct children: Lightning sets the trainer of these only
        if len({spec.seed for spec in specs}) > 1 and not self.members[0].seed_counts:
            raise ConfigError(
                f"probe.grid.seed has no effect: the weights of probe '{name}' start at zero, the order of the samples "
                "follows the seed of the run, and no control is drawn.",
                fix="leave seed out of the grid",
            )
        self._stack = HeadStack(self.members, joined=batched)
        self.confusion = ConfusionCounts([len(m.classes[h.target]) for m in self.members for h in m.heads])

    @property
    def members(self) -> list[Member]:
        """The classifiers of each point, in the order of the specs."""
        return [cast(Member, self.get_submodule(f"member_{i}")) for i in range(self.n_members)]

    @property
    def seed_varies(self) -> tuple[str, ...]:
        """What the seed of a member changes."""
        return self.members[0].seed_varies

    def prepare(self) -> None:
        """Initialise all members from one pass over the training set."""
        parts = [member.training_pass() for member in self.members]
        whole = TrainingPass(
            {name: shapes for part in parts for name, shapes in part.inputs.items()},
            {name: width for part in parts for name, width in part.widths.items()},
            parts[0].targets,
            self.device,
        )
        exact = self.batches if whole.moments else self.raw_batches
        for batch in exact(self.train_split):
            whole.update(batch, self.group_ids(batch), self.device)
        for member in self.members:
            member.initialise(whole, self.train_split, self.group_by)

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the sum of the members' losses. Raises: NonFinite if no head of any member is left."""
        loss = self._stack.loss(batch) if self.batched else self._loss_of_each(batch)
        if (self._stack.has_failed or not self.batched) and all(member.is_exhausted for member in self.members):
            raise NonFinite(
                f"the loss of all heads of {len(self.members)} members became NaN or infinite on finite features.",
                fix="smaller values of learning_rate, or precision=32-true",
            )
        self.log("train/loss", loss.detach() / len(self._stack.targets), batch_size=len(batch), prog_bar=True)
        return loss

    def _loss_of_each(self, batch: FeatureBatch) -> Tensor:
        """Return the sum of the members' losses, each as in a run of its own, bit for bit."""
        members, hashes = self.members, hash_keys(batch.keys)
        found: list[dict[str, list[Tensor]]] = [{} for _ in members]
        for cell in dict.fromkeys(cell for member in members for cell in member.cells):
            readers = [i for i, member in enumerate(members) if cell in member.cells]
            banks = [members[i].banks[members[i].cells.index(cell)] for i in readers]
            x = members[readers[0]].read(batch, cell)
            for i, bank in zip(readers, banks, strict=True):
                found[i][cell] = bank(x)
        losses = [member.joint_loss(batch, own, hashes) for member, own in zip(members, found, strict=True)]
        return torch.stack(losses).sum()

    def on_train_end(self) -> None:
        """End the heads whose loss was not finite in the last step."""
        for member in self.members:
            member.on_train_end()

    def on_test_epoch_end(self) -> None:
        """Score the test set, and measure in one pass how far the members stopped from a minimum."""
        super().on_test_epoch_end()
        members = [member for member in self.members if member.has_distance()]
        measured = [member.gradient_sums() for member in members]
        self._sum_gradients(members, measured)
        ratios = {
            f"{member.label}: {head}": ratio
            for member, sums in zip(members, measured, strict=True)
            for head, ratio in member.compare_gradients(sums).items()
        }
        if self.trainer.is_global_zero:
            warn_of_distance(ratios)

    def _sum_gradients(self, members: Sequence[Member], measured: Sequence[tuple[GradientSums, GradientSums]]) -> None:
        """Add the gradients of some members over the training set, with the final and with the initial weights."""
        if not members:
            return
        ends: list[list[GradientSums]] = [list(sums) for sums in zip(*measured, strict=True)]
        stacks = [HeadStack(members, joined=True, banks=[one.banks for one in sums]) for sums in ends]
        for batch in self.batches(self.train_split):
            if self.batched:
                for stack, sums in zip(stacks, ends, strict=True):
                    stack.add_gradients(batch, sums)
            else:
                for member, own in zip(members, measured, strict=True):
                    member.add_gradients(batch, own)

    def score(self, batch: FeatureBatch, split: str) -> None:
        """Count the predictions of all members. Raises: NonFinite, naming cell and sample."""
        self._stack.score(batch, split, self.confusion)

    def finish(self, split: str) -> None:
        """Compute and log the scores of all members. Raises: EmptyClass for a target without samples."""
        counts = [matrix.cpu() for matrix in self.confusion.compute()]  # summed over the processes
        self.confusion.reset()
        scores, held = score_heads(self.members[0].metrics, counts, self._stack.targets)
        logged: dict[str, float] = {}
        start = 0
        for member, size in zip(self.members, self._stack.sizes, strict=True):
            own = slice(start, start + size)
            found = member.take_scores(split, scores[own], held[own])
            logged |= {f"{member.label}/{name}": value for name, value in found.items()}
            start += size
        self.log_at_once(logged)

    def records(self, split: str) -> list[MetricRecord]:
        """Return the records of all members, in the order of `members`."""
        return [record for member in self.members for record in member.records(split)]

    def save(self, folder: Path) -> list[Path]:
        """Write the classifiers of each member to a folder named after it."""
        return [path for member in self.members for path in member.save(folder / member.label)]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a group of parameters per member; all step sizes fall to 0 along a cosine."""
        groups: list[dict[str, Any]] = [
            {"params": list(member.parameters()), "lr": member.learning_rate} for member in self.members
        ]
        fused = True if self.batched else None  # one kernel for all weights of a member, equal to rounding
        optimizer = torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay, fused=fused)
        return self.schedule(optimizer, lambda progress: (1 + math.cos(math.pi * progress)) / 2)
