"""What the runs and the report of a demo need of configurations and data, checked before anything is extracted.

A demo trains for minutes before it writes its page; whatever the page cannot show is refused first.
"""

from collections.abc import Iterator

from diffprobe.analysis.statistics import SINGLE_SAMPLES
from diffprobe.backbones.cell import parse_pool
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError, DiffprobeError, unknown
from diffprobe.demo.types import Demo
from diffprobe.runs.extract import backbone_and_features
from diffprobe.runs.plan import plan
from diffprobe.runs.provenance import require_splits
from diffprobe.shards.index import ShardSet

_WITH_PLACES = ("none", "tokens")
"""Poolings that keep several vectors per sample, which only an autoencoder reads."""


def check_needs(demo: Demo) -> None:
    """Check a demo against its shard sets. Reads indexes, loads neither images nor weights.

    Raises: ConfigError, naming the run, for features that its probe cannot read or a grid that the page cannot show;
        UnknownName for a split, target, pole or group that the data do not have; ShardError for a set that cannot be
        opened.
    """
    sets: dict[str, ShardSet] = {}
    for number, run in enumerate(demo.runs, start=1):
        try:
            if run.data.path not in sets:
                sets[run.data.path] = ShardSet.load(run.data.path)
            _check_run(run, sets[run.data.path])
        except DiffprobeError as error:
            name = f"run {number} ({run.experiment}, {run.probe.name})"
            raise type(error)(f"{name}: {error.what}", *error.details, fix=error.fix) from error
    shown = next(_of_kind(demo, "sae"), None)
    if shown is not None and shown.probe.grid:
        raise ConfigError(
            f"the demo's first autoencoder ({shown.experiment}) is a grid; the page shows the latents of one.",
            fix="remove probe.grid from that run, or name a run of one autoencoder before it",
        )
    group = demo.config.panels.group_by
    for run in _of_kind(demo, "direction"):
        if group not in (None, SINGLE_SAMPLES, *sets[run.data.path].attributes):
            raise unknown("panels.group_by", str(group), sets[run.data.path].attributes, ConfigError)


def _of_kind(demo: Demo, kind: str) -> Iterator[RunConfig]:
    return (run for run in demo.runs if run.probe.kind == kind and run.control == "none")


def _check_run(run: RunConfig, shard_set: ShardSet) -> None:
    require_splits(run.data, shard_set)
    if run.probe.kind == "sae":
        return
    features = backbone_and_features(run)[1]
    if parse_pool(features.pool)[0] in _WITH_PLACES or features.keep_draws:
        raise ConfigError(
            f"a probe of kind '{run.probe.kind}' reads one vector per sample.",
            f"given: features.pool={features.pool}, features.keep_draws={str(features.keep_draws).lower()}",
            fix="features.pool=mean, max or gridK, and features.keep_draws=false",
        )
    known = {**shard_set.attributes, "label": shard_set.classes}
    for target in run.probe.targets:
        if target not in known:
            raise unknown("target", target, known)
    classes = {target: known[target] for target in run.probe.targets}
    if run.probe.kind == "direction":
        plan(run).params.axes([""], classes)  # its poles are values of its targets
