"""What a kind of probe receives: the plan of a run as far as training reads it, and checks that several kinds share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from diffprobe.config.schema import LATENTS, RunConfig, TrainerConfig
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.core.result import MetricRecord, RunResult


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """One combination of the values of a grid."""

    name: str
    """Its name in logs and folders: mid_block@t200,k=16,seed=1."""
    params: Any
    """The validated settings of the probe."""
    cell: str | None
    """The cell asked for; None for the only one."""
    seed: int
    """Seed of the initial weights."""


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """What trains in a run."""

    config: RunConfig
    """The configuration as given."""
    probe: ModuleType
    """The file of the probe."""
    params: Any
    """Its validated settings."""
    points: tuple[GridPoint, ...] = ()
    """What trains in the run where `probe.grid` is given; each has a record of its own."""


class LabelNames(Protocol):
    """The names of classes and attribute values."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes of the label."""

    @property
    def attributes(self) -> Mapping[str, Sequence[str]]:
        """Attribute -> names of its values."""


class Source(Protocol):
    """What a kind reads of the DataModule of a run."""

    @property
    def widths(self) -> dict[str, int]:
        """Cell name -> width of its features."""

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Cell name -> height and width of its maps, for the cells whose maps are kept."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes of the label."""

    @property
    def attributes(self) -> Mapping[str, Sequence[str]]:
        """Attribute -> names of its values."""


class ProbeKind(Protocol):
    """What a file of this folder offers; see the package."""

    TAKES_GRID: bool
    WITHOUT_GRID: tuple[str, ...]

    def validate(self, config: RunConfig, params: Sequence[Any]) -> None:
        """Refuse what the kind cannot do. Raises: ConfigError."""

    def check_cells(self, config: RunConfig, cells: Sequence[str]) -> None:
        """Refuse cells that the kind cannot read together. Raises: ConfigError."""

    def make_module(self, plan: ProbePlan, source: Source) -> object:
        """Make the LightningModule, a `ProbeModule` (a type that this file must not import).

        Raises: UnknownName for a target that the data do not have.
        """

    def summary(self, result: RunResult) -> str:
        """Return what the run found in a few words."""


def require_targets(config: RunConfig) -> None:
    """Refuse a supervised probe without targets. Raises: ConfigError."""
    if not config.probe.targets:
        raise ConfigError("probe.targets is empty; at least one is needed.", "allowed: label, or names of attributes")


def refuse_metrics(config: RunConfig) -> None:
    """Refuse a choice of metrics for a kind that has none to choose from. Raises: ConfigError."""
    if config.probe.metrics:
        raise ConfigError(
            f"probe.metrics={list(config.probe.metrics)}: the metrics of kind '{config.probe.kind}' cannot be chosen.",
            fix="leave probe.metrics empty",
        )


def refuse_latent_shards(config: RunConfig) -> None:
    """Refuse to share latents between processes for a probe that has none. Raises: ConfigError."""
    if config.trainer.strategy == LATENTS:
        raise ConfigError(
            f"trainer.strategy={LATENTS}: a probe of kind '{config.probe.kind}' has no latents to share.",
            fix="trainer.strategy=ddp",
        )


def refuse_row_shuffle(config: RunConfig) -> None:
    """Refuse a permutation of single rows for a kind that learns from whole samples. Raises: ConfigError."""
    if config.features.shuffle == "rows":
        raise ConfigError(
            f"features.shuffle=rows: a probe of kind '{config.probe.kind}' learns from whole samples.",
            fix="features.shuffle=samples",
        )


def refuse_joint_clipping(config: RunConfig) -> None:
    """Refuse to clip the joint gradient of probes that train side by side. Raises: ConfigError."""
    if config.trainer.gradient_clip is not None:
        raise ConfigError(
            f"trainer.gradient_clip={config.trainer.gradient_clip}: its norm would couple the probes of a run of kind "
            f"'{config.probe.kind}', which train side by side.",
            fix="leave it unset",
        )


def refuse_steps(config: RunConfig) -> None:
    """Refuse settings of training steps, and views, for a probe that has a closed form. Raises: ConfigError.

    `trainer.max_epochs` is allowed: experiment files set it for several probes.
    """
    names = ("learning_rate", "weight_decay", "gradient_clip", "max_steps", "checkpoint_every_steps")
    idle = [name for name in names if getattr(config.trainer, name) != getattr(TrainerConfig, name)]
    if idle:
        keys = ", ".join(f"trainer.{name}" for name in idle)
        raise ConfigError(
            f"{keys}: probe '{config.probe.name}' has a closed form and no steps.", fix="leave the keys unset"
        )
    if config.features.views.active:
        raise ConfigError(
            f"features.views: probe '{config.probe.name}' has a closed form, which is fitted on the images themselves.",
            fix="remove the views, or a probe that is trained in steps",
        )


def refuse_unread_views(config: RunConfig) -> None:
    """Refuse views that no epoch reads. Raises: ConfigError."""
    views, epochs = config.features.views, config.trainer.max_epochs
    if views.use == "cycle" and views.n is not None and views.n > epochs > 0:
        raise ConfigError(
            f"features.views.n={views.n} with trainer.max_epochs={epochs}: an epoch reads one view, and "
            f"{views.n - epochs} are never read.",
            fix=f"features.views.n={epochs}, or features.views.use=all",
        )


def require_one_cell(config: RunConfig, cells: Sequence[str], *, alternative: str = "") -> None:
    """Refuse several cells for a kind that reads one.

    Args:
        alternative: what else `probe.cell` may be, appended to the fix.

    Raises: ConfigError.
    """
    if len(cells) > 1:
        raise ConfigError(
            f"a probe of kind '{config.probe.kind}' reads one cell; the features have {len(cells)}.",
            f"cells: {', '.join(cells)}",
            fix=f"probe.cell={cells[0]}{alternative}",
        )


def target_classes(targets: tuple[str, ...], source: LabelNames) -> dict[str, tuple[str, ...]]:
    """Return the class names of each target. Raises: UnknownName for a target that the data do not have."""
    known = {"label": source.classes, **source.attributes}
    for target in targets:
        if target not in known:
            raise unknown("target", target, known)
    return {target: tuple(known[target]) for target in targets}


def of_test_split(result: RunResult) -> list[MetricRecord]:
    """Return the records of the test split."""
    return [record for record in result.metrics if record.split == "test"]


def count_targets(result: RunResult) -> str:
    """Return the number of targets and cells of a run as text: "2 targets x 27 cells"."""
    records = of_test_split(result)
    cells, targets = (len({getattr(record, name) for record in records}) for name in ("cell", "target"))
    return f"{targets} targets x {cells} cells" if cells > 1 else f"{targets} targets"
