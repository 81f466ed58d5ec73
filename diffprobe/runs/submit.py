"""`diffprobe submit`: the stages of a command. Extraction comes before the runs that read its store, tables come last.

Every configuration is validated here, by the code of `train --check`, before anything is submitted. Finished runs and
complete stores are left out, and so is what is still in the queue.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffprobe.config.cluster import ClusterConfig
from diffprobe.config.compose import load_run, split_experiment
from diffprobe.config.parse import record_tree, to_tree
from diffprobe.config.schema import BackboneConfig, RunConfig
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, DiffprobeError
from diffprobe.core.result import RESULT_FILE
from diffprobe.launch.plan import MAX_TASKS, Resources, Stage, Task, by_resources, check_resources
from diffprobe.launch.submission import SubmittedTask
from diffprobe.runs.experiment import TrainingConfig, each_rung_setting, plan_training
from diffprobe.runs.extract import backbone_and_features
from diffprobe.runs.table_rows import RunRow, expanded, find_rows, make_row, require_different, table_name

_READING = ("source", "store", "placement", "shuffle", "verify", "latent_cache")
"""Keys of `features` that do not change a store; its folder is compared by itself."""
_WITH_DEVICE = ("bench", "demo", "eval")
"""Verbs besides train and extract that use a GPU where the cluster has one."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be submitted, as the command line gives it."""

    verb: str
    words: tuple[str, ...] = ()
    """Arguments of the verb that are not settings: folders and options."""
    settings: tuple[str, ...] = ()
    """Settings; a key may have several values."""
    parts: int = 1
    """Parts of each extraction."""
    again: bool = False
    """Whether finished runs are submitted as well."""


@dataclass
class SubmissionPlan:
    """What will be submitted, and what will not."""

    label: str
    stages: list[Stage] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    """Folders of runs, and stores, that are complete."""
    queued: dict[str, str] = field(default_factory=dict)
    """Work that is in the queue -> id of its job."""


class _Planner:
    """Builds the stages of one command.

    Args:
        wanted: the command.
        cluster: where it runs.
        cluster_name: name of the cluster's file.
        active: what is in the queue, by work.
        check: validates the arguments of a verb that is neither trained nor extracted.
    """

    def __init__(
        self,
        wanted: Wanted,
        cluster: ClusterConfig,
        cluster_name: str,
        active: Mapping[str, SubmittedTask],
        check: Callable[[str, Sequence[str]], None],
    ) -> None:
        self.wanted, self.cluster, self.cluster_name = wanted, cluster, cluster_name
        self.active, self.check = active, check
        self.plan = SubmissionPlan(label=wanted.verb)

    def run(self) -> SubmissionPlan:
        if self.wanted.parts != 1 and self.wanted.verb not in ("extract", "train", "table"):
            raise ConfigError(f"--parts divides an extraction; `{self.wanted.verb}` has none.")
        {"train": self._train, "extract": self._extract, "table": self._table}.get(self.wanted.verb, self._other)()
        return self.plan

    def _train(self) -> None:
        rows = [make_row(settings) for settings in self._rungs(expanded(self.wanted.settings))]
        self._check_resources(rows)
        self._label(rows)
        self._train_rows(rows)

    def _extract(self) -> None:
        runs = []
        for settings in self._rungs(expanded(self.wanted.settings)):
            config = load_run(None, settings)
            if config.features.source == "live":
                raise ConfigError(
                    "this run reads live features; it needs no store.", fix="to make one: features.source=stored"
                )
            plan_training(config)
            runs.append((settings, config))
        self.plan.label = next((config.experiment for _, config in runs if config.experiment), "extract")
        self._extract_stores(runs)

    def _table(self) -> None:
        name, *options = self.wanted.words
        name = table_name(name)
        rows = find_rows(name, self.wanted.settings)
        self._check_resources(rows)
        self.plan.label = name
        self._train_rows(rows)
        if not any(option.partition("=")[0] in ("--results", "--from") for option in options):
            outputs = {row.config.output for row in rows}
            if len(outputs) == 1:
                options += ["--results", outputs.pop()]
        before = [stage.name for stage in self.plan.stages if stage.name.startswith("train")]
        waiting = tuple(self.plan.queued.values())
        task = self._task(("table", name, *options), None)
        self.plan.stages.append(Stage(name="table", tasks=(task,), after=tuple(before), after_jobs=waiting))

    def _other(self) -> None:
        gpus = min(1, self.cluster.gpus_per_node) if self.wanted.verb in _WITH_DEVICE else 0
        rows = []
        for settings in expanded(self.wanted.settings):
            self.check(self.wanted.verb, [*self.wanted.words, *settings])
            experiment, _ = split_experiment(None, settings)
            self.plan.label = experiment or self.wanted.verb
            rows.append((self._task((self.wanted.verb, *self.wanted.words, *settings), None), Resources(gpus=gpus)))
        self.plan.stages += by_resources(self.wanted.verb, self._not_queued(rows))

    def _check_resources(self, rows: Sequence[RunRow]) -> None:
        for row in rows:
            what = " ".join(row.settings) or "the run"
            check_resources(self._of_training(row.config), self.cluster, self.cluster_name, what)

    def _train_rows(self, rows: Sequence[RunRow]) -> None:
        """Add extraction and training of what is not finished and not in the queue."""
        require_different(rows)
        left = []
        for row in rows:
            if (row.folder / RESULT_FILE).is_file() and not self.wanted.again:
                self.plan.finished.append(str(row.folder))
            elif (work := str(row.folder.resolve())) in self.active:
                self.plan.queued[work] = self.active[work].job
            else:
                left.append(row)
        stored = [
            (row.settings, row.config)
            for row in left
            if isinstance(row.config, RunConfig) and row.config.features.source == "stored"
        ]
        waiting = self._extract_stores(stored)
        found = by_resources(
            "train",
            [(self._task(("train", *row.settings), row.folder), self._of_training(row.config)) for row in left],
            after=tuple(stage.name for stage in self.plan.stages),
            after_jobs=waiting,
        )
        self.plan.stages += found

    def _extract_stores(self, runs: Sequence[tuple[list[str], RunConfig]]) -> tuple[str, ...]:
        """Add the extraction of each store that is not complete. Returns: jobs in the queue that already write one."""
        rows: list[tuple[Task, Resources]] = []
        waiting: list[str] = []
        stores: dict[str, tuple[list[str], RunConfig]] = {}
        for settings, config in runs:
            stores.setdefault(store_key(config), (settings, config))
        for key, (settings, config) in stores.items():
            resources = self._of_extraction(backbone_and_features(config)[0])
            check_resources(resources, self.cluster, self.cluster_name, "extraction")
            queued = {work: task.job for work, task in self.active.items() if work.startswith(f"{key} ")}
            own, words = self.wanted.verb == "extract", list(self.wanted.words)
            given = words[words.index("--process") + 1] if own and "--process" in words else None
            n = self.wanted.parts
            parts = [given] if given else [f"{i}/{n}" for i in range(n)]
            works = [f"{key} {part}" for part in parts]
            if not queued and store_is_complete(config):
                self.plan.finished += [key] if own else []
                continue
            waiting += queued.values()
            self.plan.queued |= queued if own else {}
            if not set(queued) <= set(works) and not given:  # divided into other parts, which write this store
                continue
            for part, work in zip(parts, works, strict=True):
                process = () if n == 1 else ("--process", part)
                more = words if own else []
                if work not in queued:
                    rows.append((Task(command=("extract", *settings, *more, *process), work=work), resources))
        if len(rows) > MAX_TASKS:
            raise ConfigError(f"{len(rows):,} extractions; at most {MAX_TASKS} are submitted at once.", fix="--parts N")
        self.plan.stages += by_resources("extract", rows)
        return tuple(waiting)

    def _of_training(self, config: TrainingConfig) -> Resources:
        trainer, gpus = config.trainer, 0
        if trainer.accelerator == "gpu" or (trainer.accelerator == "auto" and self.cluster.gpus_per_node):
            gpus = trainer.devices
        if isinstance(config, RunConfig) and config.features.source == "live":
            gpus = max(gpus, trainer.devices * self._of_extraction(config.backbone).gpus)
        return Resources(nodes=trainer.num_nodes, processes=trainer.devices, gpus=gpus)

    def _of_extraction(self, backbone: BackboneConfig) -> Resources:
        if backbone.path == "pixels" or backbone.device in ("cpu", "mps"):
            return Resources()
        return Resources(gpus=1 if backbone.device.startswith("cuda") else min(1, self.cluster.gpus_per_node))

    def _not_queued(self, rows: Sequence[tuple[Task, Resources]]) -> list[tuple[Task, Resources]]:
        self.plan.queued |= {task.work: self.active[task.work].job for task, _ in rows if task.work in self.active}
        return [(task, resources) for task, resources in rows if task.work not in self.active]

    @staticmethod
    def _task(command: tuple[str, ...], folder: Path | None) -> Task:
        absolute = None if folder is None else str(folder.resolve())
        return Task(command=command, run_folder=absolute, work=absolute or f"{os.getcwd()}: {' '.join(command)}")

    @staticmethod
    def _rungs(rows: Iterable[Sequence[str]]) -> list[list[str]]:
        """Return the settings with those of `control=ladder` for each rung that applies, named on stderr if not."""
        return [rung for settings in rows for rung in each_rung_setting(settings)]

    def _label(self, rows: Sequence[RunRow]) -> None:
        names = [row.config.experiment for row in rows if row.config.experiment]
        self.plan.label = os.path.commonpath(names) if names and os.path.commonpath(names) else "train"


def plan_submission(
    wanted: Wanted,
    cluster: ClusterConfig,
    cluster_name: str,
    *,
    active: Mapping[str, SubmittedTask],
    check: Callable[[str, Sequence[str]], None],
) -> SubmissionPlan:
    """Validate a command and return its stages, in the order in which they are submitted.

    Args:
        wanted: the command.
        cluster: where it runs.
        cluster_name: name of the cluster's file.
        active: what is in the queue, by work.
        check: validates verb and arguments of a command without runs; raises what the verb's own `--check` does.

    Raises: ConfigError and UnknownName with every error of a configuration, before anything is submitted; ConfigError
        for what the cluster does not have.
    """
    return _Planner(wanted, cluster, cluster_name, active, check).run()


def store_key(config: RunConfig) -> str:
    """Return what identifies the store of a run before it is known by its manifest: folder and settings."""
    backbone, features = backbone_and_features(config)
    data = {key: value for key, value in record_tree(config.data).items() if key not in ("batch_size", "num_workers")}
    cells = {key: value for key, value in to_tree(features).items() if key not in _READING}
    digest = digest_json({"backbone": to_tree(backbone), "data": data, "features": cells})
    return f"store {Path(features.store).resolve()} {digest[:12]}"


def store_is_complete(config: RunConfig) -> bool:
    """Return whether the store of a run is complete; False where that cannot be seen from here."""
    backbone, features = backbone_and_features(config)
    folder = Path(features.store)
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    from diffprobe.features.reader import FeatureStore
    from diffprobe.features.request import Request

    try:
        FeatureStore.find(folder, Request(backbone, config.data, features).manifest)
    except DiffprobeError:  # incomplete, other settings, or a backbone that only the nodes see
        return False
    return True
