"""`diffprobe extract`: write the features of one run to its store; and what the control of a run replaces."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.config.schema import BackboneConfig, FeaturesConfig, RunConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.heartbeat import beating, heartbeat_path
from diffprobe.runs.provenance import require_splits

if TYPE_CHECKING:
    from diffprobe.core.progress import Announce, MakeBar


def extract_run(
    run: RunConfig,
    *,
    process: tuple[int, int] = (0, 1),
    progress: "bool | MakeBar" = True,
    announce: "Announce" = lambda line: None,
) -> Path:
    """Write the feature store that a run reads, or what of it is missing, and return its folder.

    Args:
        process: (i, n): write every n-th shard from the i-th on; n such calls together make the store.
        progress: whether to show a bar, or the maker of one.
        announce: takes lines for people: sizes, what is reused, a summary.

    Raises: ConfigError for a run with live features, UnknownName for a split that the data have not got, and what
        `features.extract.extract` raises.
    """
    if run.features.source == "live":
        raise ConfigError("this run reads live features; it needs no store.", fix="to make one: features.source=stored")
    from diffprobe.features.extract import extract
    from diffprobe.shards.index import ShardSet

    require_splits(run.data, ShardSet.load(run.data.path))
    backbone, features = backbone_and_features(run)
    beat = heartbeat_path()
    if beat is not None:  # in a job nobody sees a bar
        progress = partial(beating, what="extract", unit="images", path=beat)
    return extract(backbone, run.data, features, process=process, progress=progress, announce=announce)


def backbone_and_features(run: RunConfig) -> tuple[BackboneConfig, FeaturesConfig]:
    """Return the backbone and cells that a run really reads: its own, or those that its control puts in their place.

    >>> from diffprobe.config.schema import DataConfig, ProbeConfig
    >>> run = RunConfig(
    ...     backbone=BackboneConfig(path="emoji-sd"),
    ...     data=DataConfig(path="emoji"),
    ...     features=FeaturesConfig(taps=("mid_block",), timesteps=(100,)),
    ...     probe=ProbeConfig(kind="classifier", name="linear"),
    ...     control="raw_pixels",
    ... )
    >>> backbone, features = backbone_and_features(run)
    >>> backbone.path, features.taps, features.timesteps
    ('pixels', ('pixels',), (0,))
    """
    if run.control == "random_weights":
        return replace(run.backbone, random_weights=True), run.features
    if run.control == "raw_pixels":
        pixels = replace(
            FeaturesConfig(taps=("pixels",), timesteps=(0,)),
            source=run.features.source,
            seed=run.features.seed,
            resolution=run.features.resolution,
            store=run.features.store,
            placement=run.features.placement,
            shuffle=run.features.shuffle,
        )
        return BackboneConfig(path="pixels", device=run.backbone.device), pixels
    return run.backbone, run.features
