"""Training of one sparse autoencoder of any variant: the LightningModule, its step-size schedule, its checks.

`sae_rows.py` turns features into rows, `sae_scores.py` measures, `sae_bank.py` trains many autoencoders at once.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.backbones.cell import Cell
from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.registry import probes
from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import FeatureBatch, RowValues
from diffprobe.metrics.dead_latents import Dead, DeadLatents
from diffprobe.probes.predictions import KeptHead
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.timestep_topk import TimestepTopK
from diffprobe.probes.sae.types import Code, Collective, Config, Reads, StepOutput
from diffprobe.training.module import ProbeModule, check_finite_loss
from diffprobe.training.sae_controls import ControlSize, ReconstructionControls, RowScale
from diffprobe.training.sae_random_dictionary import RandomDictionary
from diffprobe.training.sae_rows import ShuffleBuffer, check_one_tap, rows_of
from diffprobe.training.sae_scores import Scores, SplitScores, decoder_scores, window_scores
from diffprobe.training.training_statistics import FirstPass, check_finite

RISE = 0.05
"""Share of a run in which the step size rises, if `warmup_steps` is None."""


class SparseAutoencoderModule(ProbeModule):
    """Trains one autoencoder, with AuxK for dead latents and unit-norm decoder rows after each step.

    Args:
        config: settings of the probe; the module that defines their class is the variant.
        cell: cell whose features are read, or several cells of one tap at different timesteps.
        d_in: width of a row: a pooled vector, a place of a map, a token (see `rows_of`).
        settings, seed: see `ProbeModule`. The seed fixes the initial dictionary.
        sae: the autoencoder, untrained; None to make it.

    Raises: ConfigError for a precision that would round the weights, for cells of several taps, for k > n_latents.
    """

    scores_training_set = True

    def __init__(
        self,
        config: Config,
        *,
        cell: str | Sequence[str],
        d_in: int,
        settings: TrainerConfig,
        seed: int = 0,
        sae: KSAE | None = None,
    ) -> None:
        check_precision(settings)
        super().__init__(settings, seed=seed)
        self.config = config
        self.cells = (cell,) if isinstance(cell, str) else tuple(cell)
        check_one_tap(self.cells)
        self.sae = sae or make_sae(config, d_in, seed=derive_seed("sae", seed), **self.make_arguments())
        self.default_learning_rate = config.rate(self.sae.n_latents)
        d_out = self.sae.d_out
        # Every process, and so the checkpoint of one, holds the activity in the samples of all processes.
        self.dead_latents = DeadLatents(len(self.sae.rows), config.dead_window, sync_on_compute=False)
        self.dead_latents.persistent(True)
        n_latents = self.sae.n_latents
        self.measured = nn.ModuleDict(  # not "train": nn.Module has an attribute of that name
            {f"on_{split}": SplitScores(d_out, n_latents, self.cells) for split in ("train", "val", "test")}
        )
        self.row_scale = RowScale(d_out)
        self.controls = ReconstructionControls(self.cells, d_out)
        self.random_dictionary = RandomDictionary(self.sae, len(self.cells), seed=seed)
        self.sums_controls = True  # False in a bank where another autoencoder does, and shares its controls
        size = config.row_buffer
        self.row_buffer = ShuffleBuffer(size, d_in, seed=derive_seed("rows", seed)) if size else None
        self.scores: dict[str, dict[str, float]] = {}
        self._found: dict[str, tuple[Scores, dict[str, Scores]]] = {}
        self._decoder: Scores | None = None
        self._sums: dict[str, Tensor] = {}

    def make_arguments(self) -> dict[str, Any]:
        """Return what the file's `make` needs besides settings, width and seed."""
        reads_timesteps = reads_of(self.config) == "timesteps"
        return {"timesteps": [Cell.parse(cell).timestep for cell in self.cells]} if reads_timesteps else {}

    def bound(self, rows: RowValues) -> KSAE:
        """Return the autoencoder for these rows: itself, or where it reads them, for their timesteps."""
        if self.sae.reads != "timesteps":
            return self.sae
        timesteps = torch.tensor([Cell.parse(cell).timestep for cell in self.cells], device=rows.group.device)
        return self.sae.at(timesteps[rows.group])

    @property
    def cell(self) -> str | None:
        """The cell; None if there are several."""
        return self.cells[0] if len(self.cells) == 1 else None

    def prepare(self) -> None:
        """Initialise autoencoder (scale, pre-bias, dictionary, thresholds) and row buffer from the training set.

        Weights that are initialised already, for example those of a checkpoint, are left unchanged. Warns if no latent
        can count as dead within the run (`warn_of_window`).

        Raises: NonFinite, naming cell and sample; ConfigError, naming the cell, for constant features, for a row buffer
            that the processes can't share equally or that is larger than the training set.
        """
        if not self.needs_statistics():
            return
        by_cell = self.sae.reads == "timesteps"
        statistics = self.request_rows(FirstPass(self.cells, self.sae.d_in, self.device, by_cell=by_cell))
        for batch in self.batches(self.train_split):
            statistics.update(batch)
        self.initialise(statistics)

    def needs_statistics(self) -> bool:
        """Return whether a pass over the training set is due before the first step. Raises: ConfigError (`prepare`)."""
        if self.row_buffer is not None:
            self.row_buffer.place(*self.share)
        return not bool(self.sae.initialised) or not self.row_scale.known or self._buffer_to_fill is not None

    @property
    def _buffer_to_fill(self) -> ShuffleBuffer | None:
        return None if self.row_buffer is None or bool(self.row_buffer.filled) else self.row_buffer

    def request_rows(self, statistics: FirstPass) -> FirstPass:
        """Request, before the pass over the training set, the rows that the buffer and the initialisation need."""
        if self._buffer_to_fill is not None:
            statistics.choose(self._buffer_to_fill.size, seed=derive_seed("rows", self.seed))
        if not self.sae.initialised:
            statistics.choose(self._n_init, seed=self.seed)
        return statistics

    @property
    def _n_init(self) -> int:
        return self.config.init_samples if self.sae.needs_rows else 0

    def initialise(self, statistics: FirstPass) -> None:
        """Initialise from the statistics of the pass. Raises: ConfigError, see `prepare`."""
        buffer = self._buffer_to_fill
        if buffer is not None:
            rows = statistics.choose(buffer.size, seed=derive_seed("rows", self.seed)).compute(self.collective)
            if rows is not None:
                buffer.fill(rows)
        sums = statistics.moments.compute()
        self.set_row_scale(sums.mean, sums.variance)
        if self.sae.initialised:
            return
        rows = statistics.choose(self._n_init, seed=self.seed).compute(self.collective)
        with naming(_named(self.cells)):
            if isinstance(self.sae, TimestepTopK):
                self.sae.standardise(*self._by_timestep(statistics))
            self.sae.initialise(sums.mean, sums.variance, rows)
        if self.trainer.state.fn is TrainerFn.FITTING and self.trainer.is_global_zero:
            n_epoch = sums.n * getattr(self.source, "views_per_epoch", 1)
            n_trained = n_epoch * self._total_steps() // len(self.source.train_dataloader())
            warn_of_window(self.config, n_rows=sums.n, n_trained=n_trained)

    def _by_timestep(self, statistics: FirstPass) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the rows of each cell, in the order of their timesteps."""
        order = sorted(range(len(self.cells)), key=lambda i: Cell.parse(self.cells[i]).timestep)
        sums = [statistics.of_cells[i].compute() for i in order]
        means = torch.stack([one.mean.reshape(-1) for one in sums])
        return means, torch.stack([one.variance.reshape(-1) for one in sums])

    def set_row_scale(self, mean: Tensor, variance: Tensor) -> None:
        """Keep mean and variance of the rows that are reconstructed, for the controls."""
        self.row_scale.set(mean, variance)

    @property
    def collective(self) -> Collective:
        """Reductions over the processes of this run."""
        return Collective(self.mean_over_processes, self.gather_over_processes, self.share[1])

    def on_train_batch_start(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Prepare the weights, as the variant requires."""
        self.sae.begin_step()

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch: reconstruction, AuxK, and what the variant adds."""
        dead = self.dead_latents.mask if self.dead_latents.is_full else None
        return self.account(self.step(batch, dead), batch)

    def step(self, batch: FeatureBatch, dead: Tensor | None) -> StepOutput:
        """Return the output of the autoencoder's step on a batch."""
        x = self.training_rows(batch)
        sae = self.sae if self.sae.reads == "rows" else self.bound(rows_of(batch, self.cells))
        return sae.step(x, dead=dead, collective=self.collective)

    def training_rows(self, batch: FeatureBatch) -> Tensor:
        """Return the rows to train on: of the batch, or of the row buffer in exchange. Call once per step."""
        x = rows_of(batch, self.cells).x
        return x if self.row_buffer is None else self.row_buffer.exchange(x)

    def account(self, out: StepOutput, batch: FeatureBatch) -> Tensor:
        """Update the dead latents, log the losses of the global batch, and return the loss of this process.

        The share of dead latents is logged once the window was full before the step. Raises: NonFinite.
        """
        if not torch.isfinite(out.loss):
            check_finite(rows_of(batch, self.cells), batch, self.cells)
            check_finite_loss(out.loss.detach(), batch, ())
        if self.dead_latents.is_full:
            dead = self.dead_fraction()
            self.log("train/windowed_dead_fraction", dead, batch_size=len(batch), prog_bar=True)
        self.count_active(out.code)
        curves = {"loss": out.loss, "fvu": out.reconstruction, "aux": out.aux, **out.terms}
        means = self.mean_over_processes(torch.stack([value.detach().float() for value in curves.values()]))
        named = {f"train/{name}": value for name, value in zip(curves, means, strict=True)}
        self.log_dict(named, batch_size=len(batch))
        return out.loss

    def dead_fraction(self) -> Tensor:
        """Return the share of the latents that are dead in the window so far."""
        return self.dead_latents.mask.float().mean()

    def count_active(self, code: Code) -> None:
        """Update the dead latents with the code of a training batch."""
        self.dead_latents.update(*code, gather=self.gather_over_processes)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Remove the part of the decoder's gradient that is parallel to its rows."""
        self.sae.remove_parallel_gradient()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then restore what the variant requires of the weights: decoder rows of unit norm."""
        super().optimizer_step(*args, **kwargs)
        self.sae.end_step()

    def score(self, batch: FeatureBatch, split: str) -> None:
        """Add samples of a split to its metrics. Raises: NonFinite, naming cell and sample."""
        rows = rows_of(batch, self.cells)
        check_finite(rows, batch, self.cells)
        with torch.autocast(self.device.type, enabled=False):  # the saved autoencoder is float32
            x_hat, code = self.bound(rows)(rows.x)
            target = self.targets(batch, rows)
            self._measured(split).update(target, x_hat, code)
            if not self._fits:
                self._score_controls(split, rows, target)
        if self.keeps(split):
            self._keep_rows(batch, split, target, x_hat, code)

    def targets(self, batch: FeatureBatch, rows: RowValues) -> RowValues:
        """Return what is reconstructed from the rows of a batch: the rows themselves."""
        return rows

    @property
    def _fits(self) -> bool:
        """Whether the rows that are scored now are those of a validation during training, which has no controls."""
        return self._trainer is not None and self.trainer.state.fn is TrainerFn.FITTING

    def _score_controls(self, split: str, rows: RowValues, target: RowValues) -> None:
        if self.sums_controls:
            self.controls.update(split, rows, self.row_scale)
        mean = self.row_scale.mean * self.sae.scale.double()
        self.random_dictionary.update(split, rows, rows.x.to(self.sae.W_enc.dtype) * self.sae.scale, mean)

    def _keep_rows(self, batch: FeatureBatch, split: str, rows: RowValues, x_hat: Tensor, code: Code) -> None:
        """Keep the sums over the rows of each sample: residual, square about the pre-bias, active latents."""
        centred = rows.x.double() - self.sae.centre
        residual = (rows.x.double() - x_hat.double()).square().sum(1)
        square, active = centred.square().sum(1), (code.values > 0).sum(1)
        n_heads, kept = len(self.kept_heads()), []
        if split not in self._sums:
            self._sums[split] = centred.new_zeros(n_heads, centred.shape[1] + 1)
        for i in range(n_heads):
            own = slice(None) if i == 0 and n_heads != len(self.cells) else rows.group == i - (n_heads > 1)
            sample, n = rows.sample[own], len(batch)
            ones = torch.ones_like(sample)
            parts = {"n_rows": ones, "residual": residual[own], "square": square[own], "active": active[own]}
            kept.append({name: v.new_zeros(n).index_add_(0, sample, v) for name, v in parts.items()})
            self._sums[split][i, :-1] += centred[own].sum(0)
            self._sums[split][i, -1] += len(sample)
        self.keep(batch, split, kept)

    def kept_heads(self) -> list[KeptHead]:
        """Return the autoencoder over all its cells, and where there are several, on each of them."""
        cells = [self.cell, *self.cells] if len(self.cells) > 1 else [self.cell]
        return [KeptHead(kind="rows", probe=self.sae.variant, cell=cell) for cell in cells]

    def finish_heads(self, split: str, heads: list[KeptHead], tensors: dict[str, Tensor]) -> list[KeptHead]:
        """Add how far the mean of the split is from the pre-bias."""
        empty = torch.zeros(len(heads), self.sae.d_out + 1, dtype=torch.float64, device=self.device)
        sums = self.sum_over_processes(self._sums.pop(split, empty))
        shifts = sums[:, :-1].square().sum(1) / sums[:, -1].clamp(min=1)
        return [replace(head, shift=float(shift)) for head, shift in zip(heads, shifts, strict=True)]

    def _measured(self, split: str) -> SplitScores:
        return cast(SplitScores, self.measured[f"on_{split}"])

    def finish(self, split: str) -> None:
        """Compute and log the scores of a split from the samples given to `score`; for "train", of the decoder too.

        Raises: NonFinite, naming the cells, for rows that do not vary and for a decoder row that is zero or not finite.
        """
        with naming(_named(self.cells)):
            whole, by_cell = self._found[split] = self._measured(split).compute()
            if split == "train" and self.sae.n_latents > 1:
                self._decoder = self.measure_decoder()
                self.log_scores({f"train/{name}": value for name, value in self._decoder.values.items()})
        if not self._fits:
            self._finish_controls(split)
        self.scores[split] = {**whole.values, "n": whole.n}
        self.log_scores({f"{split}/{name}": value for name, value in whole.values.items()})
        for cell, scores in by_cell.items():
            self.log_scores({f"{split}/{name}/{cell}": value for name, value in scores.values.items()})

    def _finish_controls(self, split: str) -> None:
        if self.sums_controls:
            self.controls.finish(split, self.sum_over_processes, self.device)
        self.random_dictionary.finish(split, self.sum_over_processes, self.device)

    def measure_decoder(self) -> Scores:
        """Return the scores of the decoder."""
        return decoder_scores(self.sae.W_dec)

    def measure_window(self) -> Dead:
        """Return the dead latents at the end of training. Raises: EmptyClass if the window is longer."""
        return self.dead_latents.compute()

    def records(self, split: str) -> list[MetricRecord]:
        """Return the records of a split; `n` counts rows. Of several cells: over all rows (no cell), then of each cell.

        "train" includes the records of the training (`windowed_dead_fraction`, if training was as long as the window)
        and of the decoder, if it has at least two latents; there `n` counts latents.
        """
        whole, by_cell = self._found[split]
        detail: dict[str, Any] = {"n_latents": self.sae.n_latents, "k": self.sae.k, "d_in": self.sae.d_in}
        probe, several = self.sae.variant, {} if self.cell else {"cells": list(self.cells)}
        own: dict[str, Any] = {"cell": self.cell, "probe": probe, "detail": {**detail, **several}}
        found = whole.records(split=split, **own)
        for cell, scores in by_cell.items():
            found += scores.records(split=split, cell=cell, probe=probe, detail=detail)
        found = self.with_controls(found)
        if split == "train" and self.dead_latents.is_full:
            found += window_scores(self.measure_window()).records(split=split, **own)
        if split == "train" and self._decoder is not None:
            found += self._decoder.records(split=split, **own)
        return found

    def with_controls(self, records: list[MetricRecord]) -> list[MetricRecord]:
        """Return the records with the controls beside those scores that are a function of the fvu."""
        return self.controls.add_to(records, self.control_size(), self.random_dictionary, float(self.sae.scale))

    def control_size(self) -> ControlSize | None:
        """Return how many components the controls keep; None if that takes the training set, which was not scored."""
        if self.sae.keeps_k:
            return ControlSize(self.sae.k, "k of the autoencoder")
        if "train" not in self._found:
            return None
        return ControlSize(round(self._found["train"][0].values["l0"]), "mean L0 on the training set, rounded")

    def save(self, folder: Path) -> list[Path]:
        """Write the autoencoder."""
        return [self.sae.save_pretrained(folder / "sae", cell=self.cell)]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with the step-size schedule of the probe's config (`step_size_factor`)."""
        # fused Adam would unscale gradients a second time, and Lightning does not clip them for it in mixed precision
        clipped = self.settings.gradient_clip is not None and self.settings.precision.endswith("-mixed")
        fused = self.settings.precision != "16-mixed" and not clipped
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.learning_rate,
            weight_decay=self.settings.weight_decay,
            eps=self.config.adam_eps,
            betas=(0.9, self.config.adam_beta2),
            fused=fused,
        )
        return self.schedule(optimizer, step_size_factor(self.config, self._total_steps()))


def make_sae(config: Config, d_in: int, *, seed: int, **arguments: Any) -> KSAE:
    """Make the autoencoder of the variant whose file defines the class of `config`.

    Args:
        arguments: further arguments of the file's `make` (`KSAE.make_arguments`).
    """
    return cast(KSAE, _file_of(config).make(config, d_in, seed=seed, **arguments))


def reads_of(config: Config) -> Reads:
    """Return what the variant of `config` reads."""
    return cast(Reads, getattr(_file_of(config), "READS", "rows"))


def _file_of(config: Config) -> ModuleType:
    return probes("sae").load(type(config).__module__.rpartition(".")[2])


def _named(cells: Sequence[str]) -> str:
    return f"cell '{cells[0]}'" if len(cells) == 1 else f"cells {', '.join(cells)}"


def check_precision(settings: TrainerConfig) -> None:
    """Raise ConfigError for a precision that would keep weights, scale and thresholds in 16 bits."""
    if settings.precision in ("bf16-true", "16-true"):
        raise ConfigError(
            f"trainer.precision={settings.precision} would round the weights, scale and thresholds of an autoencoder: "
            "small optimiser steps would be lost, and the saved weights would differ from those of 32 bits.",
            "allowed for autoencoders: 32-true, 64-true, and with 32-bit weights bf16-mixed, 16-mixed",
            fix="trainer.precision=bf16-mixed",
        )


def step_size_factor(config: Config, total: int) -> Callable[[float], float]:
    """Return the factor of the step size as a function of progress, 0..1 over the `total` steps of a run.

    The factor rises linearly to 1 over `warmup_steps` steps, from 1 / warmup_steps at the first one, and falls linearly
    to 0 over the last `decay` of the run.

    >>> from diffprobe.probes.sae.types import Config
    >>> factor = step_size_factor(Config(warmup_steps=4, decay=0.5), 10)
    >>> [round(factor(step / 10), 2) for step in range(11)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    """
    warmup = RISE * total if config.warmup_steps is None else config.warmup_steps

    def factor(progress: float) -> float:
        fall = (1 - progress) / config.decay if config.decay > 0 else 1.0
        return min(1.0, (progress * total + 1) / warmup, fall)

    return factor


def warn_of_window(config: Config, *, n_rows: int, n_trained: int) -> None:
    """Warn if a run is too short for a latent to count as dead.

    Args:
        n_rows: rows of the training set.
        n_trained: rows of all training batches of the run.
    """
    if n_trained >= config.dead_window:
        return
    without_aux = "AuxK never acts and " if config.aux_weight > 0 else ""
    warnings.warn(
        f"a latent counts as dead after probe.params.dead_window={config.dead_window} rows without activity; this run "
        f"trains on {n_trained} ({n_rows} per epoch), so {without_aux}no windowed_dead_fraction is recorded. "
        f"A window that fits: probe.params.dead_window={max(1, min(4 * n_rows, n_trained // 2))}",
        stacklevel=2,
    )


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Prefix the messages of ConfigError and NonFinite with a name: of cells, of a member of a bank."""
    try:
        yield
    except (ConfigError, NonFinite) as error:
        raise type(error)(f"{name}: {error.what}", *error.details, fix=error.fix) from error
