"""`FinishedRun`: a run of a probe with its result, its probes and its figures, for notebooks; `open_run` opens one."""

from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError, RunFailed, unknown
from diffprobe.core.facts_html import facts_html, rows_html
from diffprobe.core.result import RESULT_FILE, RunResult
from diffprobe.evaluation.probe_runs import ProbeRun, open_probe_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from diffprobe.evaluation.page_features import PageFeatures
    from diffprobe.probes.caption import CaptionRegressor
    from diffprobe.probes.classifier.base import ClassifierProbe
    from diffprobe.probes.direction.base import Direction
    from diffprobe.probes.sae.topk import KSAE
    from diffprobe.report.table import Table

INPUTS_FILE = "inputs.json"
"""File of a run that has begun."""


def open_run(folder: Path | str, *, data_path: Path | str | None = None) -> "FinishedRun":
    """Open a run that `diffprobe train` or `Study.train` wrote.

    Args:
        folder: the folder that has its `result.json`; of a grid, that of one of its members.
        data_path: folder of the shards, if they were moved since.
    Raises: ConfigError for a folder without runs, or with several; RunFailed for a run that is not finished, and for
        results of other kinds; SchemaError for a result that cannot be read.
    """
    path = Path(folder)
    if path.is_dir() and not any(next(path.rglob(name), None) for name in (RESULT_FILE, INPUTS_FILE)):
        raise ConfigError(
            f"'{folder}' has no run: no {RESULT_FILE} is in it.", fix="the folder that `diffprobe train` printed"
        )
    runs = open_probe_runs([folder]).runs
    if len(runs) > 1:
        raise ConfigError(
            f"'{folder}' has {len(runs)} runs; one is opened at a time.",
            *(f"{run.folder}: {run.result.kind}" for run in runs[:10]),
            fix=f"open_run('{runs[0].folder}')",
        )
    from diffprobe.evaluation.page_features import with_data_path

    return FinishedRun(with_data_path(runs[0], None if data_path is None else str(data_path)))


class FinishedRun:
    """A finished run of a probe. Made with `open_run` or `Study.train`.

    Attributes:
        folder: its folder.
        config: its configuration.
        result: its record: metrics, seeds, versions, inputs.
        kind: kind of its probe: "classifier", "direction", "caption" or "sae".
    """

    def __init__(self, run: ProbeRun) -> None:
        self._run = run
        self.folder: Path = run.folder
        self.config: RunConfig = run.config
        self.result: RunResult = run.result
        self.kind = run.result.kind

    @property
    def probe_folders(self) -> tuple[Path, ...]:
        """Folders of the trained probes, sorted: one for each target and cell, or that of the autoencoder."""
        names = sorted(name for name in self.result.artifacts if name.startswith("probes/"))
        return tuple(self.folder / name for name in names)

    def probe(
        self, cell: str | None = None, *, target: str | None = None
    ) -> "CaptionRegressor | ClassifierProbe | Direction | KSAE":
        """Load a trained probe.

        Args:
            cell: cell of the probe, or a unique prefix of its name: "mid_block@t100"; None where there is one.
            target: its target; None where there is one.
        Raises: UnknownName for a cell or target without a probe, ConfigError where several fit; WeightsMissing.
        """
        from diffprobe.features.cell_selection import choose_cell

        if self.kind == "sae":
            if cell is not None or target is not None:
                raise ConfigError("a run of kind sae has one probe, its autoencoder.", fix="run.probe()")
            from diffprobe.evaluation.load_sae_run import TrainedRun
            from diffprobe.probes.sae.topk import KSAE

            (folder,) = TrainedRun(folder=self.folder, result=self.result, config=self.config).saes().values()
            return KSAE.from_pretrained(folder).eval()
        if self.kind == "caption":
            from diffprobe.probes.caption import CaptionRegressor

            (path,) = self.probe_folders
            return CaptionRegressor.from_pretrained(path)
        cells = list(dict.fromkeys(record.cell for record in self.result.metrics if record.cell))
        targets = list(dict.fromkeys(record.target for record in self.result.metrics if record.target))
        name = _only("cell", cells) if cell is None else choose_cell(cell, cells)
        chosen = _only("target", targets) if target is None else target
        if chosen not in targets:
            raise unknown("target of this run", chosen, targets)
        path = self.folder / "probes" / chosen / name.replace(":", ".")
        if self.kind == "direction":
            from diffprobe.probes.direction.base import Direction

            return Direction.load(path)
        from diffprobe.probes.classifier.base import ClassifierProbe

        return ClassifierProbe.from_pretrained(path)

    def table(self, *, where: dict[str, object] | None = None, exploratory: bool = False) -> "Table":
        """Return the table of the run: its primary metric, layers by timesteps, with the controls it measured.

        Several cells are compared on val, and the best of them is scored on test.

        Args:
            where: field -> value, to show something else: {"metric": "accuracy", "split": "val"}.
            exploratory: whether many cells may be compared on test: where={"split": "test"}.
        Raises: RunFailed if nothing fits.
        """
        from diffprobe.runs.tables import build_table

        return build_table(self.folder, where=where, exploratory=exploratory)

    def heat_map(self, *, target: str | None = None, where: dict[str, object] | None = None) -> "Figure":
        """Draw the table of the run as a heat map, with the levels of the controls on its colour scale.

        Args:
            target: which target, where the run has several.
            where: see `table`.
        Raises: ConfigError where several targets or metrics would need a figure each; RunFailed if nothing fits.
        """
        targets = list(dict.fromkeys(record.target for record in self.result.metrics if record.target))
        if target is not None and target not in targets:
            raise unknown("target of this run", target, targets)
        chosen = {**(where or {}), **({} if target is None else {"target": target})}
        figures = self.table(where=chosen).figures()
        if len(figures) > 1:
            raise ConfigError(
                f"the table of this run makes {len(figures)} heat maps (targets: {', '.join(targets)}).",
                fix=f"run.heat_map(target='{targets[0]}'), or all of them: run.table().figures()",
            )
        return figures[0]

    def features(self) -> "PageFeatures":
        """Open the features that the run was measured on, as far as they are at hand, and compare them with its record.

        Raises: ConfigError for a run on live features; DiffprobeError or OSError without a store of its digest.
        """
        from diffprobe.evaluation.page_features import open_features

        return open_features(self._run)

    def latent_grid(
        self,
        latents: "Sequence[int] | int | None" = None,
        *,
        n_top: int = 9,
        split: str | None = None,
        group_by: str | None = None,
        min_active: int = 10,
    ) -> "Figure":
        """Draw the images on which latents of the autoencoder are most active: a row for each latent.

        Args:
            latents: numbers of latents; None for six that are selected on the training split as in a report.
            n_top: images per latent.
            split: the split of the images; None for test, so that selected latents are shown on other images.
            group_by: attribute whose values are shown once per latent: tones of one drawing, frames of one video.
            min_active: training images on which a selected latent is active at least; fewer images need fewer.
        Returns: a matplotlib figure; on cells that keep the feature map a frame marks the place of the activation.
        Raises: ConfigError for a run of another kind, a latent out of range, or no latent; UnknownName for a split or
            attribute; EmptyClass if no latent is active often enough to be selected; what `features` raises.
        """
        if self.kind != "sae":
            raise ConfigError(f"a run of kind {self.kind} has no latents.", fix='study.train("topk")')
        from diffprobe.notebook.latent_grid import draw_latents

        return draw_latents(self._run, latents, n_top=n_top, split=split, group_by=group_by, min_active=min_active)

    def __repr__(self) -> str:
        return f"FinishedRun({self.folder}: {self.config.probe.name}, {len(self.result.metrics)} metrics)"

    def _repr_html_(self) -> str:
        config, shown = self.config, [record for record in self.result.metrics if record.split == "test"]
        rows = [
            [
                record.name, f"{record.value:.4g}", record.cell or "", record.target or "", f"{record.n:,}",
                ", ".join(f"{name} {value:.4g}" for name, value in record.controls.items()),
            ]
            for record in shown
        ]  # fmt: skip
        return facts_html(
            f"run {self.result.run}",
            {
                "probe": f"{config.probe.name} ({self.kind})",
                "backbone": config.backbone.path,
                "images": config.data.path,
                "control": None if config.control == "none" else config.control,
                "folder": self.folder,
                "trained in": f"{self.result.wall_time_s:,.1f} s",
            },
            tables=[rows_html(["test metric", "value", "cell", "target", "n", "controls"], rows)] if rows else (),
        )


def _only(what: str, names: list[str]) -> str:
    if not names:
        raise RunFailed(f"the run has no {what}.")
    if len(names) > 1:
        raise ConfigError(f"the run has {len(names)} {what}s; one is needed.", f"allowed: {', '.join(names)}")
    return names[0]
