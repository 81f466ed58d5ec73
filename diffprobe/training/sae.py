"""SparseAutoencoderModule: trains a k-sparse autoencoder on the features of one cell."""

from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics.fvu import Fvu
from diffprobe.metrics.moments import RunningMoments
from diffprobe.metrics.sparsity import LatentUse, count_active
from diffprobe.probes.sae import topk
from diffprobe.training.module import ProbeModule, check_finite_loss, vectors


class SparseAutoencoderModule(ProbeModule):
    """Trains a TopK autoencoder: AuxK for dead latents, unit-norm decoder rows after each step.

    Args:
        config: the probe's own settings.
        cell: whose features are reconstructed.
        d_in: their width.
        settings, seed: see `ProbeModule`. The seed fixes the initial dictionary.
    """

    default_learning_rate = 1e-3
    idle: Tensor

    def __init__(self, config: topk.Config, *, cell: str, d_in: int, settings: TrainerConfig, seed: int = 0) -> None:
        super().__init__(settings, seed=seed)
        self.config, self.cell = config, cell
        self.sae = topk.make(config, d_in, seed=derive_seed("sae", seed))
        self.k_aux = config.k_aux or max(d_in // 2, 1)
        self.register_buffer("idle", torch.zeros(self.sae.n_latents, dtype=torch.int64))  # samples since it was active
        splits = ("train", "val", "test")
        self.fvu = nn.ModuleDict({f"on_{split}": Fvu(d_in) for split in splits})
        self.use = nn.ModuleDict({f"on_{split}": LatentUse(self.sae.n_latents) for split in splits})
        self.scores: dict[str, dict[str, float]] = {}

    def prepare(self) -> None:
        """Set input scale and pre-bias from the training set, unless the weights bring their own."""
        if bool(self.sae.initialised):
            return
        running = RunningMoments(self.sae.d_in).to(self.device)
        for batch in self.batches(self.train_split):
            running.update(vectors(batch, self.cell))
        sums = running.compute()
        self.sae.initialise(sums.mean, sums.variance)

    @property
    def dead(self) -> Tensor:
        """Latents that were not active for `dead_after` training samples."""
        return self.idle >= self.config.dead_after

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the reconstruction loss with AuxK."""
        x = vectors(batch, self.cell)
        weight = self.config.aux_weight
        dead = self.dead
        out = self.sae.step(x, dead=dead, k_aux=self.k_aux, aux_weight=weight, reduce_mean=self.mean_over_processes)
        check_finite_loss(out.loss.detach(), batch, [self.cell])
        self._count_idle(out.code, len(batch))
        scores = {"train/loss": out.loss, "train/fvu": out.reconstruction, "train/aux": out.aux}
        self.log_dict({name: value.detach() for name, value in scores.items()}, batch_size=len(batch))
        self.log("train/dead_fraction", dead.float().mean(), batch_size=len(batch), prog_bar=True)
        return out.loss

    @torch.no_grad()
    def _count_idle(self, code: topk.Code, n: int) -> None:
        """Advance the counters by the samples of all processes."""
        active = count_active(code.values, code.indices, self.sae.n_latents)
        joint = self.sum_over_processes(torch.cat([active, active.new_tensor([n])]))
        self.idle += joint[-1]
        self.idle[joint[:-1] > 0] = 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take out the gradient that would only lengthen decoder rows."""
        self.sae.remove_parallel_gradient()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then give the decoder rows unit norm again."""
        super().optimizer_step(*args, **kwargs)
        self.sae.normalise_decoder()

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
                probe="topk",
                nulls=nulls.get(name, {}),
                detail=sizes,
            )
            for name, value in scores.items()
        ]

    def save(self, folder: Path) -> list[Path]:
        """Write the autoencoder."""
        return [self.sae.save_pretrained(folder / "sae", cell=self.cell)]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam; the step size rises over the first 5 % and falls to 0 over the last 20 % of the steps."""
        decay = self.settings.weight_decay
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=decay, eps=6.25e-10)
        return self.schedule(optimizer, lambda progress: min(1.0, (progress + 1e-3) / 0.05, (1 - progress) / 0.2))
