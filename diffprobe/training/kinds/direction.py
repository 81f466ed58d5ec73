"""Kind `direction`: one axis per target in one cell."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import RunResult
from diffprobe.training.kinds.types import (
    ProbePlan,
    Source,
    count_targets,
    refuse_joint_clipping,
    refuse_latent_shards,
    refuse_metrics,
    refuse_row_shuffle,
    refuse_steps,
    require_one_cell,
    require_targets,
    target_classes,
)

if TYPE_CHECKING:
    from diffprobe.training.module import ProbeModule

TAKES_GRID = False
WITHOUT_GRID: tuple[str, ...] = ()


def validate(config: RunConfig, params: Sequence[Any]) -> None:
    """Refuse a run without targets, one that is its own control, rows instead of samples, and steps of a closed form.

    Raises: ConfigError.
    """
    require_targets(config)
    if config.control == "shuffled_labels":
        raise ConfigError(
            "control=shuffled_labels: every run of kind 'direction' fits shuffled labels too (probe.params.n_shuffles)."
        )
    refuse_metrics(config)
    refuse_row_shuffle(config)
    refuse_latent_shards(config)
    from diffprobe.probes.direction.base import is_trained

    if is_trained(config.probe.name):
        refuse_joint_clipping(config)
    else:
        refuse_steps(config)


def check_cells(config: RunConfig, cells: Sequence[str]) -> None:
    """Refuse several cells. Raises: ConfigError."""
    require_one_cell(config, cells)


def make_module(plan: ProbePlan, source: Source) -> "ProbeModule":
    """Make the estimates of all targets. Raises: UnknownName for a target or value that the data do not have."""
    from diffprobe.training.direction import DirectionModule

    config = plan.config
    classes = target_classes(config.probe.targets, source)
    nuisances = target_classes(getattr(plan.params, "nuisances", ()), source)
    return DirectionModule(
        config.probe.name,
        plan.params,
        axes=plan.params.axes(list(source.widths), classes),
        widths=source.widths,
        settings=config.trainer,
        seed=config.seed,
        nuisances={name: len(values) for name, values in nuisances.items()},
    )


def summary(result: RunResult) -> str:
    """Return how many directions were found."""
    return count_targets(result)
