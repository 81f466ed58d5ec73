"""The plan of a submission: stages of tasks, what each asks of a node, and which stage waits for which.

A stage is one job, or one job array where it has several tasks. Nothing here talks to SLURM.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from diffprobe.config.cluster import ClusterConfig
from diffprobe.config.compose import values_of
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.core.json_file import expect

MAX_TASKS = 1000
"""Most tasks of one submission; SLURM's own default limit for arrays is 1001."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the tasks of a stage ask for."""

    nodes: int = 1
    """Nodes of each task."""
    processes: int = 1
    """Processes on each node."""
    gpus: int = 0
    """GPUs on each node."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One command of a stage."""

    command: tuple[str, ...]
    """Verb and arguments: ("train", "experiment=emoji/sae")."""
    run_folder: str | None = None
    """Absolute folder of the run whose `result.json` shows that the task is finished; None where the verb has none."""
    work: str
    """What two submissions of the same work have in common: the run's folder, the part of a store, or the command."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Tasks that ask for the same resources and wait for the same stages."""

    name: str
    """Name within the submission: extract, train, train-2, table."""
    tasks: tuple[Task, ...]
    """What runs; several tasks are a job array."""
    resources: Resources = Resources()
    """What each task asks for."""
    after: tuple[str, ...] = ()
    """Stages of the same submission that have to end well before."""
    after_jobs: tuple[str, ...] = ()
    """Jobs of earlier submissions that have to end well before."""


def expand(settings: Sequence[str], experiments: Iterable[str]) -> list[list[str]]:
    """Return the settings of each run of a sweep: all combinations, the last setting varying fastest.

    Args:
        settings: `key=value`, `key=1,2,3`, `experiment=a,b`, `experiment=folder/*`.
        experiments: all names that a pattern may stand for.

    Raises: ConfigError for a pattern that fits no experiment, a value twice, or more than `MAX_TASKS` runs.

    >>> expand(["probe=topk", "seed=0,1", "data.limit=5"], [])
    [['probe=topk', 'seed=0', 'data.limit=5'], ['probe=topk', 'seed=1', 'data.limit=5']]
    """
    names, columns = list(experiments), []
    for setting in settings:
        key, _, whole = setting.partition("=")
        values = _experiments(whole.split(","), names) if key == "experiment" else values_of(setting)
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise ConfigError(f"{setting} names {twice[0]} twice.", fix="name each value once")
        columns.append([f"{key}={value}" for value in values])
    n = 1
    for column in columns:
        n *= len(column)
    if n > MAX_TASKS:
        raise ConfigError(f"the settings are {n:,} runs; at most {MAX_TASKS} are submitted at once.")
    return [list(row) for row in itertools.product(*columns)]


def _experiments(asked: Sequence[str], names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in asked:
        if "*" not in name:
            found.append(name)
            continue
        fitting = [known for known in names if fnmatchcase(known, name)]
        if not fitting:
            raise unknown("experiment", name, names, ConfigError)
        found += fitting
    return found


def by_resources(
    name: str,
    rows: Sequence[tuple[Task, Resources]],
    *,
    after: tuple[str, ...] = (),
    after_jobs: tuple[str, ...] = (),
) -> list[Stage]:
    """Divide tasks into stages of equal resources, in order: NAME, NAME-2, ...; each waits for the same ones."""
    found: dict[Resources, list[Task]] = {}
    for task, resources in rows:
        found.setdefault(resources, []).append(task)
    return [
        Stage(
            name=name if i == 1 else f"{name}-{i}",
            tasks=tuple(tasks),
            resources=resources,
            after=after,
            after_jobs=after_jobs,
        )
        for i, (resources, tasks) in enumerate(found.items(), 1)
    ]


def check_resources(resources: Resources, cluster: ClusterConfig, name: str, what: str) -> None:
    """Check that a cluster has what a task asks for.

    Args:
        name: name of the cluster.
        what: the task, for the message.

    Raises: ConfigError with the number that is too large, before anything is submitted.
    """
    where = f"cluster '{name}'"
    if resources.gpus > cluster.gpus_per_node:
        raise ConfigError(
            f"{what} asks for {resources.gpus} GPUs per node, but {where} has {cluster.gpus_per_node}.",
            fix="trainer.devices=N trainer.accelerator=cpu, another cluster, or cluster.gpus_per_node=N",
        )
    if resources.nodes > cluster.nodes:
        raise ConfigError(
            f"{what} asks for {resources.nodes} nodes, but {where} allows {cluster.nodes}.",
            fix=f"trainer.num_nodes={cluster.nodes}, or cluster.nodes={resources.nodes}",
        )
    cores = resources.processes * cluster.cpus_per_task
    if cluster.cpus_per_node is not None and cores > cluster.cpus_per_node:
        raise ConfigError(
            f"{what} asks for {resources.processes} processes of {cluster.cpus_per_task} cores per node, but {where} "
            f"has {cluster.cpus_per_node} cores.",
            fix="fewer trainer.devices, or a smaller cluster.cpus_per_task",
        )


def narrowed(stage: Stage, keep: Sequence[Task]) -> Stage:
    """Return a stage with some of its tasks."""
    return replace(stage, tasks=tuple(task for task in stage.tasks if task in keep))


def stage_tree(stage: Stage) -> dict[str, Any]:
    """Return a stage as JSON holds it; `stage_of` reads it."""
    return {
        "name": stage.name,
        "tasks": [
            {"command": list(task.command), "run_folder": task.run_folder, "work": task.work} for task in stage.tasks
        ],
        "resources": vars(stage.resources),
        "after": list(stage.after),
        "after_jobs": list(stage.after_jobs),
    }


def stage_of(tree: dict[str, Any], where: str) -> Stage:
    """Read a stage of a record. Raises: SchemaError, which names the place `where`."""

    def texts(value: object, at: str) -> tuple[str, ...]:
        return tuple(expect(one, str, where=f"{where}, {at}") for one in expect(value, list, where=f"{where}, {at}"))

    tasks = []
    for one in expect(tree.get("tasks"), list, where=f"{where}, tasks"):
        entry = expect(one, dict, where=f"{where}, tasks")
        folder = entry.get("run_folder")
        if folder is not None:
            folder = expect(folder, str, where=f"{where}, run_folder")
        work = expect(entry.get("work"), str, where=f"{where}, work")
        tasks.append(Task(command=texts(entry.get("command"), "command"), run_folder=folder, work=work))
    asked = expect(tree.get("resources"), dict, where=f"{where}, resources")
    numbers = {name: expect(asked.get(name), int, where=f"{where}, {name}") for name in ("nodes", "processes", "gpus")}
    return Stage(
        name=expect(tree.get("name"), str, where=f"{where}, name"),
        tasks=tuple(tasks),
        resources=Resources(**numbers),
        after=texts(tree.get("after"), "after"),
        after_jobs=texts(tree.get("after_jobs"), "after_jobs"),
    )
