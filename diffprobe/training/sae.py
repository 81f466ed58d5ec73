"""SparseAutoencoderModule: trains a sparse autoencoder of any variant on the rows of one tap's cells."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.catalog import Catalog
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics.dead_latents import DeadLatents
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.contract import Config, Joint, StepOutput
from diffprobe.training.first_pass import FirstPass, check_finite
from diffprobe.training.module import ProbeModule, check_finite_loss
from diffprobe.training.rows import RowBuffer, check_one_tap, rows_of
from diffprobe.training.sae_scores import SplitScores


class SparseAutoencoderModule(ProbeModule):
    """Trains one autoencoder: AuxK for dead latents, unit-norm decoder rows after each step.

    Args:
        config: the probe's own settings; their file says which variant it is.
        cell: whose features are reconstructed; several are cells of one tap at different timesteps.
        d_in: the width of a row: a pooled vector, a place of a map, a token (see `rows_of`).
        settings, seed: see `ProbeModule`. The seed fixes the initial dictionary.
    """

    def __init__(
        self, config: Config, *, cell: str | Sequence[str], d_in: int, settings: TrainerConfig, seed: int = 0
    ) -> None:
        super().__init__(settings, seed=seed)
        self.config = config
        self.cells = (cell,) if isinstance(cell, str) else tuple(cell)
        check_one_tap(self.cells)
        self.default_learning_rate = config.learning_rate
        self.sae = make_sae(config, d_in, seed=derive_seed("sae", seed))
        # Its line is that of all processes, so each process and the checkpoint of one know all of it.
        self.dead_latents = DeadLatents(self.sae.n_latents, config.dead_after, sync_on_compute=False)
        self.dead_latents.persistent(True)
        n_latents = self.sae.n_latents
        self.measured = nn.ModuleDict(  # "train" is a name that every module has
            {f"on_{split}": SplitScores(d_in, n_latents, self.cells) for split in ("train", "val", "test")}
        )
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
            that the processes can't share equally or that is larger than the training set.
        """
        if not self.needs_first_pass():
            return
        found = self.ask(FirstPass(self.cells, self.sae.d_in, self.device))
        for batch in self.batches(self.train_split):
            found.update(batch)
        self.begin(found)

    def needs_first_pass(self) -> bool:
        """Whether anything has to be known of the training set. Raises: ConfigError, see `prepare`."""
        if self.row_buffer is not None:
            self.row_buffer.place(self.trainer.global_rank, self.trainer.world_size)
        return not bool(self.sae.initialised) or self._buffer_to_fill is not None

    @property
    def _buffer_to_fill(self) -> RowBuffer | None:
        return None if self.row_buffer is None or bool(self.row_buffer.filled) else self.row_buffer

    def ask(self, first: FirstPass) -> FirstPass:
        """Say, before the pass over the training set begins, which rows of it are wanted."""
        if self._buffer_to_fill is not None:
            first.choose(self._buffer_to_fill.size, seed=derive_seed("rows", self.seed))
        if not self.sae.initialised:
            first.choose(self._n_init, seed=self.seed)
        return first

    @property
    def _n_init(self) -> int:
        return self.config.init_samples if self.sae.needs_rows else 0

    def begin(self, found: FirstPass) -> None:
        """Start from what the pass found. Raises: ConfigError, see `prepare`."""
        buffer = self._buffer_to_fill
        if buffer is not None:
            rows = found.choose(buffer.size, seed=derive_seed("rows", self.seed)).compute(self.joint)
            if rows is not None:
                buffer.fill(rows)
        if self.sae.initialised:
            return
        sums, rows = found.moments.compute(), found.choose(self._n_init, seed=self.seed).compute(self.joint)
        try:
            self.sae.initialise(sums.mean, sums.variance, rows)
        except ConfigError as error:
            raise ConfigError(f"{_named(self.cells)}: {error.what}", *error.details, fix=error.fix) from error

    @property
    def joint(self) -> Joint:
        """How the processes of this run agree on a batch."""
        return Joint(self.mean_over_processes, self.gather_over_processes, self.trainer.world_size)

    def on_train_batch_start(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Let the variant prepare its weights."""
        self.sae.begin_step()

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the reconstruction loss with AuxK."""
        out = self.sae.step(self.training_rows(batch), dead=self.dead_latents.mask, joint=self.joint)
        return self.account(out, batch)

    def training_rows(self, batch: FeatureBatch) -> Tensor:
        """Return the rows to train on: the batch's own, or what the row buffer gives for them. Call once a step."""
        x = rows_of(batch, self.cells).x
        return x if self.row_buffer is None else self.row_buffer.exchange(x)

    def account(self, out: StepOutput, batch: FeatureBatch) -> Tensor:
        """Count the latents that a step used, log what it gave, and return its loss. Raises: NonFinite."""
        if not torch.isfinite(out.loss):
            check_finite(rows_of(batch, self.cells), batch, self.cells)
            check_finite_loss(out.loss.detach(), batch, ())
        dead = self.dead_latents.mask
        self.dead_latents.update(*out.code, gather=self.gather_over_processes)
        scores = {"train/loss": out.loss, "train/fvu": out.reconstruction, "train/aux": out.aux}
        scores |= {f"train/{name}": value for name, value in out.terms.items()}
        self.log_dict({name: value.detach() for name, value in scores.items()}, batch_size=len(batch))
        self.log("train/dead_fraction", dead.float().mean(), batch_size=len(batch), prog_bar=True)
        return out.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take out the gradient that would only lengthen decoder rows."""
        self.sae.remove_parallel_gradient()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the variant give the decoder rows unit norm again."""
        super().optimizer_step(*args, **kwargs)
        self.sae.end_step()

    def score(self, batch: FeatureBatch, split: str) -> None:
        """Add samples of a split to its metrics."""
        rows = rows_of(batch, self.cells)
        self._measured(split).update(rows, *self.sae(rows.x))

    def _measured(self, split: str) -> SplitScores:
        return cast(SplitScores, self.measured[f"on_{split}"])

    def validation_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Add validation samples to the metrics."""
        self.score(batch, "val")

    def test_step(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Add test samples to the metrics."""
        self.score(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Compute and log the scores."""
        self.finish("val")

    def on_test_epoch_end(self) -> None:
        """Compute and log the scores, of the training set too: how many latents it uses is part of the result."""
        self.finish("test")
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for batch in self.batches(self.train_split):
                self.score(batch, "train")
        self.finish("train")

    def finish(self, split: str) -> None:
        """Compute and log the scores of a split from all that `score` saw of it."""
        self.scores[split], by_cell = self._measured(split).compute()
        self.log_scores({f"{split}/{name}": value for name, value in self.scores[split].items() if name != "n"})
        for cell, scores in by_cell.items():
            self.log_scores({f"{split}/{name}/{cell}": value for name, value in scores.items() if name != "n"})
        if by_cell:
            self.cell_scores[split] = by_cell

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


def _named(cells: Sequence[str]) -> str:
    return f"cell '{cells[0]}'" if len(cells) == 1 else f"cells {', '.join(cells)}"
