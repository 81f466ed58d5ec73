"""The dashboard of an experiment on Weights & Biases, made from its files: one workspace with scores, curves and runs.

What is shown follows from the experiment: the metrics of its tables, and those of the kind of probe it trains. The
workspace selects the runs of the experiment by their group, which `diffprobe train` sets.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffprobe.core.errors import RunFailed
from diffprobe.core.flat_tree import flatten
from diffprobe.training.wandb_run import SCORE

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

PACKAGE = "wandb-workspaces"
X_AXIS = "trainer/global_step"


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """What the workspace of an experiment shows."""

    experiments: tuple[str, ...]
    """Names of the experiments, which are the groups of its runs."""
    metrics: tuple[str, ...]
    """Metrics whose scores are drawn as bars, in order."""
    settings: tuple[str, ...]
    """Settings in which the experiments differ: columns of the run table, and the axes of the parallel coordinates."""
    media: tuple[str, ...] = ()
    """Keys of the tables, heat maps and pages of its runs; W&B's panel takes whole names only."""


def make_workspace(dashboard: Dashboard, *, entity: str, project: str, name: str) -> "Workspace":
    """Make the workspace; nothing is sent.

    Args:
        entity: W&B team or user.
        project: W&B project.
        name: title of the workspace.

    Raises: RunFailed if `wandb-workspaces` is not installed.
    """
    try:
        from wandb_workspaces import expr, workspaces
        from wandb_workspaces.reports import v2 as panels
    except ImportError as error:
        raise RunFailed(f"the package {PACKAGE} is not installed.", fix="pip install 'diffprobe[wandb]'") from error

    scores = [panels.SummaryMetric(SCORE + metric) for metric in dashboard.metrics]
    axes: list[Any] = [*map(panels.Config, dashboard.settings), *scores]
    shown: dict[str, list[Any]] = {
        "Scores (test, selected on val)": [
            panels.BarPlot(title=metric, metrics=[score])
            for metric, score in zip(dashboard.metrics, scores, strict=True)
        ],
        "Settings": [
            panels.ParallelCoordinatesPlot(columns=[panels.ParallelCoordinatesPlotColumn(axis) for axis in axes])
        ] * bool(dashboard.settings and scores),
        "Curves": [
            panels.LinePlot(title=f"{split} curves", x=X_AXIS, metric_regex=f"^{split}/.*")
            for split in ("train", "val")
        ],
        "Tables and images": [panels.MediaBrowser(media_keys=[key]) for key in dashboard.media],
    }  # fmt: skip
    sections = [
        workspaces.Section(name=title, is_open=i == 0, panels=content)
        for i, (title, content) in enumerate((title, content) for title, content in shown.items() if content)
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        runset_settings=workspaces.RunsetSettings(
            filters=expr.And(expr.Metric("Group").isin(list(dashboard.experiments))),
            pinned_columns=[f"summary:{SCORE}{metric}" for metric in dashboard.metrics]
            + [f"config:{_nested(key)}" for key in dashboard.settings],
        ),
    )


def _nested(key: str) -> str:
    """Return a dotted key as W&B addresses it: the first block has a value with the others below it."""
    block, _, rest = key.partition(".")
    return f"{block}.value.{rest}" if rest else f"{block}.value"


def spec_of(workspace: "Workspace") -> dict[str, Any]:
    """Return what W&B would receive, without the random numbers of its panels: equal workspaces give equal specs."""
    model = workspace._to_model()  # the package has no public way to see it without a server
    tree: dict[str, Any] = json.loads(model.model_dump_json(by_alias=True))
    _drop_ids(tree)
    return tree


def _drop_ids(tree: object) -> None:
    if isinstance(tree, dict):
        tree.pop("__id__", None)
        for value in tree.values():
            _drop_ids(value)
    elif isinstance(tree, list):
        for value in tree:
            _drop_ids(value)


def differing_keys(trees: Sequence[dict[str, Any]], limit: int = 6) -> tuple[str, ...]:
    """Return the dotted keys in which configurations differ, at most `limit`, those of the probe first."""
    flat = [flatten(tree) for tree in trees]
    names = sorted({name for tree in flat for name in tree}, key=lambda name: (not name.startswith("probe."), name))
    differing = [name for name in names if any(tree.get(name) != flat[0].get(name) for tree in flat)]
    return tuple(name for name in differing if name != "experiment")[:limit]
