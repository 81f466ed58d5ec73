"""Training of a transcoder: rows of one tap, and of each the row of another tap at the same sample, draw and place."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import FeatureBatch, RowValues
from diffprobe.probes.sae.transcoder import Config, Transcoder
from diffprobe.probes.sae.types import StepOutput
from diffprobe.training.sae import SparseAutoencoderModule, make_sae
from diffprobe.training.sae_controls import LEFT_OUT, MAX_NUMBERS, of_fvu
from diffprobe.training.sae_rows import check_one_tap, rows_of
from diffprobe.training.training_statistics import FirstPass, check_finite


class TranscoderModule(SparseAutoencoderModule):
    """Trains one transcoder. Scores compare the target with its reconstruction; the control is an affine map.

    Args:
        config: settings of the probe.
        cell: cell that is encoded, or several cells of one tap at different timesteps.
        targets: the target cell of each, of one other tap.
        d_in, d_out: widths of a row of both.
        settings, seed: see `ProbeModule`.
    """

    sae: Transcoder

    def __init__(
        self,
        config: Config,
        *,
        cell: str | Sequence[str],
        targets: Sequence[str],
        d_in: int,
        d_out: int,
        settings: TrainerConfig,
        seed: int = 0,
    ) -> None:
        sae = make_sae(config, d_in, seed=derive_seed("sae", seed), d_out=d_out)
        super().__init__(config, cell=cell, d_in=d_in, settings=settings, seed=seed, sae=sae)
        self.target_cells = tuple(targets)
        check_one_tap(self.target_cells)
        self.affine = AffineControl(self.cells, d_in, d_out)

    def prepare(self) -> None:
        """Initialise scales and biases of input and target from the training set; see `SparseAutoencoderModule`."""
        if not self.needs_statistics():
            return
        inputs = self.request_rows(FirstPass(self.cells, self.sae.d_in, self.device))
        outputs = FirstPass(self.target_cells, self.sae.d_out, self.device)
        for batch in self.batches(self.train_split):
            inputs.update(batch)
            outputs.update(batch)
        sums = outputs.moments.compute()
        self.row_scale.set(sums.mean, sums.variance)
        if not bool(self.sae.initialised):
            self.sae.set_target(sums.mean.reshape(-1), sums.variance.reshape(-1))
        self.initialise(inputs)

    def set_row_scale(self, mean: Tensor, variance: Tensor) -> None:
        """Do nothing: what is reconstructed is the target."""

    def step(self, batch: FeatureBatch, dead: Tensor | None) -> StepOutput:
        """Return the output of the transcoder's step on a batch."""
        rows = rows_of(batch, self.cells)
        target = self.targets(batch, rows).x
        return self.sae.step(rows.x, target=target, dead=dead, collective=self.collective)

    def targets(self, batch: FeatureBatch, rows: RowValues) -> RowValues:
        """Return the rows of the target, in the order of the inputs'.

        Raises: ConfigError for maps of other sizes; NonFinite, naming cell and sample.
        """
        found = rows_of(batch, self.target_cells)
        if len(found.x) != len(rows.x):
            raise ConfigError(
                f"a transcoder needs as many rows of the target as of the input; these batches have {len(rows.x)} of "
                f"{', '.join(self.cells)} and {len(found.x)} of {', '.join(self.target_cells)}.",
                fix="taps of one resolution, or features.pool=mean",
            )
        check_finite(found, batch, self.target_cells)
        return found

    def _score_controls(self, split: str, rows: RowValues, target: RowValues) -> None:
        self.affine.update(split, rows, target)

    def _finish_controls(self, split: str) -> None:
        self.affine.finish(split, self.sum_over_processes, self.device)

    def with_controls(self, records: list[MetricRecord]) -> list[MetricRecord]:
        """Return the records with the affine map beside those scores that are a function of the fvu."""
        return [self.affine.add_to(record) for record in records]


class AffineControl:
    """The control `affine` of a transcoder: the least-squares affine map of the input, fitted on the training rows.

    Args:
        cells: names of the input cells, in the order of `RowValues.group`.
        d_in, d_out: widths of a row of input and target.
    """

    def __init__(self, cells: Sequence[str], d_in: int, d_out: int) -> None:
        self.cells, self.d_in, self.d_out = tuple(cells), d_in, d_out
        self._running: dict[str, dict[str, Tensor]] = {}
        self._found: dict[str, dict[str, Tensor]] = {}

    @property
    def left_out(self) -> str | None:
        """Why there is none; None if there is."""
        numbers = len(self.cells) * self.d_in * (self.d_in + self.d_out)
        return None if numbers <= MAX_NUMBERS else f"{numbers} second moments, at most {MAX_NUMBERS}"

    def update(self, split: str, rows: RowValues, target: RowValues) -> None:
        """Add rows of a split, float64 sums."""
        if self.left_out:
            return
        sums = self._running.setdefault(split, self._zeros(rows.x.device))
        x, y = rows.x.detach().double(), target.x.detach().double()
        for i in range(len(self.cells)):
            own = rows.group == i
            ones = torch.ones(int(own.sum()), 1, dtype=torch.float64, device=x.device)
            inputs = torch.cat([x[own], ones], 1)
            sums["gram"][i] += inputs.T @ inputs
            sums["cross"][i] += inputs.T @ y[own]
            sums["square"][i] += y[own].square().sum()

    def finish(self, split: str, total: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Add the sums of all processes and keep those of the split. Collective."""
        if self.left_out is None:
            sums = self._running.pop(split, None) or self._zeros(device)
            self._found[split] = {name: total(part).cpu() for name, part in sums.items()}

    def fvu(self, split: str, cell: str | None = None) -> float:
        """Return the fvu on a finished split; "train" is finished too.

        Args:
            split: the split.
            cell: the rows of one input cell; None for all rows. The map is that of all cells.
        """
        train = {name: part.sum(0) for name, part in self._found["train"].items()}
        weights = torch.linalg.pinv(train["gram"], hermitian=True) @ train["cross"]
        place = None if cell is None else self.cells.index(cell)
        sums = {name: part.sum(0) if place is None else part[place] for name, part in self._found[split].items()}
        left = sums["square"] - 2 * (weights * sums["cross"]).sum() + (weights * (sums["gram"] @ weights)).sum()
        n, total = sums["gram"][-1, -1], sums["cross"][-1]
        return float(left.clamp(min=0) / (sums["square"] - total.square().sum() / n))

    def add_to(self, record: MetricRecord) -> MetricRecord:
        """Return the record with the control, or with the reason why it is left out."""
        convert = of_fvu(record.name)
        if convert is None:
            return record
        missing = [one for one in dict.fromkeys((record.split, "train")) if one not in self._found]
        if self.left_out or missing:
            why = self.left_out or f"not scored after training: split {', '.join(missing)}"
            return replace(record, detail={**record.detail, LEFT_OUT: {"affine": why}})
        cell = record.cell if len(self.cells) > 1 else None
        value = convert(self.fvu(record.split, cell))
        return replace(record, controls={"affine": value, **record.controls})

    def _zeros(self, device: torch.device) -> dict[str, Tensor]:
        n, d_in, d_out = len(self.cells), self.d_in + 1, self.d_out
        shapes = {"gram": (n, d_in, d_in), "cross": (n, d_in, d_out), "square": (n,)}
        return {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
