"""What a run shows in W&B: every record in a table, heat maps where there is a grid, and the page of the run."""

import io

import pytest
from PIL import Image

from diffprobe.core.result import MetricRecord, RunResult, StartTime, make_result
from diffprobe.runs import run_media
from diffprobe.runs.run_media import media_of


def result_of(*metrics: MetricRecord, kind: str = "classifier") -> RunResult:
    return make_result(
        run="abc", experiment="e", kind=kind, config={}, seeds={}, metrics=metrics, started_at=StartTime(0.0, 0.0)
    )


def record(name: str, value: float, cell: str | None, *, split: str = "test", **more: object) -> MetricRecord:
    return MetricRecord(name=name, value=value, split=split, n=4, cell=cell, **more)  # type: ignore[arg-type]


def test_a_classifier_has_all_records_a_heat_map_per_target_and_its_page() -> None:
    cells = [f"{tap}@t{t}:empty:mean" for tap in ("mid_block", "up_blocks.0") for t in (200, 25)]
    records = [
        record(name, 0.1 * i, cell, split=split, target=target, controls={"chance": 0.25} if i else {})
        for split in ("val", "test")
        for target in ("label", "style")
        for name in ("accuracy", "balanced_accuracy")
        for i, cell in enumerate(cells)
    ]
    media = media_of(result_of(*records))
    table = media.tables["scores"]
    assert len(table.rows) == len(records) == 32
    row = dict(zip(table.columns, table.rows[1], strict=True))
    assert (row["split"], row["metric"], row["target"], row["tap"]) == ("val", "accuracy", "label", "mid_block")
    assert (row["timestep"], row["condition"], row["pool"], row["chance"]) == (25, "empty", "mean", 0.25)
    assert table.rows[0][table.columns.index("chance")] is None
    assert list(media.figures) == [
        f"{metric} {target} empty:mean" for target in ("label", "style") for metric in ("accuracy", "balanced_accuracy")
    ]
    assert Image.open(io.BytesIO(media.figures["accuracy label empty:mean"])).format == "PNG"
    assert "abc" in media.pages["run"] and "balanced_accuracy" in media.pages["run"]


@pytest.mark.parametrize(("splits", "shown"), [(("val", "test"), 0.0), (("test",), 1.0)])
def test_cells_are_compared_on_val_where_it_was_measured(monkeypatch, splits, shown) -> None:
    values = {"val": 0.0, "test": 1.0}
    monkeypatch.setattr(run_media, "_draw", lambda name, found: repr(sorted(found.values())).encode())
    records = [record("fvu", values[s], f"mid_block@t{t}:empty:mean", split=s) for s in splits for t in (25, 200)]
    assert media_of(result_of(*records, kind="sae")).figures == {"fvu empty:mean": repr([shown, shown]).encode()}


def test_one_cell_has_no_heat_map_and_a_name_that_is_no_cell_has_no_parts() -> None:
    media = media_of(result_of(record("fvu", 0.2, "mid_block@t*:empty:mean"), record("l0", 8.0, None), kind="sae"))
    assert media.figures == {}
    rows = [dict(zip(media.tables["scores"].columns, row, strict=True)) for row in media.tables["scores"].rows]
    assert rows[0]["cell"] == "mid_block@t*:empty:mean" and rows[0]["tap"] is None and rows[1]["cell"] is None


def test_members_of_a_grid_are_named_in_the_table_and_have_their_own_heat_maps() -> None:
    def member(value: float) -> RunResult:
        return result_of(*(record("fvu", value, f"mid_block@t{t}:empty:mean") for t in (25, 200)), kind="sae")

    media = media_of(result_of(kind="sae"), {"k=2": member(0.5), "k=4": member(0.25)})
    assert media.tables["scores"].columns[0] == "member"
    assert [row[0] for row in media.tables["scores"].rows] == ["k=2", "k=2", "k=4", "k=4"]
    assert list(media.figures) == ["k=2 fvu empty:mean", "k=4 fvu empty:mean"]
    assert "abc/k=2" in media.pages["run"] and "abc/k=4" in media.pages["run"]
