"""The massive channels of a run's features in its results, and whether other features have the same ones treated.

A result lists which channels were treated, as the manifest of a store does. Channels are those of the run's training
images: a probe that was trained on them is read on no features in which other channels are treated.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffprobe.config.controls import has_one_cell
from diffprobe.core.errors import ConfigError, StoreMismatch
from diffprobe.core.result import STORE, MetricRecord, RunResult

if TYPE_CHECKING:
    from pathlib import Path

    from diffprobe.backbones.massive import MassiveChannels
    from diffprobe.features.datamodule import FeatureSource
    from diffprobe.features.manifest import Manifest

DETAIL = "massive_channels"
"""Key of `MetricRecord.detail`: cell name -> its channels, each with its multiple of the median, and the limit."""
KEEP = "keep"
"""The treatment that changes nothing."""
_RELATIVE = 1e-3
"""Largest relative difference of limits that rounding explains."""


def list_massive(records: Iterable[MetricRecord], source: "FeatureSource") -> list[MetricRecord]:
    """Return the records of a run; those on features with treated channels list them in their detail.

    Args:
        records: the records.
        source: the features of the run.
    """
    from diffprobe.features.massive_channels import KEY, from_recorded
    from diffprobe.features.stored import StoredFeatures

    if isinstance(source, StoredFeatures):
        recorded = source.store.manifest.recorded
        found = from_recorded(recorded, source.widths) if KEY in recorded else {}
    else:
        found = {} if source.request.massive is None else source.request.massive[0]
    return with_channels(records, found)


def with_channels(records: Iterable[MetricRecord], found: "Mapping[str, MassiveChannels]") -> list[MetricRecord]:
    """Return records that list treated channels; unchanged without any.

    A record lists those of its cell; one without a cell, or with one of another source, those of all cells.

    Args:
        found: cell name -> its massive channels.
    """
    return _with({cell: one.to_json() for cell, one in found.items()}, records)


def with_channels_of(records: Iterable[MetricRecord], trained: RunResult) -> list[MetricRecord]:
    """Return records of the features of a finished run, which list the channels that its own result lists."""
    return _with(_listed(trained), records)


def treatment_of(result: RunResult) -> str:
    """Return what was done with massive channels of the features of a run; `keep` for controls without channels."""
    config = result.config
    if has_one_cell(config.get("control")):
        return KEEP
    massive = (config.get("features") or {}).get("massive") or {}
    return str(massive.get("treatment", KEEP))


def refuse_treated_run(result: RunResult | None, what: str) -> None:
    """Refuse a run on treated channels where the untreated network is read or changed.

    Args:
        result: the run; None if it is not known.
        what: who reads the network as it is, for the message.
    Raises: ConfigError.
    """
    if result is not None and treatment_of(result) != KEEP:
        raise ConfigError(
            f"{what} reads the network as it is, the run was trained with features.massive.treatment="
            f"{treatment_of(result)}.",
            fix="a run without features.massive",
        )


def require_same_channels(result: RunResult, manifest: "Manifest", cell: str, path: "Path") -> None:
    """Check that a store has the same channels of a cell treated as the features that a run was trained on.

    Args:
        result: the run.
        manifest: that of the store.
        path: folder of the store, for the message.
    Raises: StoreMismatch; SchemaError for a manifest that does not list its channels.
    """
    from diffprobe.backbones.massive import MassiveChannels
    from diffprobe.features.massive_channels import KEY, from_recorded

    trained, read = treatment_of(result), str((manifest.data.get(KEY) or {}).get("treatment", KEEP))
    if trained == read == KEEP or (trained == read and result.artifacts.get(STORE) == manifest.digest):
        return
    listed = _listed(result)
    own = MassiveChannels.from_json(listed[cell]) if cell in listed else None
    theirs = None if read == KEEP else from_recorded(manifest.recorded, [cell])[cell]
    if trained == read and own is not None and theirs is not None and _same(own, theirs, limits=read == "clip"):
        return
    raise StoreMismatch(
        f"store '{path}' does not have the massive channels of '{cell}' treated as the features of the run.",
        f"the run: {_described(trained, own)}; the store: {_described(read, theirs)}",
        fix="a store of the same treatment, for other images with features.massive.channels_of=STORE of the run",
    )


def channels_key(result: RunResult) -> str:
    """Return a text that is equal for runs whose features have the same channels treated in the same way."""
    channels = {cell: sorted(one.get("channels", ())) for cell, one in sorted(_listed(result).items())}
    return f"{treatment_of(result)} {channels}"


def _with(of_cell: dict[str, Any], records: Iterable[MetricRecord]) -> list[MetricRecord]:
    if not of_cell:
        return list(records)
    return [replace(one, detail={**one.detail, DETAIL: _own(one.cell, of_cell)}) for one in records]


def _own(cell: str | None, of_cell: dict[str, Any]) -> dict[str, Any]:
    return {cell: of_cell[cell]} if cell in of_cell else of_cell


def _listed(result: RunResult) -> dict[str, Any]:
    return {cell: one for record in result.metrics for cell, one in record.detail.get(DETAIL, {}).items()}


def _same(one: "MassiveChannels", other: "MassiveChannels", *, limits: bool) -> bool:
    close = not limits or not one.channels or math.isclose(one.limit, other.limit, rel_tol=_RELATIVE)
    return set(one.channels) == set(other.channels) and close


def _described(treatment: str, found: "MassiveChannels | None") -> str:
    if treatment == KEEP:
        return "treatment=keep"
    if found is None:
        return f"treatment={treatment}, channels not listed"
    named = ", ".join(map(str, found.channels)) or "none"
    return f"treatment={treatment}, channels {named}, limit {found.limit:.4g}"
