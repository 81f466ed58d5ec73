"""SparseAutoencoderModule: trains a sparse autoencoder of any variant on the rows of one tap's cells."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.registry import probes
from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics.dead_latents import DeadLatents
from diffprobe.metrics.decoder_coherence import Coherence, decoder_coherence
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.types import Collective, Config, StepOutput
from diffprobe.training.module import ProbeModule, check_finite_loss
from diffprobe.training.sae_records import coherence_records, split_records, window_record
from diffprobe.training.sae_rows import ShuffleBuffer, check_one_tap, rows_of
from diffprobe.training.sae_schedule import check_precision, step_size_factor, warn_of_window
from diffprobe.training.sae_scores import Scores, SplitScores
from diffprobe.training.training_statistics import FirstPass, check_finite


class SparseAutoencoderModule(ProbeModule):
    """Trains one autoencoder: AuxK for dead latents, unit-norm decoder rows after each step.

    Args:
        config: the probe's own settings; their file says which variant it is.
        cell: whose features are reconstructed; several are cells of one tap at different timesteps.
        d_in: the width of a row: a pooled vector, a place of a map, a token (see `rows_of`).
        settings, seed: see `ProbeModule`. The seed fixes the initial dictionary.

    Raises: ConfigError for a precision that would round the weights, cells of several taps, k above the latents.
    """

    def __init__(
        self, config: Config, *, cell: str | Sequence[str], d_in: int, settings: TrainerConfig, seed: int = 0
    ) -> None:
        check_precision(settings)
        super().__init__(settings, seed=seed)
        self.config = config
        self.cells = (cell,) if isinstance(cell, str) else tuple(cell)
        check_one_tap(self.cells)
        self.default_learning_rate = config.learning_rate
        self.sae = make_sae(config, d_in, seed=derive_seed("sae", seed))
        # Its line is that of all processes, so each process and the checkpoint of one know all of it.
        self.dead_latents = DeadLatents(self.sae.n_latents, config.dead_window, sync_on_compute=False)
        self.dead_latents.persistent(True)
        n_latents = self.sae.n_latents
        self.measured = nn.ModuleDict(  # "train" is a name that every module has
            {f"on_{split}": SplitScores(d_in, n_latents, self.cells) for split in ("train", "val", "test")}
        )
        size = config.row_buffer
        self.row_buffer = ShuffleBuffer(size, d_in, seed=derive_seed("rows", seed)) if size else None
        self.scores: dict[str, dict[str, float]] = {}
        self._found: dict[str, tuple[Scores, dict[str, Scores]]] = {}
        self._coherence: Coherence | None = None

    @property
    def cell(self) -> str | None:
        """The cell, None where there are several."""
        return self.cells[0] if len(self.cells) == 1 else None

    def prepare(self) -> None:
        """Set input scale, pre-bias and what else starts from the training set, unless the weights bring their own.

        Warns if no latent can count as dead within the run (`warn_of_window`).

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
    def _buffer_to_fill(self) -> ShuffleBuffer | None:
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
        with naming(_named(self.cells)):
            self.sae.initialise(sums.mean, sums.variance, rows)
        if self.trainer.state.fn is TrainerFn.FITTING and self.trainer.is_global_zero:
            n_trained = sums.n * self._total_steps() // len(self.source.train_dataloader())
            warn_of_window(self.config, n_rows=sums.n, n_trained=n_trained)

    @property
    def joint(self) -> Collective:
        """How the processes of this run agree on a batch."""
        return Collective(self.mean_over_processes, self.gather_over_processes, self.trainer.world_size)

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
        """Count the latents that a step used, log what it gave the joint batch, and return this process's loss.

        The share of dead latents is logged from the step on before which the window was full. Raises: NonFinite.
        """
        if not torch.isfinite(out.loss):
            check_finite(rows_of(batch, self.cells), batch, self.cells)
            check_finite_loss(out.loss.detach(), batch, ())
        if self.dead_latents.is_full:
            dead = self.dead_latents.mask.float().mean()
            self.log("train/windowed_dead_fraction", dead, batch_size=len(batch), prog_bar=True)
        self.dead_latents.update(*out.code, gather=self.gather_over_processes)
        curves = {"loss": out.loss, "fvu": out.reconstruction, "aux": out.aux, **out.terms}
        joint = self.mean_over_processes(torch.stack([value.detach().float() for value in curves.values()]))
        named = {f"train/{name}": value for name, value in zip(curves, joint, strict=True)}
        self.log_dict(named, batch_size=len(batch))
        return out.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take out the gradient that would only lengthen decoder rows."""
        self.sae.remove_parallel_gradient()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the variant give the decoder rows unit norm again."""
        super().optimizer_step(*args, **kwargs)
        self.sae.end_step()

    def score(self, batch: FeatureBatch, split: str) -> None:
        """Add samples of a split to its metrics. Raises: NonFinite, naming cell and sample."""
        rows = rows_of(batch, self.cells)
        check_finite(rows, batch, self.cells)
        with torch.autocast(self.device.type, enabled=False):  # what is saved is a float32 autoencoder
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
        """Compute and log the scores of a split from all that `score` saw of it; with "train", of the dictionary too.

        Raises: NonFinite, naming the cells, for rows that do not vary and for a decoder row without direction.
        """
        with naming(_named(self.cells)):
            whole, by_cell = self._found[split] = self._measured(split).compute()
            if split == "train" and self.sae.n_latents > 1:
                self._coherence = decoder_coherence(self.sae.W_dec)
                self.log_scores({"train/decoder_coherence": self._coherence.largest})
        self.scores[split] = {**whole.values, "n": whole.n}
        self.log_scores({f"{split}/{name}": value for name, value in whole.values.items()})
        for cell, scores in by_cell.items():
            self.log_scores({f"{split}/{name}/{cell}": value for name, value in scores.values.items()})

    def records(self, split: str) -> list[MetricRecord]:
        """Return what was measured on a split; `n` counts rows. Several cells: over all rows, under no cell, then each.

        With "train" also of the training itself and of the dictionary: `windowed_dead_fraction`, if training was as
        long as the window, and the coherence of the decoder rows, if there are two to compare.
        """
        whole, by_cell = self._found[split]
        detail: dict[str, Any] = {"n_latents": self.sae.n_latents, "k": self.sae.k, "d_in": self.sae.d_in}
        probe, several = self.sae.variant, {} if self.cell else {"cells": list(self.cells)}
        own: dict[str, Any] = {"cell": self.cell, "probe": probe, "detail": {**detail, **several}}
        found = split_records(whole, split=split, **own)
        for cell, scores in by_cell.items():
            found += split_records(scores, split=split, cell=cell, probe=probe, detail=detail)
        if split == "train" and self.dead_latents.is_full:
            found.append(window_record(self.dead_latents.compute(), **own))
        if split == "train" and self._coherence is not None:
            found += coherence_records(self._coherence, d_in=self.sae.d_in, **own)
        return found

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
        return self.schedule(optimizer, step_size_factor(self.config, self._total_steps()))


def make_sae(config: Config, d_in: int, *, seed: int) -> KSAE:
    """Make the autoencoder of the variant in whose file the settings are defined."""
    name = type(config).__module__.rpartition(".")[2]
    return cast(KSAE, probes("sae").load(name).make(config, d_in, seed=seed))


def _named(cells: Sequence[str]) -> str:
    return f"cell '{cells[0]}'" if len(cells) == 1 else f"cells {', '.join(cells)}"


@contextmanager
def naming(whose: str) -> Iterator[None]:
    """Put a name before what goes wrong: of cells, of a member of a bank."""
    try:
        yield
    except (ConfigError, NonFinite) as error:
        raise type(error)(f"{whose}: {error.what}", *error.details, fix=error.fix) from error
