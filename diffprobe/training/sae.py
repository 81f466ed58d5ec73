"""SparseAutoencoderModule: trains a sparse autoencoder of any variant on the features of one cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.catalog import Catalog
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics.fvu import Fvu
from diffprobe.metrics.moments import RunningMoments
from diffprobe.metrics.sparsity import LatentUse, count_active
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.contract import Code, Config, Joint
from diffprobe.training.module import ProbeModule, check_finite_loss, vectors


class SparseAutoencoderModule(ProbeModule):
    """Trains one autoencoder: AuxK for dead latents, unit-norm decoder rows after each step.

    Args:
        config: the probe's own settings; their file says which variant it is.
        cell: whose features are reconstructed.
        d_in: their width.
        settings, seed: see `ProbeModule`. The seed fixes the initial dictionary.
    """

    idle: Tensor

    def __init__(self, config: Config, *, cell: str, d_in: int, settings: TrainerConfig, seed: int = 0) -> None:
        super().__init__(settings, seed=seed)
        self.config, self.cell = config, cell
        self.default_learning_rate = config.learning_rate
        self.sae = make_sae(config, d_in, seed=derive_seed("sae", seed))
        self.register_buffer("idle", torch.zeros(self.sae.n_latents, dtype=torch.int64))  # samples since it was active
        splits = ("train", "val", "test")
        self.fvu = nn.ModuleDict({f"on_{split}": Fvu(d_in) for split in splits})
        self.use = nn.ModuleDict({f"on_{split}": LatentUse(self.sae.n_latents) for split in splits})
        self.scores: dict[str, dict[str, float]] = {}

    def prepare(self) -> None:
        """Set input scale, pre-bias and what else starts from the training set, unless the weights bring their own.

        Raises: NonFinite, naming cell and sample; ConfigError, naming the cell, for constant features.
        """
        if bool(self.sae.initialised):
            return
        running = RunningMoments(self.sae.d_in).to(self.device)
        chosen = ChosenRows(self.config.init_samples if self.sae.needs_rows else 0, seed=self.seed)
        for batch in self.batches(self.train_split):
            x = vectors(batch, self.cell)
            check_finite(x, batch, self.cell)
            running.update(x)
            chosen.update(x, batch.keys)
        sums = running.compute()
        try:
            self.sae.initialise(sums.mean, sums.variance, chosen.compute(self.joint))
        except ConfigError as error:
            raise ConfigError(f"cell '{self.cell}': {error.what}", *error.details, fix=error.fix) from error

    @property
    def joint(self) -> Joint:
        """How the processes of this run agree on a batch."""
        return Joint(self.mean_over_processes, self.gather_over_processes, self.trainer.world_size)

    def gather_over_processes(self, values: Tensor) -> Tensor:
        """Return the vectors of all processes, of equal length, behind each other."""
        if self.trainer.world_size == 1:
            return values
        return cast(Tensor, self.all_gather(values)).flatten(0, 1)

    def on_train_batch_start(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Let the variant prepare its weights."""
        self.sae.begin_step()

    @property
    def dead(self) -> Tensor:
        """Latents that were not active for `dead_after` training samples."""
        return self.idle >= self.config.dead_after

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the reconstruction loss with AuxK."""
        x = vectors(batch, self.cell)
        dead = self.dead
        out = self.sae.step(x, dead=dead, joint=self.joint)
        check_finite_loss(out.loss.detach(), batch, [self.cell])
        self._count_idle(out.code, len(batch))
        scores = {"train/loss": out.loss, "train/fvu": out.reconstruction, "train/aux": out.aux}
        scores |= {f"train/{name}": value for name, value in out.terms.items()}
        self.log_dict({name: value.detach() for name, value in scores.items()}, batch_size=len(batch))
        self.log("train/dead_fraction", dead.float().mean(), batch_size=len(batch), prog_bar=True)
        return out.loss

    @torch.no_grad()
    def _count_idle(self, code: Code, n: int) -> None:
        """Advance the counters by the samples of all processes."""
        active = count_active(code.values, code.indices, self.sae.n_latents)
        joint = self.sum_over_processes(torch.cat([active, active.new_tensor([n])]))
        self.idle += joint[-1]
        self.idle[joint[:-1] > 0] = 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take out the gradient that would only lengthen decoder rows."""
        self.sae.remove_parallel_gradient()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the variant give the decoder rows unit norm again."""
        super().optimizer_step(*args, **kwargs)
        self.sae.end_step()

    def _fvu(self, split: str) -> Fvu:
        return cast(Fvu, self.fvu[f"on_{split}"])

    def _use(self, split: str) -> LatentUse:
        return cast(LatentUse, self.use[f"on_{split}"])

    def _score(self, batch: FeatureBatch, split: str) -> None:
        x = vectors(batch, self.cell)
        x_hat, code = self.sae(x)
        self._fvu(split).update(x, x_hat)
        self._use(split).update(code.values, code.indices)

    def validation_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Add validation samples to the metrics."""
        self._score(batch, "val")

    def test_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Add test samples to the metrics."""
        self._score(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Compute and log the scores."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Compute and log the scores, of the training set too: how many latents it uses is part of the result."""
        self._finish("test")
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for batch in self.batches(self.train_split):
                self._score(batch, "train")
        self._finish("train")

    def _finish(self, split: str) -> None:
        fvu, use = self._fvu(split), self._use(split)
        scores = {"fvu": float(fvu.compute())}
        scores["explained_variance"] = 1 - scores["fvu"]
        used = use.compute()
        scores |= {name: float(used[name]) for name in ("l0", "dead_fraction")}
        with fvu.sync_context():
            n = int(fvu.n)
        fvu.reset()
        use.reset()
        self.scores[split] = {**scores, "n": n}
        self.log_scores({f"{split}/{name}": value for name, value in scores.items()})

    def records(self, split: str) -> list[MetricRecord]:
        """Return fvu, explained variance, L0 and dead fraction (latents never active on the split)."""
        scores = dict(self.scores[split])
        n = int(scores.pop("n"))
        nulls = {"fvu": {"mean_prediction": 1.0}, "explained_variance": {"mean_prediction": 0.0}}
        sizes = {"n_latents": self.sae.n_latents, "k": self.sae.k, "d_in": self.sae.d_in}
        return [
            MetricRecord(
                name=name,
                value=value,
                split=split,
                n=n,
                cell=self.cell,
                probe=self.sae.variant,
                nulls=nulls.get(name, {}),
                detail=sizes,
            )
            for name, value in scores.items()
        ]

    def save(self, folder: Path) -> list[Path]:
        """Write the autoencoder."""
        return [self.sae.save_pretrained(folder / "sae", cell=self.cell)]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam; the step size rises over the first steps and falls to 0 over the last, as the probe's config says."""
        fused = self.settings.precision != "16-mixed"  # the loss scaler unscales by itself, and fused Adam would again
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.learning_rate,
            weight_decay=self.settings.weight_decay,
            eps=self.config.adam_eps,
            fused=fused,
        )
        rise, fall = 0.05, self.config.decay
        if self.config.warmup_steps is not None:
            rise = self.config.warmup_steps / self._total_steps()

        def factor(progress: float) -> float:
            return min(1.0, (progress + 1e-3) / rise, (1 - progress) / fall if fall > 0 else 1.0)

        return self.schedule(optimizer, factor)


class ChosenRows:
    """The samples with the smallest hashes of their keys: the same ones in any order and on any number of processes.

    Args:
        n: how many; 0 for none.
        seed: another seed chooses others.
    """

    def __init__(self, n: int, *, seed: int) -> None:
        self.n, self.seed = n, seed
        self._rows: Tensor | None = None
        self._ranks: Tensor | None = None

    def update(self, x: Tensor, keys: Sequence[str]) -> None:
        """Add samples."""
        if self.n == 0:
            return
        ranks = torch.tensor([derive_seed("init", self.seed, key) for key in keys], device=x.device)
        if self._rows is None or self._ranks is None:
            self._rows, self._ranks = x, ranks
        else:
            self._rows, self._ranks = torch.cat([self._rows, x]), torch.cat([self._ranks, ranks])
        order = self._ranks.argsort()[: self.n]
        self._rows, self._ranks = self._rows[order], self._ranks[order]

    def compute(self, joint: Joint) -> Tensor | None:
        """Return the chosen samples of all processes; None where none are wanted."""
        if self._rows is None or self._ranks is None:
            return None
        rows, ranks = self._rows, self._ranks
        if joint.size > 1:
            longest = int(joint.gather(torch.tensor([len(ranks)], device=rows.device)).max())
            missing = longest - len(ranks)  # processes have unequal shares: fill up, and drop it again below
            rows = nn.functional.pad(rows, (0, 0, 0, missing))
            # not by pad: its value goes through a float, which rounds the largest integer out of range
            ranks = torch.cat([ranks, ranks.new_full((missing,), torch.iinfo(torch.int64).max)])
            rows = joint.gather(rows.flatten()).view(-1, rows.shape[1])
            ranks = joint.gather(ranks)
        order = ranks.argsort()[: self.n]
        return rows[order[ranks[order] < torch.iinfo(torch.int64).max]]


def make_sae(config: Config, d_in: int, *, seed: int) -> KSAE:
    """Make the autoencoder of the variant in whose file the settings are defined."""
    name = type(config).__module__.rpartition(".")[2]
    return cast(KSAE, Catalog("diffprobe.probes.sae", "sparse autoencoder").load(name).make(config, d_in, seed=seed))


def check_finite(x: Tensor, batch: FeatureBatch, cell: str) -> None:
    """Refuse features that are no numbers. Raises: NonFinite, naming cell and first sample."""
    bad = ~torch.isfinite(x).all(1)
    if bad.any():
        key = batch.keys[int(bad.nonzero()[0])]
        raise NonFinite(f"cell '{cell}' has NaN or infinity in {int(bad.sum())} samples, the first is '{key}'.")
