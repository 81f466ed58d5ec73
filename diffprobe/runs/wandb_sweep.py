"""Sweeps of W&B from experiment files: what varies are settings of diffprobe, and every point is a valid configuration.

A sweep optimises the best value on val (`val_score/METRIC` in the summary of a run), never one on test.
"""

import itertools
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffprobe.config import search_path
from diffprobe.config.compose import typed_value, values_of
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError, DiffprobeError, unknown
from diffprobe.launch.plan import MAX_TASKS
from diffprobe.metrics import described
from diffprobe.metrics.headline import is_higher_better
from diffprobe.runs.dashboard import dashboard_of
from diffprobe.runs.experiment import TrainingConfig, load_experiment, load_experiments, plan_training
from diffprobe.runs.seeds import as_sweep
from diffprobe.runs.wandb_results import explained
from diffprobe.training.wandb_run import VAL_SCORE

Method = Literal["grid", "random", "bayes"]
Goal = Literal["minimize", "maximize"]
_INTERVAL = re.compile(r"(?P<log>log\()?interval\((?P<low>[^,()]+),(?P<high>[^,()]+)\)(?(log)\))")


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep, with every point of it validated."""

    tree: dict[str, Any]
    """What W&B receives."""
    points: tuple[tuple[str, ...], ...]
    """Settings of the configurations that were validated: all combinations, of intervals both ends."""
    submit: str
    """The command that runs the same points as SLURM jobs; empty where only an agent can choose them."""


def plan_sweep(
    experiment: str,
    settings: Sequence[str],
    *,
    method: Method = "grid",
    metric: str | None = None,
    goal: Goal | None = None,
    project: str | None = None,
    entity: str | None = None,
) -> SweepPlan:
    """Make the sweep of an experiment and validate its points as `diffprobe train --check` would.

    Args:
        experiment: name of one experiment file.
        settings: `key=A,B`; `key=[A,B]` where the configuration does not take the list as one value; for numbers
            `key=interval(LOW,HIGH)`, `key=log(interval(LOW,HIGH))`; and `key=VALUE` for all runs.
        method: W&B's way to choose the next point.
        metric: metric that is optimised; None for the first of the experiment's tables that has a better end.
        goal: None for the better end of the metric.
        project, entity: W&B project and team; None for those of `logger`.

    Raises: UnknownName for an experiment or metric; ConfigError if nothing varies, for intervals in a grid, too many
        or equal points, and for points that are not valid, with their settings.
    """
    known = search_path.experiments()
    if experiment not in known:
        raise unknown("experiment", experiment, known)
    fixed, parameters = _divide(experiment, settings)
    if not parameters:
        raise ConfigError(
            "nothing varies in this sweep.", f"given: {' '.join(settings)}", fix="several values of a key: seed=0,1,2"
        )
    if method == "grid" and (odd := [key for key, one in parameters.items() if "values" not in one]):
        raise ConfigError(f"{odd[0]} is an interval, and a grid has values.", fix="--method random or --method bayes")
    begin = [f"experiment={experiment}", *fixed]
    config = _load([*begin, "logger=wandb"], first_of(parameters))
    logger = config.logger
    begin += ["logger=wandb", *(f"logger.{k}={v}" for k, v in (("project", project), ("entity", entity)) if v)]
    points = tuple((*begin, *point) for point in _points(parameters))
    _validate(points)
    tree: dict[str, Any] = {"name": experiment, "program": "diffprobe", "project": project or logger.project}
    if entity or logger.entity:
        tree["entity"] = entity or logger.entity
    tree |= {
        "method": method,
        "metric": _metric(config, experiment, metric, goal),
        "parameters": parameters,
        "command": ["${env}", "diffprobe", "train", *begin, "${args_no_hyphens}"],
    }
    return SweepPlan(tree=tree, points=points, submit=_submit(begin, parameters) if method == "grid" else "")


def sweep_yaml(plan: SweepPlan) -> str:
    """Return the file that `wandb sweep FILE` reads."""
    import yaml

    text: str = yaml.safe_dump(plan.tree, sort_keys=False, allow_unicode=True, width=110)
    return text


def register(plan: SweepPlan, create: Callable[..., str] | None = None) -> str:
    """Register a sweep on W&B. What W&B prints goes to standard error.

    Args:
        create: `wandb.sweep`, which None stands for.

    Returns: its id. Raises: RunFailed if the server does not answer or refuses it.
    """
    import contextlib
    import sys

    if create is None:
        import wandb

        create = wandb.sweep
    with explained("register the sweep"), contextlib.redirect_stdout(sys.stderr):
        return create(plan.tree, entity=plan.tree.get("entity"), project=plan.tree["project"])


def agent_command(plan: SweepPlan, sweep: str) -> str:
    """Return the command that runs points of a registered sweep."""
    path = "/".join(filter(None, (plan.tree.get("entity"), plan.tree["project"], sweep)))
    return f"wandb agent {shlex.quote(path)}"


def first_of(parameters: dict[str, dict[str, Any]]) -> list[str]:
    """Return the settings of the first point of a sweep.

    >>> first_of({"seed": {"values": [0, 1]}, "lr": {"distribution": "uniform", "min": 0.1, "max": 1.0}})
    ['seed=0', 'lr=0.1']
    """
    return [f"{key}={_values(one)[0]}" for key, one in parameters.items()]


def _divide(experiment: str, settings: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Divide settings into those of all runs, and W&B's parameters."""
    fixed: list[str] = []
    parameters: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key == "experiment" or key == "logger" or key in seen:
            what = "is given twice" if key in seen else "is chosen by the sweep" if equals else "has no value"
            raise ConfigError(f"{setting}: '{key}' {what}.", fix="KEY=VALUE, KEY=A,B or KEY=interval(LOW,HIGH)")
        seen.add(key)
        if found := _INTERVAL.fullmatch(value.replace(" ", "")):
            parameters[key] = _interval(setting, **found.groupdict())
            continue
        several = _several(experiment, setting)
        if several is None:
            fixed.append(setting)
            continue
        if twice := [text for i, text in enumerate(several) if text in several[:i]]:
            raise ConfigError(f"{setting} names {twice[0]} twice.", fix="name each value once")
        parameters[key] = {"values": [typed_value(f"{key}={text}") for text in several]}
    return fixed, parameters


def _several(experiment: str, setting: str) -> list[str] | None:
    """Return the values of a setting that varies, as texts of settings; None for one value, which may be a list."""
    swept = as_sweep(setting)
    values = values_of(swept)
    if len(values) > 1:
        return values
    key, _, value = setting.partition("=")
    value = value.strip()
    if not (value.startswith("[") and value.endswith("]") and value[1:-1].strip()):
        return None
    if swept != setting:
        return values  # seed=[0]
    try:
        plan_training(load_experiments(None, [f"experiment={experiment}", setting])[0])
    except DiffprobeError:
        return values_of(f"{key}={value[1:-1]}")
    return None


def _interval(setting: str, *, log: str | None, low: str, high: str) -> dict[str, Any]:
    ends = [typed_value(f"end={end}") for end in (low, high)]
    numbers = [end for end in ends if isinstance(end, (int, float)) and not isinstance(end, bool)]
    if len(numbers) != 2 or not numbers[0] < numbers[1] or (log and numbers[0] <= 0):
        raise ConfigError(
            f"{setting}: an interval has two numbers, the lower first, and above 0 for log.",
            fix="KEY=interval(LOW,HIGH)",
        )
    whole = all(isinstance(number, int) for number in numbers)
    if log:
        kind = "q_log_uniform_values" if whole else "log_uniform_values"
    else:
        kind = "int_uniform" if whole else "uniform"
    quantum = {"q": 1} if log and whole else {}
    return {"distribution": kind, "min": numbers[0], "max": numbers[1], **quantum}


def _values(parameter: dict[str, Any]) -> list[Any]:
    """Return the values of a parameter, or both ends of its interval."""
    return list(parameter["values"]) if "values" in parameter else [parameter["min"], parameter["max"]]


def _points(parameters: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the settings of all combinations, as W&B's agent writes them (`${args_no_hyphens}`)."""
    columns = [[f"{key}={value}" for value in _values(one)] for key, one in parameters.items()]
    n = 1
    for column in columns:
        n *= len(column)
    if n > MAX_TASKS:
        raise ConfigError(f"the sweep has {n:,} points; at most {MAX_TASKS} are validated.", fix="fewer values")
    return list(itertools.product(*columns))


def _load(begin: Sequence[str], point: Sequence[str]) -> TrainingConfig:
    """Load the configuration of a point. Raises: ConfigError with its settings."""
    try:
        config = load_experiment(None, [*begin, *point])
    except DiffprobeError as error:
        raise ConfigError(
            f"the point {' '.join(point)} is not a valid configuration: {error.what}", *error.details, fix=error.fix
        ) from error
    if isinstance(config, RunConfig) and config.probe.grid:
        raise ConfigError(
            "probe.grid trains several probes in one run, which then has no score of its own.",
            fix="let the sweep vary probe.params.KEY, or train the grid without a sweep",
        )
    return config


def _validate(points: Sequence[Sequence[str]]) -> None:
    """Validate every point. Raises: ConfigError for one that is not valid, or two that are the same run."""
    folders: dict[str, Sequence[str]] = {}
    for point in points:
        config = _load((), point)
        try:
            folder = str(plan_training(config))
        except DiffprobeError as error:
            raise ConfigError(
                f"the point {' '.join(point)} cannot be trained: {error.what}", *error.details, fix=error.fix
            ) from error
        if folder in folders:
            raise ConfigError(
                "two points of the sweep are the same run.", " ".join(folders[folder]), " ".join(point),
                fix="name each value once",
            )  # fmt: skip
        folders[folder] = point


def _metric(config: TrainingConfig, experiment: str, metric: str | None, goal: Goal | None) -> dict[str, str]:
    """Return W&B's block of the metric that is optimised."""
    known = list(_measured(config))
    known.sort(key=[*dashboard_of(experiment).metrics, *known].index)  # those of its tables first
    if metric is not None and known and metric not in known:
        raise unknown("metric", metric, known)
    better = {name: name == "auroc" or is_higher_better(name) for name in (*known, *filter(None, [metric]))}
    if metric is None:
        metric = next((name for name in known if better[name] is not None), None)
    if metric is None:
        raise ConfigError(f"no metric of experiment '{experiment}' is known.", fix="--metric NAME --goal minimize")
    if goal is None:
        if better[metric] is None:
            raise ConfigError(
                f"neither end of metric '{metric}' is known to be better.", fix="--goal minimize|maximize"
            )
        goal = "maximize" if better[metric] else "minimize"
    return {"name": VAL_SCORE + metric, "goal": goal}


def _measured(config: TrainingConfig) -> tuple[str, ...]:
    """Return the metrics that a run of a probe can have; () for other runs, whose metrics are not registered."""
    if not isinstance(config, RunConfig):
        return ()
    kind = config.probe.kind
    if kind == "direction":
        return ("auroc",)
    return tuple(name for name, one in described().items() if one.measured_on.partition("_")[0] == kind)


def _submit(begin: Sequence[str], parameters: dict[str, dict[str, Any]]) -> str:
    swept = [f"{key}={','.join(map(str, one['values']))}" for key, one in parameters.items()]
    return shlex.join(["diffprobe", "submit", "train", *begin, *swept, "cluster=NAME"])
