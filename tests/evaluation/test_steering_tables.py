"""The tables of ways to steer, from a result."""

import csv

from diffprobe.core.result import MetricRecord, StartTime, make_result
from diffprobe.evaluation.steering_tables import curve_table, matched_table, steering_tables, write_csv


def result_of(chosen: str = "latent 3"):
    def one(name, value, **detail):
        return MetricRecord(name=name, value=value, split="generated", n=24, cell="mid_block@t20:empty:none",
                            target="texture", probe="best latent", detail={"value": "striped", **detail})  # fmt: skip

    metrics = []
    for strength, success in ((0.0, 0.25), (2.0, 0.75)):
        metrics += [
            one("success", success, strength=strength, interval=[success - 0.1, success + 0.1]),
            one("collateral", strength / 20, strength=strength, interval=[0.0, 0.2]),
            one("distance", 1.5, strength=strength),
        ]
    metrics.append(
        one("matched_success", 0.5, interval=[0.4, 0.6], collateral=0.05, reaches=False, chosen=chosen,
            minus_prompt_edit=-0.25, minus_prompt_edit_interval=[-0.3, -0.2])
    )  # fmt: skip
    return make_result(run="r", experiment="e", kind="steering_eval", config={}, seeds={"noise": 0}, metrics=metrics,
                       started_at=StartTime.now(), artifacts={})  # fmt: skip


def test_each_method_has_a_row_at_equal_collateral():
    rows = matched_table(result_of()).splitlines()
    assert len(rows) == 3
    assert rows[2] == (
        "| texture=striped | best latent | 0.25 | 0.05, not reached | 0.50 [0.40, 0.60] | -0.25 [-0.30, -0.20] "
        "| latent 3 |"
    )


def test_each_strength_has_a_row():
    rows = curve_table(result_of()).splitlines()
    assert rows[3] == "| texture=striped | best latent | 2 | 0.75 [0.65, 0.85] | 0.10 [0.00, 0.20] | 1.50 |"
    assert steering_tables(result_of()).count("| best latent |") == 3


def test_the_csv_has_all_records(tmp_path):
    write_csv(result_of(), tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["measure"] for row in rows] == [*["success", "collateral", "distance"] * 2, "matched_success"]
    assert rows[3]["value"] == "0.75" and rows[6]["strength"] == "" and rows[6]["low"] == "0.4"
