"""The features and images behind a finished run, as far as they are at hand when its page is written.

The store alone is enough for all numbers: shards that were moved cost the pictures, a backbone that was removed nothing
else. Digests are compared with the record of the run, so that a page never shows other samples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.core.errors import ConfigError, DiffprobeError, SchemaError
from diffprobe.core.result import INPUT, STORE, predictions_file
from diffprobe.evaluation.probe_runs import ProbeRun, reason
from diffprobe.features.batch import FeatureTable
from diffprobe.features.manifest import Manifest
from diffprobe.features.reader import FeatureStore
from diffprobe.probes.predictions import load_predictions
from diffprobe.runs.provenance import inputs_of
from diffprobe.runs.train import make_source
from diffprobe.shards.annotation import Fields
from diffprobe.shards.index import ShardSet

if TYPE_CHECKING:
    from diffprobe.features.datamodule import FeatureSource


@dataclass(frozen=True, kw_only=True)
class PageFeatures:
    """Features of one run, and the images if they are at hand."""

    widths: dict[str, int]
    """Cell name -> width."""
    classes: tuple[str, ...]
    """Class names of the label."""
    attributes: dict[str, tuple[str, ...]]
    """Attribute -> names of its values."""
    table: Callable[[str], FeatureTable]
    """Returns all features of a split."""
    iter_tables: Callable[[str], Iterator[FeatureTable]]
    """Yields the features of a split in parts, in shard order, so that no more than a shard is in memory."""
    images: tuple[ShardSet, Fields] | None
    """The shards with the images, and the names of their fields; None if they are not at hand."""
    group: str | None = None
    """Attribute whose samples are not independent, as the data set names it; None if it names none."""
    missing: str = ""
    """Reason why the images are not available; empty if they are."""


def open_features(run: ProbeRun) -> PageFeatures:
    """Open the features that a run was measured on.

    Raises: ConfigError for a run on live features; DiffprobeError or OSError if neither its settings nor its record
        lead to a store that is at hand.
    """
    _refuse_live(run)
    try:
        source = open_source(run)
        widths = source.widths
        images = (source.request.shard_set, source.request.fields)
    except (DiffprobeError, OSError) as error:
        return _from_record(run, error)
    return PageFeatures(
        widths=widths, classes=source.classes, attributes=source.attributes, table=source.table,
        iter_tables=source.iter_tables, images=images, group=source.request.shard_set.group,
    )  # fmt: skip


def open_source(run: ProbeRun) -> "FeatureSource":
    """Open the DataModule that a run was measured on, and compare its inputs with those of the record.

    Raises: ConfigError for a run on live features; DiffprobeError or OSError if shards, backbone or store are not at
        hand; SchemaError if they are others than those of the run.
    """
    _refuse_live(run)
    source = make_source(run.config)
    _require_recorded(run, source)
    return source


def _refuse_live(run: ProbeRun) -> None:
    if run.config.features.source == "live":
        raise ConfigError(
            "the run read live features, and a page reads a store.",
            fix="diffprobe extract with the settings of the run and features.source=stored, and train it on the store",
        )


def _require_recorded(run: ProbeRun, source: "FeatureSource") -> None:
    """Compare the inputs at hand with those of a run. Raises: SchemaError."""
    for name, digest in inputs_of(source).items():
        recorded = run.result.artifacts.get(name)
        if recorded is not None and recorded != digest:
            raise SchemaError(
                f"the {name.removeprefix(INPUT)} at hand is not the one that the run was measured on.",
                f"digest of the run: {recorded[:16]}, at hand: {digest[:16]}",
            )


def _from_record(run: ProbeRun, error: DiffprobeError | OSError) -> PageFeatures:
    """Open the store that the record of a run names. Raises: the error that led here, if it is not at hand either."""
    digest = run.result.artifacts.get(STORE, "")
    folder = Path(run.config.features.store) / digest[:16]
    if not digest or not folder.is_dir():
        raise error
    store = FeatureStore.open(folder, verify=run.config.features.verify)
    if store.manifest.digest != digest:
        raise error
    store.only = _asked_shards(store.manifest, run.config.data.limit)
    measured = {record.cell for record in run.result.metrics}
    cells = [cell for cell in store.cells if cell in measured]
    missing = set(filter(None, measured)) - set(cells)
    if missing or not cells:
        raise error
    return PageFeatures(
        widths={cell: store.manifest.cells[cell] for cell in cells},
        classes=store.classes(),
        attributes=store.attributes,
        table=lambda split: store.load(split, cells),
        iter_tables=lambda split: store.iter_shards(split, cells),
        images=None,
        group=_recorded_group(run),
        missing=reason(error),
    )


def _recorded_group(run: ProbeRun) -> str | None:
    """Return the group that is recorded beside the predictions of a run; None for a run without them."""
    path = run.folder / predictions_file(run.config.data.test_split)
    return load_predictions(path).group if path.is_file() else None


def _asked_shards(manifest: Manifest, limit: int | None) -> frozenset[str] | None:
    """Return the shards that a run with a limit per split reads of a store that may have more; None for all."""
    if limit is None:
        return None
    asked = []
    taken: dict[str, int] = {}
    for shard in manifest.shards:
        if taken.get(shard.split, 0) < limit:
            asked.append(shard.file)
            taken[shard.split] = taken.get(shard.split, 0) + shard.n
    return frozenset(asked)


def with_data_path(run: ProbeRun, path: str | None) -> ProbeRun:
    """Return a run with its shards in another folder; unchanged for None."""
    if path is None:
        return run
    return replace(run, config=replace(run.config, data=replace(run.config.data, path=path)))
