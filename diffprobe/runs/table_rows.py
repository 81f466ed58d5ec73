"""The rows of a table: the runs below its folder of experiments that its filter lets through.

`diffprobe run` trains them here, `diffprobe submit table` on a cluster; both find them here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffprobe.config import search_path
from diffprobe.config.compose import load_run
from diffprobe.config.controls import ALL_RUNGS, LADDER
from diffprobe.config.kinds import PROBE
from diffprobe.config.schema import RunConfig
from diffprobe.config.source_lines import read_kind
from diffprobe.core.errors import ConfigError, DiffprobeError
from diffprobe.launch.plan import expand
from diffprobe.report.table_spec import find_spec, load_specs
from diffprobe.runs.experiment import TrainingConfig, each_rung_setting, load_experiment, plan_training
from diffprobe.runs.seeds import as_sweep


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run of a table."""

    settings: list[str]
    """Settings of `diffprobe train` that make it."""
    config: TrainingConfig
    """Its configuration."""
    folder: Path
    """Folder of the run."""


@dataclass(frozen=True, kw_only=True)
class InvalidRow:
    """An experiment of a table whose configuration is refused."""

    settings: list[str]
    """Settings of `diffprobe train` that were tried."""
    error: DiffprobeError
    """Why it is refused."""


def table_name(given: str) -> str:
    """Return the name of a table that is given as a name or as the path of its folder.

    >>> table_name("emoji"), table_name("experiments/emoji/sae_table/"), table_name("./experiments/emoji/table.yaml")
    ('emoji', 'emoji/sae_table', 'emoji')
    """
    parts = [part for part in given.removesuffix("table.yaml").split("/") if part not in ("", ".")]
    if "experiments" in parts and (parts[0] == "experiments" or given.startswith("/")):
        parts = parts[parts.index("experiments") + 1 :]
    return "/".join(parts)


def find_rows(name: str, settings: Sequence[str]) -> list[RunRow]:
    """Return the runs of a table, in the order of their files; the values of a setting (`seed=0,1`) are a run each.

    Args:
        name: folder below `experiments/` that contains a `table.yaml`.
        settings: settings of all rows; they name no experiment.

    Raises: ConfigError for an unknown table, a table without rows, or rows that are the same run; what
        `load_experiment` and `plan_training` raise for the first row that is refused.
    """
    found = try_rows(name, settings)
    for row in found:
        if isinstance(row, InvalidRow):
            raise row.error
    return [row for row in found if isinstance(row, RunRow)]


def try_rows(name: str, settings: Sequence[str]) -> list[RunRow | InvalidRow]:
    """Return the runs of a table as `find_rows`, with those that are refused and the reason.

    Raises: ConfigError for an unknown table, a table without rows, or rows that are the same run.
    """
    specs = load_specs(find_spec(name))
    if any(setting.startswith("experiment=") for setting in settings):
        raise ConfigError(
            f"the rows of table '{name}' are the experiments of its folder; it takes no experiment=.",
            fix="for a single one: diffprobe train experiment=NAME",
        )
    below = [experiment for experiment in search_path.experiments() if experiment.startswith(f"{name}/")]
    filters = [spec.filter for spec in specs]
    rows = [row for experiment in below for row in _rows_of(experiment, settings, filters)]
    if not rows:
        raise ConfigError(
            f"table '{name}' has no rows to train: no experiment below experiments/{name} fits its filter.",
            f"experiments there: {', '.join(below)}",
        )
    require_different([row for row in rows if isinstance(row, RunRow)])
    return rows


def control_runs(name: str) -> list[str]:
    """Return the controls of a table that are measured by runs of their own (`control=NAME`), in order.

    Raises: ConfigError for an unknown table.
    """
    names = [control.name for spec in load_specs(find_spec(name)) for control in spec.controls]
    return [control for control in LADDER if control in names]


def require_different(rows: Sequence[RunRow]) -> None:
    """Refuse rows that are the same run. Raises: ConfigError."""
    for i, row in enumerate(rows):
        if row.folder in [other.folder for other in rows[:i]]:
            raise ConfigError(f"two of the runs are the same: {' '.join(row.settings)}.", f"folder: {row.folder}")


def expanded(settings: Sequence[str]) -> list[list[str]]:
    """Return the settings of each run of a sweep; a list of seeds is one. Raises: ConfigError, see `expand`."""
    return expand([as_sweep(setting) for setting in settings], search_path.experiments())


def make_row(settings: Sequence[str]) -> RunRow:
    """Validate the run that settings describe. Raises: see `load_experiment` and `plan_training`."""
    config = load_experiment(None, settings)
    return RunRow(settings=[*settings], config=config, folder=plan_training(config))


def _rows_of(
    experiment: str, settings: Sequence[str], filters: Sequence[Mapping[str, object]]
) -> Iterator[RunRow | InvalidRow]:
    if (read_kind(search_path.experiments()[experiment]) or PROBE) != PROBE:
        return
    for rest in expanded(settings):
        given = [f"experiment={experiment}", *rest]
        itself = [setting for setting in given if setting != f"control={ALL_RUNGS}"]
        try:  # no filter of a table reads the control, so that the run itself shows whether its rungs fit
            if any(_fits(load_run(None, itself), conditions) for conditions in filters):
                yield from map(make_row, each_rung_setting(given))
        except DiffprobeError as error:
            yield InvalidRow(settings=given, error=error)


def _fits(config: RunConfig, conditions: Mapping[str, object]) -> bool:
    """Return whether the results of a run can pass the filter of a table, by what the configuration shows of them."""
    shown = {"kind": config.probe.kind, "probe": config.probe.name}
    if not all(_allows(conditions[name], value) for name, value in shown.items() if name in conditions):
        return False
    folders = conditions.get("experiment", config.experiment)
    wanted = folders if isinstance(folders, list | tuple) else [folders]
    return any(config.experiment == one or config.experiment.startswith(f"{one}/") for one in wanted)


def _allows(condition: object, value: str) -> bool:
    return value in condition if isinstance(condition, list | tuple) else value == condition
