"""Kind `classifier`: one head per cell and target, all cells of a run in one pass, or a grid of them in one run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import RunResult
from diffprobe.metrics import load_metrics
from diffprobe.training.kinds.types import (
    ProbePlan,
    Source,
    count_targets,
    of_test_split,
    refuse_joint_clipping,
    refuse_latent_shards,
    refuse_row_shuffle,
    refuse_steps,
    require_targets,
    target_classes,
)

if TYPE_CHECKING:
    from diffprobe.training.classifier_bank import MemberSpec
    from diffprobe.training.module import ProbeModule

TAKES_GRID = True
LINEAR_CV, KNN = "linear_cv", "knn"
WITHOUT_GRID: tuple[str, ...] = (LINEAR_CV, KNN)
"""Classifiers without steps, which read the features of the training split into memory, in one process."""


def validate(config: RunConfig, params: Sequence[Any]) -> None:
    """Refuse a run without targets, unknown metrics, rows instead of samples, and clipping of the joint gradient.

    Raises: ConfigError, UnknownName.
    """
    require_targets(config)
    load_metrics("classifier", config.probe.metrics)
    refuse_row_shuffle(config)
    refuse_latent_shards(config)
    _check_balance(config, params)
    if config.probe.name in WITHOUT_GRID:
        refuse_steps(config)
        _require_one_process(config)
        if config.probe.batched:
            raise ConfigError(
                f"probe.batched=true has no effect: probe '{config.probe.name}' has no steps.", fix="remove it"
            )
        if config.probe.grid:
            raise ConfigError(
                f"probe.grid: probe '{config.probe.name}' has no steps to share.", fix="a run for each value"
            )
    else:
        refuse_joint_clipping(config)
        _refuse_two_rates(config, params)


def _check_balance(config: RunConfig, params: Sequence[Any]) -> None:
    """Refuse to balance batches that are not drawn from a store, or whose loss is balanced already."""
    probe = config.probe
    if probe.balance is None:
        return
    said = f"probe.balance={probe.balance}"
    if probe.name in WITHOUT_GRID:
        raise ConfigError(f"{said} has no effect: probe '{probe.name}' has no training batches.", fix="remove it")
    if config.features.source == "live":
        raise ConfigError(f"{said} draws samples from a store.", fix="features.source=stored, or class_weight=balanced")
    if any(part.balances_classes for part in params):
        raise ConfigError(f"{said} and probe.params.class_weight=balanced: classes are balanced twice.", fix="give one")
    if probe.balance not in probe.targets:
        raise ConfigError(
            f"{said} is not a target of the run.", f"targets: {', '.join(probe.targets)}", fix="balance one of them"
        )


def _refuse_two_rates(config: RunConfig, params: Sequence[Any]) -> None:
    rate = next((part.own_learning_rate for part in params if part.own_learning_rate is not None), None)
    if rate is not None and config.trainer.learning_rate is not None:
        raise ConfigError(
            f"trainer.learning_rate={config.trainer.learning_rate} and probe.params.learning_rate={rate}: give one.",
            fix="leave trainer.learning_rate unset",
        )


def _require_one_process(config: RunConfig) -> None:
    if (config.trainer.devices, config.trainer.num_nodes) != (1, 1):
        raise ConfigError(
            f"trainer.devices={config.trainer.devices}, trainer.num_nodes={config.trainer.num_nodes}: probe "
            f"'{config.probe.name}' reads its features in one process.",
            fix="trainer.devices=1 trainer.num_nodes=1",
        )


def check_cells(config: RunConfig, cells: Sequence[str]) -> None:
    """Accept any number of cells."""


def make_module(plan: ProbePlan, source: Source) -> "ProbeModule":
    """Make the bank of heads. Raises: UnknownName for a target that the data do not have."""
    config, name = plan.config, plan.config.probe.name
    shared: dict[str, Any] = {
        "widths": source.widths,
        "classes": target_classes(config.probe.targets, source),
        "only_control": config.control == "shuffled_labels",
        "metrics": config.probe.metrics,
        "settings": config.trainer,
        "seed": config.seed,
    }
    if name == LINEAR_CV:
        from diffprobe.training.linear_cv import LinearCVModule
        from diffprobe.training.module import data_group

        return LinearCVModule(name, plan.params, group=plan.params.group or data_group(source), **shared)
    if name == KNN:
        from diffprobe.training.knn import KNNModule

        return KNNModule(name, plan.params, n_train=_n_train(config, source), **shared)
    shared["sizes"] = source.sizes
    if plan.points:
        from diffprobe.training.classifier_bank import ClassifierBankModule

        return ClassifierBankModule(name, _members(plan, source), batched=config.probe.batched, **shared)
    if config.probe.batched:
        from diffprobe.training.classifier_batched import BatchedClassifierModule

        return BatchedClassifierModule(name, plan.params, **shared)
    from diffprobe.training.classifier import ClassifierModule

    return ClassifierModule(name, plan.params, **shared)


def _members(plan: ProbePlan, source: Source) -> "list[MemberSpec]":
    from diffprobe.features.cell_selection import choose_cells
    from diffprobe.training.classifier_bank import MemberSpec

    by_cell = "cell" in plan.config.probe.grid
    found = []
    for point in plan.points:
        cells = choose_cells([point.cell] if by_cell and point.cell else None, list(source.widths))
        found.append(MemberSpec(name=point.name, config=point.params, cells=tuple(cells), seed=point.seed))
    return found


def _n_train(config: RunConfig, source: Source) -> int | None:
    """Return the number of training samples of a shard set; None for data in memory, counted when they are read."""
    from diffprobe.features.request import shard_entries

    request = getattr(source, "request", None)
    if not request:
        return None
    return sum(entry.n for entry in shard_entries(request.view, config.data.train_split, config.data.limit))


def summary(result: RunResult) -> str:
    """Return how many targets and cells were classified, and the size of what the probes of kNN keep."""
    if result.config.get("probe", {}).get("grid") and not result.metrics:
        return "a result per member"  # the numbers of a grid are in the results of its members
    records = [record for record in of_test_split(result) if "saved_bytes" in record.detail]
    sizes = {(record.cell, record.target): int(record.detail["saved_bytes"]) for record in records}
    kept = f", {sum(sizes.values()) / 2**20:,.1f} MiB of training features in the probes" if sizes else ""
    return count_targets(result) + kept
