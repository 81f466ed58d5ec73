"""`diffprobe eval lifetimes`: at which timesteps each latent of a dictionary over timesteps is born, peaks and dies.

Reads the features of a run, sums the activity of each latent by timestep, and writes records, a table of all latents
and a heat map. The rule is that of `analysis/lifetimes.py`.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.config.validators import a_device, at_least
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import INPUT, RESULT_FILE, MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.load_sae_run import TrainedRun, open_runs
from diffprobe.runs.massive_notes import with_channels_of

if TYPE_CHECKING:
    from diffprobe.analysis.lifetimes import Lifetimes
    from diffprobe.evaluation.page_features import PageFeatures
    from diffprobe.probes.sae.base import KSAE

KIND = "sae_lifetimes"
"""Kind of the result."""
TABLE_FILE = "lifetimes.csv"
"""Table of all latents, beside the result."""
FIGURE_FILE = "lifetimes.svg"
"""Heat map, beside the result."""


@dataclass(frozen=True, kw_only=True)
class LifetimesEvaluation:
    """Settings of `diffprobe eval lifetimes` (experiment files of kind `evaluate_lifetimes`)."""

    experiment: str
    """Name of the experiment; the folder of results below `output`."""
    run: str = ""
    """Folder of a trained sae run on several timesteps of one tap."""
    split: str | None = None
    """Split whose rows are counted; None for the test split of the run."""
    share: float = 0.5
    """Share of a latent's largest strength from which it counts as alive, above 0 and at most 1."""
    min_active: int = 10
    """Rows on which a latent has to be active to have a lifetime."""
    data_path: str | None = None
    """Folder of the shards; None for the path of the run."""
    device: str = "auto"
    """Torch device; "auto" for the accelerator if there is one."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        a_device(self.device)
        at_least(1, min_active=self.min_active)
        if not 0 < self.share <= 1:
            raise ConfigError(f"share = {self.share} is out of range: above 0, at most 1.")


def evaluate_lifetimes(config: LifetimesEvaluation) -> list[Path]:
    """Measure every autoencoder of a run, write records, table and figure, and return the paths of `result.json`.

    Raises: ConfigError for a run of one timestep; EmptyClass if no latent is active on `min_active` rows; the errors of
        opening features and weights.
    """
    with ProgressDisplay(transient=True) as progress:
        runs = open_runs(config.run)
        with progress.bar(len(runs), "lifetimes of latents", unit="runs", keep=False) as bar:
            paths = []
            for trained in runs:
                paths += [_evaluate(config, trained, name, folder) for name, folder in trained.saes().items()]
                bar.update(1)
    return paths


def _evaluate(config: LifetimesEvaluation, trained: TrainedRun, name: str, folder: Path) -> Path:
    from diffprobe.analysis.lifetimes import peak_agreement
    from diffprobe.backbones.device import choose_device
    from diffprobe.evaluation.page_features import open_features, with_data_path
    from diffprobe.evaluation.probe_runs import ProbeRun
    from diffprobe.probes.sae.base import KSAE

    started_at = StartTime.now()
    cells = [cell.name for cell in trained.cells(folder)]
    if len(cells) < 2:
        raise ConfigError(
            f"'{trained.folder}' was trained on one timestep ({cells[0]}): its latents have no lifetime.",
            fix="a run with probe.cell=TAP@t* and several features.timesteps, for example probe=timestep_topk",
        )
    run = ProbeRun(config=trained.config, result=trained.result, folder=trained.folder)
    source, data = open_features(with_data_path(run, config.data_path)), trained.config.data
    sae = KSAE.from_pretrained(folder).eval().requires_grad_(False).to(choose_device(config.device))
    split = config.split or data.test_split
    found = lifetimes_of(sae, source, split, cells, config)
    if not found.has_one.any():
        raise EmptyClass(
            f"no latent of '{trained.folder}' is active on {config.min_active} rows of split '{split}'.",
            fix="a smaller min_active, or a larger split",
        )
    detail = {
        "sae": name, "cells": cells, "share": config.share, "min_active": config.min_active,
        "n_latents": sae.n_latents,
        "alive": "from birth to death: strength at least `share` of that at the peak, without a gap",
    }  # fmt: skip
    records = lifetime_records(found, split=split, probe=trained.config.probe.name, detail=detail)
    if split != data.train_split:
        on_train = lifetimes_of(sae, source, data.train_split, cells, config)
        agreement, chance, n = peak_agreement(found, on_train)
        if n:
            records.append(
                MetricRecord(
                    name="peak_agreement",
                    value=agreement,
                    split=split,
                    n=n,
                    probe=trained.config.probe.name,
                    controls={"chance": chance},
                    detail={**detail, "with": f"split {data.train_split}"},
                )  # fmt: skip
            )
    settings = {key: getattr(config, key) for key in ("share", "min_active")} | {"split": split}
    tree = {**trained.result.config, "lifetimes": settings, "run": trained.result.run}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "weights": trained.result.artifacts})[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    _write_files(run_dir, found, f"{trained.config.probe.name}, {cells[0].partition('@')[0]}, split {split}")
    result = make_result(
        run=run_dir.name, experiment=trained.result.experiment or config.experiment, kind=KIND, config=tree,
        seeds=trained.result.seeds, metrics=with_channels_of(records, trained.result), started_at=started_at,
        artifacts={INPUT + key.removeprefix(INPUT): sha for key, sha in trained.result.artifacts.items()},
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


def lifetimes_of(
    sae: "KSAE", source: "PageFeatures", split: str, cells: Sequence[str], config: LifetimesEvaluation
) -> "Lifetimes":
    """Return the lifetimes of the latents of an autoencoder on a split, by `share` and `min_active`."""
    from diffprobe.analysis.latents.activity import ActivitySums
    from diffprobe.analysis.lifetimes import find_lifetimes
    from diffprobe.backbones.cell import Cell
    from diffprobe.evaluation.explore_codes import stream_codes

    sums = ActivitySums(sae.n_latents, {}, [Cell.parse(cell).timestep for cell in cells])
    for codes in stream_codes(sae, source.iter_tables(split), cells):
        for number, (values, indices) in enumerate(codes.by_timestep()):
            sums.update_rows(number, values, indices)
    return find_lifetimes(
        sums.timesteps, sums.n_rows, sums.row_active, sums.row_total, share=config.share, min_active=config.min_active
    )


def lifetime_records(
    found: "Lifetimes", *, split: str, probe: str, detail: dict[str, object]
) -> list[MetricRecord]:  # fmt: skip
    """Return how long the latents live that have a lifetime, and the share of all latents that have one."""
    chosen, n = found.n_alive[found.has_one], int(found.has_one.sum())
    peaks = {str(t): int((found.peak == t).sum()) for t in found.timesteps}
    values = {
        "lifetime_fraction": (n / len(found.peak), len(found.peak)),
        "timesteps_alive": (float(chosen.mean()), n),
        "single_timestep_fraction": (float((chosen == 1).mean()), n),
        "lasting_fraction": (float((chosen == len(found.timesteps)).mean()), n),
    }
    return [
        MetricRecord(
            name=name, value=value, split=split, n=count, probe=probe, detail={**detail, "latents_by_peak": peaks}
        )
        for name, (value, count) in values.items()
    ]


def table_text(found: "Lifetimes") -> str:
    """Return the table of all latents as CSV: lifetimes, then frequency and strength at each timestep."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [f"{what}@t{t}" for what in ("frequency", "strength") for t in found.timesteps]
    writer.writerow(["latent", "n_active", "birth", "peak", "death", "timesteps_alive", *columns])
    for latent in range(len(found.peak)):
        known = found.has_one[latent]
        ends = [getattr(found, name)[latent] if known else "" for name in ("birth", "peak", "death")]
        numbers = [f"{x:.6g}" for x in (*found.frequency[latent], *found.strength[latent])]
        writer.writerow([latent, found.n_active[latent], *ends, found.n_alive[latent], *numbers])
    return buffer.getvalue()


def _write_files(folder: Path, found: "Lifetimes", title: str) -> None:
    from diffprobe.report.figure_file import save_figures
    from diffprobe.report.lifetime_plot import lifetime_plot

    with atomic_file(folder / TABLE_FILE) as temporary:
        temporary.write_text(table_text(found), encoding="utf-8")
    save_figures([lifetime_plot(found.strength[found.order], found.timesteps, title=title)], folder / FIGURE_FILE)
