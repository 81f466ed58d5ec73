"""What a run with `logger=wandb` shows as media: all its scores as a table, heat maps of them, and its page."""

import io
from collections.abc import Iterator, Mapping

from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.query import CELL_FIELDS, field_of
from diffprobe.training.wandb_media import Media, MediaTable, Value

_FIELDS = ("split", "metric", "target", "probe", "cell", *CELL_FIELDS)


def media_of(result: RunResult, members: Mapping[str, RunResult] | None = None) -> Media:
    """Return the media of a finished run.

    The table has a row per record. A heat map, layers x timesteps, is drawn of each metric for each target, probe,
    condition and pooling that has several layers or timesteps: on val, where it was measured, since cells are compared.

    Args:
        result: the record of the run.
        members: name -> record of what trained in a run of a grid.
    """
    records = list(_records(result, members or {}))
    return Media(
        tables={"scores": scores_table(records, with_members=bool(members))},
        figures=dict(_heat_maps(records)),
        pages={"run": _page(result, members or {})},
    )


def figure_name(metric: str, target: str | None, probe: str | None, place: str, *, member: str = "") -> str:
    """Name a heat map; `place` is condition and pooling, "empty:mean"."""
    return " ".join(part for part in (member, metric, target, probe, place) if part)


Found = tuple[str, RunResult, MetricRecord]
"""Name of a member ("" for the run itself), the result, and one of its records."""


def _records(result: RunResult, members: Mapping[str, RunResult]) -> Iterator[Found]:
    for name, one in (("", result), *members.items()):
        for record in one.metrics:
            yield name, one, record


def scores_table(records: list[Found], *, with_members: bool) -> MediaTable:
    """Return a table with a row per record: its place, value, number of samples, and a column per control."""
    controls = sorted({name for _, _, record in records for name in record.controls})
    heads = (*(("member",) if with_members else ()), *_FIELDS, "value", "n", *controls)
    rows: list[list[Value]] = []
    for member, result, record in records:
        place: list[Value] = [_field(result, record, name) for name in _FIELDS]
        rows.append(
            [
                *([member] if with_members else []), *place, record.value, record.n,
                *(record.controls.get(name) for name in controls),
            ]
        )  # fmt: skip
    return MediaTable(columns=heads, rows=rows)


def _field(result: RunResult, record: MetricRecord, name: str) -> Value:
    """Return a field of a record; None for the parts of a name that is not one cell (all timesteps of a tap)."""
    try:
        value: Value = field_of(result, record, name)
    except ConfigError:
        return None
    return value


def _heat_maps(records: list[Found]) -> Iterator[tuple[str, bytes]]:
    groups: dict[str, dict[tuple[str, int], float]] = {}
    shown = "val" if any(record.split == "val" and record.cell for _, _, record in records) else "test"
    for member, result, record in records:
        if record.cell is None or record.split != shown:
            continue
        tap, timestep, condition, pool = (_field(result, record, name) for name in CELL_FIELDS)
        if not isinstance(tap, str) or not isinstance(timestep, int):
            continue
        name = figure_name(record.name, record.target, record.probe, f"{condition}:{pool}", member=member)
        groups.setdefault(name, {})[tap, timestep] = record.value
    for name, values in groups.items():
        if len(values) > 1:
            yield name, _draw(name, values)


def _draw(name: str, values: Mapping[tuple[str, int], float]) -> bytes:
    """Draw values by layer and timestep. Returns: a PNG file."""
    from diffprobe.report.figure import heat_map

    taps = list(dict.fromkeys(tap for tap, _ in values))
    timesteps = sorted({timestep for _, timestep in values})
    grid = [[values.get((tap, timestep), float("nan")) for timestep in timesteps] for tap in taps]
    figure = heat_map(grid, rows=taps, columns=[f"t = {timestep}" for timestep in timesteps], label=name)
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=120, facecolor="white", bbox_inches="tight", metadata={"Software": None}
    )  # the label may be longer than the figure is wide
    return buffer.getvalue()


def _page(result: RunResult, members: Mapping[str, RunResult]) -> str:
    """Return the page that `diffprobe runs open` writes, of this run and its members; W&B has the curves itself."""
    from diffprobe.report.pages.dashboard import Dashboard, render_dashboard
    from diffprobe.report.run_index import IndexedRun

    runs = [IndexedRun(path=result.run, result=result)]
    runs += [IndexedRun(path=f"{result.run}/{name}", result=one) for name, one in members.items()]
    return render_dashboard(Dashboard(title=result.run, runs=tuple(runs), curves={}, unreadable={}))
