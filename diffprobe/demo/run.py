"""`diffprobe demo`: the main job from shards to a report, as a list of runs of experiment files.

All runs are validated first; then all stores are written, all probes are trained, and tables and page are made from the
result files. A run does what `diffprobe train` does.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.config.compose import compose, require_kind, setting_text, split_experiment, validate
from diffprobe.config.kinds import PROBE
from diffprobe.config.parse import Origin
from diffprobe.config.schema import RunConfig
from diffprobe.config.source_lines import COMMAND_LINE
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import ConfigError, DiffprobeError
from diffprobe.core.progress import Bar
from diffprobe.core.result import RESULT_FILE, read_result
from diffprobe.demo.config import DemoConfig, RunSpec
from diffprobe.demo.needs import check_needs
from diffprobe.demo.types import REPORT, Demo, Outcome, View
from diffprobe.evaluation.use import KIND as USE
from diffprobe.evaluation.use import PARTS, UseEvaluation, evaluate_use
from diffprobe.evaluation.use_settings import load_use
from diffprobe.report.collect import read_results
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_spec import find_spec, load_spec
from diffprobe.runs.extract import extract_run
from diffprobe.runs.ladder import RUN_ITSELF, each_rung
from diffprobe.runs.plan import training_of
from diffprobe.runs.rungs import those_that_apply
from diffprobe.runs.tables import with_predictions
from diffprobe.runs.train import plan, train

if TYPE_CHECKING:
    from diffprobe.report.pages.panels import DirectionPanel

DEFAULT = "emoji/demo"


def load_demo(settings: Sequence[str] = ()) -> Demo:
    """Compose and validate a demo and all its runs. Nothing is loaded or written.

    Args:
        settings: as on the command line. Keys of `DemoConfig` apply to the demo; all others apply to every run and
            override the demo's file: backbone.path=FOLDER, data.limit=500, logger=wandb.
    Raises: ConfigError, UnknownName.
    """
    experiment, rest = split_experiment(None, settings)
    own = {field.name for field in fields(DemoConfig)} - {"settings"}
    for_demo = [setting for setting in rest if setting.partition("=")[0].partition(".")[0] in own]
    for_runs = [setting for setting in rest if setting not in for_demo]
    composed = compose(experiment or DEFAULT, for_demo)
    require_kind(composed, ("demo",))
    config: DemoConfig = validate(composed)
    specs = tuple(load_spec(find_spec(table)) for table in config.tables)
    runs, left_out = _load_runs(config, for_runs, composed.origin)
    _check_distinct(runs)
    use = tuple(_load_use(spec, config, for_runs) for spec in config.use)
    demo = Demo(config=config, runs=runs, specs=specs, use=use, left_out=left_out)
    _check_folder(demo)
    return demo


def _load_runs(
    config: DemoConfig, settings: Sequence[str], written: Origin
) -> tuple[tuple[RunConfig, ...], tuple[str, ...]]:
    """Validate all runs as `diffprobe train` does, the rungs of a ladder each as a run of its own.

    Returns: the runs, and which rungs were left out.
    Raises: ConfigError that names the run with the error.
    """
    runs: list[RunConfig] = []
    left_out: list[str] = []
    for number, spec in enumerate(config.runs, start=1):
        try:
            rungs = _load(spec, config, settings, written)
            if len(rungs) > 1:
                notes: list[str] = []
                rungs = those_that_apply(rungs, notes.append)
                left_out += [f"{spec.experiment}: {note}." for note in notes]
            for run in rungs:
                _check_run(run)
        except DiffprobeError as error:
            file, line = written.get("runs", COMMAND_LINE)
            place = f"in {file}, line {line}" if line else f"on {file}"
            name = " ".join([spec.experiment, *spec.settings])
            raise ConfigError(f"run {number} {place} ({name}): {error.what}", *error.details, fix=error.fix) from error
        runs += rungs
    return tuple(runs), tuple(left_out)


def _check_run(run: RunConfig) -> None:
    """Refuse what a demo cannot run. Raises: ConfigError."""
    plan(run)
    if run.trainer.devices * run.trainer.num_nodes != 1:
        raise ConfigError(
            f"trainer.devices={run.trainer.devices} trainer.num_nodes={run.trainer.num_nodes}: "
            "a demo trains in one process.",
            fix="trainer.devices=1 trainer.num_nodes=1; or diffprobe train, one run at a time",
        )
    if run.features.source == "live":
        raise ConfigError(
            "features.source=live: the runs and the report of a demo read feature stores.",
            fix="features.source=stored; or diffprobe train, which supports live features",
        )


def _load(spec: RunSpec, config: DemoConfig, settings: Sequence[str], written: Origin) -> list[RunConfig]:
    """Compose and validate a run, or each rung of its ladder; keys set by the demo's file keep their place."""
    own = [("settings", setting) for setting in config.settings] + [("runs", setting) for setting in spec.settings]
    output = f"output={setting_text(config.output)}"
    composed = compose(spec.experiment, [*(setting for _, setting in own), *settings, output])
    origin = dict(composed.origin)
    for block, setting in [*own, *(("", setting) for setting in settings)]:  # later ones win
        at = setting.partition("=")[0]
        for key in origin:
            if composed.origin[key] == COMMAND_LINE and f"{key}.".startswith(f"{at}."):
                origin[key] = written.get(block, COMMAND_LINE)
    require_kind(composed, (PROBE,))
    return [validate(rung) for rung in each_rung(replace(composed, origin=origin))]


def _load_use(spec: RunSpec, config: DemoConfig, settings: Sequence[str]) -> UseEvaluation:
    """Validate a measurement of `diffprobe eval use`; of the settings of all runs it has those on model and data."""
    shared = [setting for setting in settings if setting.partition("=")[0].partition(".")[0] in PARTS]
    output = f"output={setting_text(config.output)}"
    return load_use([f"experiment={spec.experiment}", *spec.settings, *shared, output])


def _check_distinct(runs: Sequence[RunConfig]) -> None:
    folders = [plan(run).run_dir for run in runs]
    twice = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if twice:
        raise ConfigError(f"two runs of the demo are the same: {', '.join(twice)}.")


def _check_folder(demo: Demo, used: Sequence[Path] | None = None) -> None:
    """Check that the folder contains no results of other settings, which `diffprobe table` would include.

    Args:
        used: files of the measurements of use; None before they are measured, when theirs cannot be known.
    Raises: ConfigError.
    """
    own = {plan(run).run_dir / RESULT_FILE for run in demo.runs} | set(used or ())
    later = demo.use and used is None
    foreign = [path for path in sorted(demo.folder.rglob(RESULT_FILE)) if path not in own]
    if later:
        foreign = [path for path in foreign if not _is_use(path)]
    if foreign:
        raise ConfigError(
            f"'{demo.folder}' contains {len(foreign)} result(s) of other settings.",
            *map(str, foreign[:3]),
            "a table includes all results in a folder and would mix them",
            fix=f"use another folder: output={demo.folder}-2; or remove this one",
        )


def _is_use(path: Path) -> bool:
    try:
        return read_result(path).kind == USE
    except DiffprobeError:  # whatever it is, it is not one of the demo's
        return False


def run_demo(demo: Demo, view: View) -> Outcome:
    """Write missing stores, train every probe, and fill the tables from the result files.

    Raises: see `check_needs`, before anything is extracted; the errors of extraction and training.
    """
    check_needs(demo)
    view.opening(demo)
    stores = tuple(_extract(run, view) for run in demo.stores())
    paths = tuple(_train(run, view) for run in demo.runs)
    used = tuple(_measure_use(one, view) for one in demo.use)
    _check_folder(demo, used)
    results, use_results = tuple(read_results(paths)), tuple(read_results(used))
    every, folders = (*results, *use_results), [path.parent for path in (*paths, *used)]
    return Outcome(
        demo=demo, results=results, result_paths=paths, store_paths=stores, use_results=use_results, use_paths=used,
        filled=tuple(with_predictions(fill_table(every, spec), every, folders) for spec in demo.specs),
    )  # fmt: skip


def _measure_use(config: UseEvaluation, view: View) -> Path:
    with view.step("use", Path(config.backbone.path).name) as step:
        path = evaluate_use(config)
        step.done(f"{len(read_result(path).metrics)} numbers")
    return path


def write_report(outcome: Outcome, view: View) -> "tuple[DirectionPanel, ...]":
    """Write `report.html` into the folder of the demo. Returns: the direction panels."""
    from diffprobe.demo.page import make_page
    from diffprobe.demo.panels import direction_panels
    from diffprobe.report.pages.page import render_page

    with view.step("report", REPORT) as step:
        left_out: list[str] = []
        directions = direction_panels(outcome, leave_out=left_out.append)
        html = render_page(make_page(outcome, directions, left_out))
        with atomic_file(outcome.demo.folder / REPORT) as temporary:
            temporary.write_text(html, encoding="utf-8")
        step.done(f"{len(html.encode()) / 1e6:.1f} MB, one file")
    return directions


def backbone_name(run: RunConfig) -> str:
    """Return the name of a run's backbone, or of the control that replaces it."""
    if run.control == RUN_ITSELF:
        return Path(run.backbone.path).name
    return run.control.replace("_", " ").replace("vae", "VAE")


def _extract(run: RunConfig, view: View) -> Path:
    with view.step("features", backbone_name(run)) as step:
        made = []

        def bar(total: int) -> AbstractContextManager[Bar]:
            made.append(total)
            return step.bar(total, "images")

        path = extract_run(run, progress=bar)
        step.done(f"{sum(made):,} images" if made else "kept from before")
    return path


def _train(run: RunConfig, view: View) -> Path:
    from diffprobe.training.progress import StepBar

    name = run.probe.name.replace("_", " ")
    with view.step(run.probe.kind, f"{backbone_name(run)}, {name}") as step:
        make: Callable[[int], AbstractContextManager[Bar]] = lambda total: step.bar(total, "steps")  # noqa: E731
        path = train(run, callbacks=[StepBar(make)])
        step.done(training_of(run.probe.kind).summary(read_result(path)))
    return path
