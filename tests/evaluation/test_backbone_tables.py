"""The tables of a result are made from the record alone."""

import time

from diffprobe.core.result import MetricRecord, StartTime, make_result
from diffprobe.evaluation.backbone_tables import backbone_tables

DIFFERENCES = {"words": {"estimate": 0.1, "low": -0.02, "high": 0.2, "level": 0.95, "n_groups": 40}}
BY = {
    "style": {"noto": {"accuracy": 0.75, "n": 4, "controls": {}}, "a|b": {"accuracy": 0.5, "n": 1200, "controls": {}}}
}


def made(metrics, gates=()):
    return backbone_tables(
        make_result(
            run="x", experiment="x", kind="backbone_eval", config={"gates": dict(gates)}, seeds={}, metrics=metrics,
            started_at=StartTime(time.time(), 0.0),
        )
    )  # fmt: skip


def choice(split: str) -> MetricRecord:
    detail = {"interval": [0.6, 0.8], "differences": DIFFERENCES, "by": BY if split == "test" else {}}
    return MetricRecord(
        name="choice", value=0.7, split=split, n=1204, controls={"chance": 0.1, "words": 0.6}, detail=detail
    )


def error(split: str, t: int) -> MetricRecord:
    return MetricRecord(name=f"denoising_error_t{t}", value=0.25, split=split, n=3, controls={"shuffled_captions": 0.5})


def test_each_table_is_made_from_its_records():
    gates = {"choice/val": {"at_least": 0.7, "above": ["words"]}}
    lines = made([error("val", 50), error("val", 150), choice("val"), choice("test")], gates).splitlines()
    for line in (
        "| choice | val | 1,204 | 0.7 [0.600, 0.800] | chance 0.1; words 0.6 | words +0.100 [-0.020, +0.200] |",
        "| metric | attribute | value | val | test |",
        "| choice | style | noto |  | 0.750 (n=4) |",
        "| choice | style | a&#124;b |  | 0.500 (n=1,200) |",
        "| denoising error at t | 50 | 150 |",
        "| val, own caption | 0.2500 | 0.2500 |",
        "| val, other caption | 0.5000 | 0.5000 |",
        "| choice/val | at least 0.7 | is 0.7 | reached |",
    ):
        assert line in lines
    assert lines[-1].startswith("| choice/val |") and lines[-1].endswith("| missed |")


def test_tables_without_rows_are_left_out():
    text = made([MetricRecord(name="psnr_db", value=31.0, split="test", n=3)])
    assert text.count("---") == 6 and "gate" not in text and "attribute" not in text
