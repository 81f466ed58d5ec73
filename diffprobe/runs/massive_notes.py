"""List the massive channels of live features in the results of a run, as the manifest of a store lists them.

Features that are computed while training have no manifest, so the record itself lists which channels were treated.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from diffprobe.core.result import MetricRecord

if TYPE_CHECKING:
    from diffprobe.features.datamodule import FeatureSource

DETAIL = "massive_channels"
"""Key of `MetricRecord.detail`: cell name -> its channels, each with its multiple of the median, and the limit."""


def list_massive(records: Iterable[MetricRecord], source: "FeatureSource") -> list[MetricRecord]:
    """Return the records of a run; those on live features with treated channels list them in their detail.

    A record lists those of its cell; one without a cell those of all cells of the run.

    Args:
        records: the records.
        source: the features of the run.
    """
    from diffprobe.features.live import LiveFeatures

    made, found = list(records), source.request.massive
    if not isinstance(source, LiveFeatures) or found is None:
        return made
    of_cell = {cell: one.to_json() for cell, one in found[0].items()}
    return [
        replace(
            record, detail={**record.detail, DETAIL: of_cell if record.cell is None else _own(record.cell, of_cell)}
        )
        for record in made
    ]


def _own(cell: str, of_cell: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    return {cell: of_cell[cell]} if cell in of_cell else of_cell
