"""Training of many sparse autoencoders in one pass over the features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord
from diffprobe.features.batch import FeatureBatch
from diffprobe.probes.sae.types import Config
from diffprobe.training.module import ProbeModule
from diffprobe.training.sae import SparseAutoencoderModule, check_precision, naming
from diffprobe.training.sae_bank_batched import step_members
from diffprobe.training.training_statistics import FirstPass


@dataclass(frozen=True, kw_only=True)
class MemberSpec:
    """Settings of one autoencoder of a bank."""

    name: str
    """Name in logs and folders, unique in the bank."""
    config: Config
    """Settings of the probe."""
    cell: str
    """Cell whose features are reconstructed."""
    d_in: int
    """Width of the features."""
    seed: int
    """Seed of the initial dictionary."""


class Member(SparseAutoencoderModule):
    """One autoencoder of a bank. It logs through the bank, under its own name.

    Args:
        spec: its settings.
        settings: see `ProbeModule`.
        log_to: the `log` method of the bank.
    """

    def __init__(self, spec: MemberSpec, *, settings: TrainerConfig, log_to: Callable[..., None]) -> None:
        super().__init__(spec.config, cell=spec.cell, d_in=spec.d_in, settings=settings, seed=spec.seed)
        self.label, self._log_to = spec.name, log_to

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log a value as <name of the member>/<name>; only the bank is attached to the Trainer."""
        self._log_to(f"{self.label}/{name}", value, *args, **kwargs)


class SparseAutoencoderBankModule(ProbeModule):
    """Trains several autoencoders on the same batches; each ends with the weights of a run of its own.

    The loss is the sum of the members' losses. Members share no weights, so each has the gradients of a single run;
    AdamW works elementwise, so one optimizer with one parameter group per member takes the steps of single runs.
    Gradients are clipped by the norm of each member.

    The batches are read once for all members: in training, in the pass before it (scales, initial rows), and in the
    pass after it that scores the training set. The sparse steps run one after the other; the tensors that their
    gradients need are kept for all members until the backward pass. With `batched`, members of equal shape are stepped
    together (`sae_bank_batched.py`): fewer and larger operations, and weights that agree to rounding. A NaN or infinite
    loss of one member stops the run.

    Args:
        specs: the members.
        settings, seed: see `ProbeModule`. Members have their own seeds; nothing depends on this one.
        batched: step members of equal shape together. They then agree with single runs to rounding, not bit for bit.

    Raises: ConfigError for no member, for two members of one name, for a precision that would round the weights, for
        precision=16-mixed, and, naming the member, for settings that do not fit its features.
    """

    scores_training_set = True

    def __init__(
        self, specs: Sequence[MemberSpec], *, settings: TrainerConfig, seed: int = 0, batched: bool = False
    ) -> None:
        check_precision(settings)
        super().__init__(settings, seed=seed)
        self.batched = batched
        names = [spec.name for spec in specs]
        if not names:
            raise ConfigError("the bank has no members; at least 1 is needed.")
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ConfigError(f"members of a bank need unique names; used twice: {', '.join(twice)}.")
        if settings.precision == "16-mixed":
            raise ConfigError(
                "precision=16-mixed scales the loss of all members together: an overflow in one member would skip a "
                "step of the others.",
                fix="trainer.precision=bf16-mixed or 32-true, or one run per member",
            )
        self.n_members = len(specs)
        for i, spec in enumerate(specs):
            with naming(spec.name):  # direct children: Lightning sets the trainer of these only
                member = Member(spec, settings=settings, log_to=self.log)
                for other in self._modules.values():  # one sum for all members that read a cell
                    if isinstance(other, Member) and other.cells == member.cells and other.sums_controls:
                        member.controls, member.sums_controls = other.controls, False
                self.add_module(f"member_{i}", member)

    @property
    def members(self) -> list[Member]:
        """The autoencoders under training, in the order of their specs."""
        return [cast(Member, self.get_submodule(f"member_{i}")) for i in range(self.n_members)]

    def prepare(self) -> None:
        """Initialise all members from one pass over the training set; weights of a resumed run stay unchanged."""
        found: dict[tuple[str, ...], FirstPass] = {}
        first: dict[tuple[str, ...], Member] = {}  # the first member of those that read the same cells
        starting = []
        for member in self.members:
            with naming(member.label):
                if member.needs_statistics():
                    starting.append(member)
        for member in starting:
            cells = member.cells
            first.setdefault(cells, member)
            found[cells] = member.request_rows(found.get(cells) or FirstPass(cells, member.sae.d_in, self.device))
        for batch in self.batches(self.train_split) if starting else ():
            for cells, statistics in found.items():
                with naming(first[cells].label):
                    statistics.update(batch)
        for member in starting:
            with naming(member.label):
                member.initialise(found[member.cells])

    def on_train_batch_start(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Prepare the weights of all members."""
        for member in self.members:
            member.on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the sum of the members' losses. Raises: NonFinite, naming the member."""
        losses, members = [], self.members
        outputs = step_members(members, batch) if self.batched else None
        for i, member in enumerate(members):
            with naming(member.label):
                losses.append(member.account(outputs[i], batch) if outputs else member.training_step(batch, batch_idx))
        return torch.stack(losses).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Remove the part of each decoder's gradient that is parallel to its rows."""
        for member in self.members:
            member.on_before_optimizer_step(optimizer)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of each member by its own norm, as in a single run."""
        if gradient_clip_val is None:
            return
        for member in self.members:
            torch.nn.utils.clip_grad_norm_(member.parameters(), gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then restore what the variants require of the weights: decoder rows of unit norm."""
        super().optimizer_step(*args, **kwargs)
        for member in self.members:
            member.sae.end_step()

    def score(self, batch: FeatureBatch, split: str) -> None:
        """Add samples of a split to the metrics of all members. Raises: NonFinite, naming member, cell and sample."""
        for member in self.members:
            with naming(member.label):
                member.score(batch, split)

    def finish(self, split: str) -> None:
        """Compute and log the scores of all members. Raises: NonFinite, naming the member."""
        for member in self.members:
            with naming(member.label):
                member.finish(split)

    def records(self, split: str) -> list[MetricRecord]:
        """Return the records of all members, in the order of `members`."""
        return [record for member in self.members for record in member.records(split)]

    def save(self, folder: Path) -> list[Path]:
        """Write each autoencoder to a folder named after the member."""
        return [path for member in self.members for path in member.save(folder / member.label)]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return one optimizer and scheduler for all members: one parameter group and one schedule per member."""
        groups, factors = [], []
        for member in self.members:
            alone = cast(Any, member.configure_optimizers())
            for group in alone["optimizer"].param_groups:
                groups.append({**group, "lr": group["initial_lr"]})
            factors += alone["lr_scheduler"]["scheduler"].lr_lambdas
        optimizer = torch.optim.AdamW(groups, fused=groups[0]["fused"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
