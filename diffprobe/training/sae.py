"""SparseAutoencoderModule: trains a sparse autoencoder of any variant on the rows of one tap's cells."""

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
from diffprobe.metrics.grouped import Grouped
from diffprobe.metrics.moments import RunningMoments
from diffprobe.metrics.sparsity import LatentUse, count_active
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.contract import Code, Config, Joint
from diffprobe.training.module import ProbeModule, check_finite_loss
from diffprobe.training.rows import ChosenRows, RowBuffer, Rows, check_one_tap, rows_of


class SparseAutoencoderModule(ProbeModule):
    """Trains one autoencoder: AuxK for dead latents, unit-norm decoder rows after each step.

    Args:
        config: the probe's own settings; their file says which variant it is.
        cell: whose features are reconstructed; several are cells of one tap at different timesteps.
        d_in: the width of a row: a pooled vector, a place of a map, a token (see `rows_of`).
        settings, seed: see `ProbeModule`. The seed fixes the initial dictionary.
    """

    idle: Tensor

    def __init__(
        self, config: Config, *, cell: str | Sequence[str], d_in: int, settings: TrainerConfig, seed: int = 0
    ) -> None:
        super().__init__(settings, seed=seed)
        self.config = config
        self.cells = (cell,) if isinstance(cell, str) else tuple(cell)
        check_one_tap(self.cells)
        self.default_learning_rate = config.learning_rate
        self.sae = make_sae(config, d_in, seed=derive_seed("sae", seed))
        self.register_buffer("idle", torch.zeros(self.sae.n_latents, dtype=torch.int64))  # rows since it was active
        splits = ("train", "val", "test")
        self.fvu = nn.ModuleDict({f"on_{split}": Fvu(d_in) for split in splits})
        self.use = nn.ModuleDict({f"on_{split}": LatentUse(self.sae.n_latents) for split in splits})
        several = self.cells if len(self.cells) > 1 else ()
        self.cell_fvu = nn.ModuleDict({f"on_{split}": Grouped(Fvu(d_in), several) for split in splits if several})
        use = LatentUse(self.sae.n_latents)
        self.cell_use = nn.ModuleDict({f"on_{split}": Grouped(use, several) for split in splits if several})
        size = config.row_buffer
        self.row_buffer = RowBuffer(size, d_in, seed=derive_seed("rows", seed)) if size else None
        self.scores: dict[str, dict[str, float]] = {}
        self.cell_scores: dict[str, dict[str, dict[str, float]]] = {}

    @property
    def cell(self) -> str | None:
        """The cell, None where there are several."""
        return self.cells[0] if len(self.cells) == 1 else None

    def prepare(self) -> None:
        """Set input scale, pre-bias and what else starts from the training set, unless the weights bring their own.

        Raises: NonFinite, naming cell and sample; ConfigError, naming the cell, for constant features, for a row buffer
            in several processes or larger than the training set.
        """
        if self.row_buffer is not None and self.trainer.world_size > 1:
            raise ConfigError(
                f"probe.params.row_buffer={self.row_buffer.size} with {self.trainer.world_size} processes.",
                "a checkpoint holds the buffer of one process, so such a run could not be continued",
                fix="trainer.devices=1, or probe.params.row_buffer=0",
            )
        buffer = None if self.row_buffer is None or bool(self.row_buffer.filled) else self.row_buffer
        is_initialised = bool(self.sae.initialised)
        if is_initialised and buffer is None:
            return
        running = RunningMoments(self.sae.d_in).to(self.device)
        chosen = ChosenRows(self.config.init_samples if self.sae.needs_rows else 0, seed=self.seed)
        held = ChosenRows(buffer.size if buffer else 0, seed=derive_seed("rows", self.seed))
        for batch in self.batches(self.train_split):
            rows = rows_of(batch, self.cells)
            check_finite(rows, batch, self.cells)
            running.update(rows.x)
            for some in (chosen, held):
                some.update(rows.x, batch.keys, rows)
        first = held.compute(self.joint)
        if buffer is not None and first is not None:
            buffer.fill(first)
        if is_initialised:
            return
        sums = running.compute()
        try:
            self.sae.initialise(sums.mean, sums.variance, chosen.compute(self.joint))
        except ConfigError as error:
            raise ConfigError(f"{_named(self.cells)}: {error.what}", *error.details, fix=error.fix) from error

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
        """Latents that were not active for `dead_after` training rows."""
        return self.idle >= self.config.dead_after

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the reconstruction loss with AuxK."""
        x = rows_of(batch, self.cells).x
        if self.row_buffer is not None:
            x = self.row_buffer.exchange(x)
        dead = self.dead
        out = self.sae.step(x, dead=dead, joint=self.joint)
        check_finite_loss(out.loss.detach(), batch, self.cells)
        self._count_idle(out.code, len(x))
        scores = {"train/loss": out.loss, "train/fvu": out.reconstruction, "train/aux": out.aux}
        scores |= {f"train/{name}": value for name, value in out.terms.items()}
        self.log_dict({name: value.detach() for name, value in scores.items()}, batch_size=len(batch))
        self.log("train/dead_fraction", dead.float().mean(), batch_size=len(batch), prog_bar=True)
        return out.loss

    @torch.no_grad()
    def _count_idle(self, code: Code, n: int) -> None:
        """Advance the counters by the rows of all processes."""
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
        rows = rows_of(batch, self.cells)
        x_hat, code = self.sae(rows.x)
        self._fvu(split).update(rows.x, x_hat)
        self._use(split).update(code.values, code.indices)
        if self.cell is None:
            fvu, use = self._grouped(split)
            for i, cell in enumerate(self.cells):
                mine = rows.group == i
                fvu.update(cell, rows.x[mine], x_hat[mine])
                use.update(cell, code.values[mine], code.indices[mine])

    def _grouped(self, split: str) -> tuple[Grouped, Grouped]:
        return cast(Grouped, self.cell_fvu[f"on_{split}"]), cast(Grouped, self.cell_use[f"on_{split}"])

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
        self.scores[split] = _scores(self._fvu(split), self._use(split))
        self.log_scores({f"{split}/{name}": value for name, value in self.scores[split].items() if name != "n"})
        if self.cell is None:
            fvu, use = self._grouped(split)
            found = self.cell_scores[split] = {cell: _scores(fvu[cell], use[cell]) for cell in self.cells}
            for cell, scores in found.items():
                self.log_scores({f"{split}/{name}/{cell}": value for name, value in scores.items() if name != "n"})
            fvu.reset()
            use.reset()

    def records(self, split: str) -> list[MetricRecord]:
        """Return fvu, explained variance, L0 and dead fraction (latents never active on the split).

        Several cells give them over all rows, under no cell, and then of each; `n` counts rows.
        """
        found = self._records(self.scores[split], split, self.cell)
        for cell, scores in self.cell_scores.get(split, {}).items():
            found += self._records(scores, split, cell)
        return found

    def _records(self, scores: dict[str, float], split: str, cell: str | None) -> list[MetricRecord]:
        nulls = {"fvu": {"mean_prediction": 1.0}, "explained_variance": {"mean_prediction": 0.0}}
        sizes: dict[str, Any] = {"n_latents": self.sae.n_latents, "k": self.sae.k, "d_in": self.sae.d_in}
        if cell is None:
            sizes["cells"] = list(self.cells)
        return [
            MetricRecord(
                name=name,
                value=value,
                split=split,
                n=int(scores["n"]),
                cell=cell,
                probe=self.sae.variant,
                nulls=nulls.get(name, {}),
                detail=sizes,
            )
            for name, value in scores.items()
            if name != "n"
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


def make_sae(config: Config, d_in: int, *, seed: int) -> KSAE:
    """Make the autoencoder of the variant in whose file the settings are defined."""
    name = type(config).__module__.rpartition(".")[2]
    return cast(KSAE, Catalog("diffprobe.probes.sae", "sparse autoencoder").load(name).make(config, d_in, seed=seed))


def check_finite(rows: Rows, batch: FeatureBatch, cells: Sequence[str]) -> None:
    """Refuse features that are no numbers. Raises: NonFinite, naming cell and first sample."""
    bad = ~torch.isfinite(rows.x).all(1)
    if not bad.any():
        return
    group = rows.group[bad][0]
    samples = rows.sample[bad & (rows.group == group)].unique()
    key = batch.keys[int(samples[0])]
    raise NonFinite(f"cell '{cells[int(group)]}' has NaN or infinity in {len(samples)} samples, the first is '{key}'.")


def _named(cells: Sequence[str]) -> str:
    return f"cell '{cells[0]}'" if len(cells) == 1 else f"cells {', '.join(cells)}"


def _scores(fvu: Fvu, use: LatentUse) -> dict[str, float]:
    """Compute the numbers of one set of rows, with their count `n`, and forget the rows."""
    scores = {"fvu": float(fvu.compute())}
    scores["explained_variance"] = 1 - scores["fvu"]
    used = use.compute()
    scores |= {name: float(used[name]) for name in ("l0", "dead_fraction")}
    with fvu.sync_context():
        scores["n"] = int(fvu.n)
    fvu.reset()
    use.reset()
    return scores
