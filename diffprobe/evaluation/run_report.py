"""`diffprobe report`: the page of any finished runs, as a demo writes it.

Runs of several kinds, backbones and data sets share a page: tables with an axis for what differs, autoencoders side by
side, a panel for each direction. What is not at hand (features, images) is left out, and the page gives the reason.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from diffprobe.analysis.statistics import SINGLE_SAMPLES
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import ConfigError, DiffprobeError, RunFailed, unknown
from diffprobe.core.progress import Bar, MakeBar
from diffprobe.core.result import BACKBONE, SHARDS, RunResult
from diffprobe.evaluation.page_features import PageFeatures, open_features, with_data_path
from diffprobe.evaluation.panel_settings import PanelConfig
from diffprobe.evaluation.probe_runs import FoundRuns, ProbeRun, open_probe_runs, reason
from diffprobe.evaluation.run_facts import facts_of, machine_facts
from diffprobe.report.default_table import default_tables
from diffprobe.report.pages.page import Page, render_page
from diffprobe.report.pages.panels import DirectionPanel, LatentSection
from diffprobe.report.run_names import run_names
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_spec import TableSpec
from diffprobe.runs.extract import backbone_and_features
from diffprobe.runs.tables import with_predictions

_MAX_OPEN = 2
"""Feature sources that are kept open: runs of one store follow each other."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a page shows, and where its data are."""

    title: str = ""
    """Heading; one made from the runs if empty."""
    tables: tuple[TableSpec, ...] = ()
    """Tables to show; those by layer and timestep if there are none."""
    exploratory: bool = False
    """Whether tables may compare many cells on test."""
    panels: PanelConfig = PanelConfig(min_active=10)
    """Latents and directions."""
    data_path: str | None = None
    """Folder of the shards, where they were moved; None for the path of each run."""


def write_run_report(
    paths: Sequence[str | Path],
    out: Path | str,
    options: ReportOptions | None = None,
    *,
    progress: MakeBar | None = None,
) -> tuple[str, ...]:
    """Write the page of some runs as one HTML file.

    Args:
        paths: folders of runs, folders below which runs are, or `result.json` files.
        out: the file; it is replaced.
        options: what is shown.
        progress: makes a bar over the runs whose features are read; None for none.
    Returns: sentences on what the page does not show.
    Raises: see `run_report`; ConfigError for a file that is not HTML.
    """
    if Path(out).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"'{out}' has no ending of a page.", "allowed: .html, .htm", fix=f"--out {out}.html")
    page = run_report(paths, options, progress=progress)
    html = render_page(page)
    with atomic_file(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page.limits


def run_report(
    paths: Sequence[str | Path], options: ReportOptions | None = None, *, progress: MakeBar | None = None
) -> Page:
    """Build the content of the page of some runs.

    Raises: ConfigError for a path that is neither run nor folder, or an unknown group; ShardError for a `data_path`
        without shards; RunFailed for a run without a
        result, or results that contradict each other; SchemaError for results that cannot be read.
    """
    options = options or ReportOptions()
    if options.data_path is not None:
        from diffprobe.shards.index import ShardSet

        ShardSet.load(options.data_path)  # a wrong folder is not a missing one
    found = open_probe_runs(paths)
    found = replace(found, runs=tuple(with_data_path(run, options.data_path) for run in found.runs))
    results = tuple(run.result for run in found.runs)
    ordinary = [run for run in found.runs if run.control == "none"]
    if not ordinary:
        raise RunFailed(
            f"all {len(results)} runs are controls; a page shows what they are controls of.",
            fix="name the run too",
        )
    left_out = _not_shown(found)
    names = _names(ordinary)
    groups = _groups(ordinary)
    group_names = run_names([run.result for run in groups])
    n_read = sum(run.result.kind in ("sae", "direction") for run in ordinary)
    opening: AbstractContextManager[Bar | None] = nullcontext() if progress is None else progress(n_read)
    with opening as bar:
        stores = _Sources(options, bar)
        latents = _latent_sections(ordinary, names, options, stores, left_out)
        sources = dict(zip(map(_group, groups), group_names, strict=True)) if len(groups) > 1 else {}
        directions = _directions(found.runs, names, sources, options, stores, left_out)
    tables = options.tables or _tables(results, options.exploratory)
    if options.exploratory:
        tables = tuple(replace(spec, exploratory=True) if spec.reads_test() else spec for spec in tables)
    folders = [run.folder for run in found.runs] + [Path() for _ in found.others]
    every = (*results, *found.others)
    return Page(
        title=options.title or _title(ordinary),
        lead=_lead(ordinary, results),
        facts=(*facts_of(groups, group_names), *machine_facts(results)),
        results=every,
        tables=tables,
        filled=tuple(with_predictions(fill_table(every, spec), every, folders) for spec in tables),
        latents=latents,
        names=names,
        directions=directions,
        limits=tuple(dict.fromkeys(left_out)),
    )


def _not_shown(found: FoundRuns) -> list[str]:
    lines = []
    if found.others:
        kinds = ", ".join(sorted({result.kind for result in found.others}))
        lines.append(f"Results of other kinds are listed with the runs, and not shown: {kinds}.")
    if found.unfinished:
        some = ", ".join(str(path) for path in found.unfinished[:3]) + (" ..." if len(found.unfinished) > 3 else "")
        lines.append(f"{len(found.unfinished)} run(s) without a result, failed or not finished, are missing: {some}.")
    return lines


def _names(ordinary: Sequence[ProbeRun]) -> dict[str, str]:
    """Return name of run -> name on the page, for the runs of each kind that there are several of."""
    names: dict[str, str] = {}
    for kind in dict.fromkeys(run.result.kind for run in ordinary):
        of_kind = [run.result for run in ordinary if run.result.kind == kind]
        if len(of_kind) > 1:
            names |= dict(zip((run.run for run in of_kind), run_names(of_kind), strict=True))
    return names


def _groups(ordinary: Sequence[ProbeRun]) -> list[ProbeRun]:
    """Return the first run of each data set and backbone."""
    groups: dict[tuple[object, ...], ProbeRun] = {}
    for run in ordinary:
        groups.setdefault(_group(run), run)
    return list(groups.values())


def _group(run: ProbeRun) -> tuple[object, ...]:
    """Return what runs of one data set and backbone have in common."""
    config = run.config
    inputs = [run.result.artifacts.get(name) for name in (SHARDS, BACKBONE)]
    return (config.data.path, config.backbone.path, config.backbone.dtype, *inputs)


def _tables(results: Sequence[RunResult], exploratory: bool) -> tuple[TableSpec, ...]:
    """Return the tables by layer and timestep; a single autoencoder, and directions, have sections of their own."""
    ordinary = [run for run in results if run.config.get("control", "none") in ("none", None)]
    n_saes = sum(run.kind == "sae" for run in ordinary)
    kinds = ["classifier", *(["sae"] if n_saes > 1 else [])]
    shown = [run for run in results if run.kind in kinds]
    if not any(run in ordinary for run in shown):
        return ()
    return default_tables(shown, exploratory=exploratory).specs


def _title(ordinary: Sequence[ProbeRun]) -> str:
    backbones = dict.fromkeys(Path(run.config.backbone.path).name for run in ordinary)
    return f"What {' and '.join(backbones)} know{'s' if len(backbones) == 1 else ''}"


def _lead(ordinary: Sequence[ProbeRun], results: Sequence[RunResult]) -> str:
    counts: dict[str, int] = {}
    for run in ordinary:
        counts[run.result.kind] = counts.get(run.result.kind, 0) + 1
    nouns = {"sae": "sparse autoencoder", "classifier": "run of classifiers", "direction": "run of directions"}
    parts = []
    for kind, n in counts.items():
        noun = nouns.get(kind, f"run of kind {kind}")
        plural = noun.replace("run of", "runs of") if "run of" in noun else f"{noun}s"
        parts.append(f"{n} {noun if n == 1 else plural}")
    data = dict.fromkeys(Path(run.config.data.path).name for run in ordinary)
    n_controls = len(results) - len(ordinary)
    controls = f", with {n_controls} control run{'s' if n_controls > 1 else ''}" if n_controls else ""
    return f"{', '.join(parts)} on {' and '.join(data)}{controls}."


class _Sources:
    """Opens the features of runs; keeps the last ones, since runs of one store follow each other."""

    def __init__(self, options: ReportOptions, bar: Bar | None) -> None:
        self._options, self._bar = options, bar
        self.reasons: dict[str, str] = {}
        """Name of a run -> why its features are not at hand."""
        self._open: dict[object, PageFeatures] = {}

    def open(self, run: ProbeRun) -> PageFeatures | None:
        """Return the features of a run; None, with the reason in `reasons`, where they are not at hand."""
        if self._bar is not None:
            self._bar.update(1)
        backbone, features = backbone_and_features(run.config)
        key = (backbone, run.config.data, features, run.config.probe.cell, repr(run.config.probe.grid))
        if key not in self._open:
            try:
                source = open_features(run)
                source.table(run.config.data.test_split)  # a store that lost a file fails here
            except (DiffprobeError, OSError) as error:
                self.reasons[run.result.run] = f"its features are not at hand: {reason(error)}"
                return None
            self._check_group(source)
            while len(self._open) >= _MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[key] = source
        return self._open[key]

    def _check_group(self, source: PageFeatures) -> None:
        group = self._options.panels.group_by
        if group not in (None, SINGLE_SAMPLES, *source.attributes):
            raise unknown("group", str(group), source.attributes, ConfigError)


def _latent_sections(
    ordinary: Sequence[ProbeRun],
    names: dict[str, str],
    options: ReportOptions,
    stores: _Sources,
    left_out: list[str],
) -> tuple[LatentSection, ...]:
    from diffprobe.evaluation.latent_panels import latent_section

    sections = []
    for run in ordinary:
        if run.result.kind != "sae":
            continue
        name = names.get(run.result.run, run.result.run)
        source = stores.open(run)
        if source is None:
            left_out.append(f"No latents of {name} are shown: {stores.reasons[run.result.run]}")
            continue
        try:
            sections.append(latent_section(run, options.panels, name=name, features=source))
        except (DiffprobeError, OSError) as error:  # few samples, or weights that are not at hand
            left_out.append(f"No latents of {name} are shown: {reason(error)}")
    return tuple(sections)


def _directions(
    runs: Sequence[ProbeRun],
    names: dict[str, str],
    sources: dict[tuple[object, ...], str],
    options: ReportOptions,
    stores: _Sources,
    left_out: list[str],
) -> tuple[DirectionPanel, ...]:
    if not any(run.result.kind == "direction" for run in runs):
        return ()
    from diffprobe.evaluation.direction_panels import direction_panels

    def opener(run: ProbeRun) -> PageFeatures | None:
        source, name = stores.open(run), run.result.run
        if source is None:
            text = "without intervals, projections and pictures"
            left_out.append(f"Directions of {names.get(name, name)} are shown {text}: {stores.reasons[name]}")
        return source

    return direction_panels(
        runs,
        options.panels,
        names=names,
        sources={run.result.run: sources[_group(run)] for run in runs if _group(run) in sources},
        opener=opener,
        leave_out=left_out.append,
    )
