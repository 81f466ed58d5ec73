from dataclasses import replace

import numpy as np
import pytest

from diffprobe.core.result import MetricRecord, StartTime, make_result
from diffprobe.demo.scenes.measures import as_lines, comparison_table, find_record, mean_width, notes, quality_table
from diffprobe.demo.scenes.run import ScenesOutcome, TwinOutcome
from diffprobe.shards.scenes.world import load_world


def record(name: str, target: str, value: float, n: int = 24, controls: dict | None = None, **detail) -> MetricRecord:
    return MetricRecord(
        name=name, value=value, split="generated", n=n, target=target, detail=detail, controls=controls or {}
    )


@pytest.fixture
def outcome(demo, tmp_path) -> ScenesOutcome:
    """Two results with known numbers; the second model has equal rates, so that its Spearman is not defined."""
    twins = []
    for twin, spearman in zip(demo.twins, (0.875, None), strict=True):
        metrics = [
            record("rate", role, 0.5, n=12, interval=[0.3, high]) for role, high in (("cook", 0.7), ("poet", 0.6))
        ]
        for world in ("planted", "permuted"):
            if spearman is not None:
                metrics.append(record("spearman", world, spearman, controls={"permuted_roles": 0.345},
                                      interval=[0.7, 0.95], cap_by_ties=0.97))  # fmt: skip
            metrics += [
                record("slope", world, 1.125, interval=[0.9, 1.25]), record("bias", world, -0.0625),
                record("max_error", world, 0.25), record("coverage", world, 23 / 24),
            ]  # fmt: skip
        metrics += [record("half_committed", "texture", 0.125, n=96, interval=[0.0625, 0.25])]
        metrics += [record("sensitivity", "texture", 0.9375, n=48)]
        result = make_result(
            run=f"scenes/demo/{twin.world}", experiment="scenes/demo", kind="rates_eval", config={}, seeds={},
            metrics=metrics, started_at=StartTime.now(),
        )  # fmt: skip
        twins.append(TwinOutcome(twin=twin, result=result, path=tmp_path / "result.json", samples={}))
    return ScenesOutcome(config=demo, spec=load_world(), twins=tuple(twins))


def test_measures_are_shown_against_both_worlds_with_their_intervals(outcome):
    table = comparison_table(outcome)
    assert [row[:2] for row in table.rows] == [
        ("one", "its own (planted)"), ("one", "its sibling's (permuted)"),
        ("two", "its own (permuted)"), ("two", "its sibling's (planted)"),
    ]  # fmt: skip
    shown = dict(zip(table.heads, table.rows[0], strict=True))
    assert shown["Spearman"] == "+0.88 (+0.70 to +0.95)" and shown["slope"] == "+1.12 (+0.90 to +1.25)"
    assert shown["bias"] == "-0.06" and shown["max. error"] == "0.25"
    assert shown["Spearman, permuted roles"] == "+0.34"
    assert table.rows[2][2] == table.rows[2][-1] == "n/a"


def test_qualities_are_shares_and_counts(outcome):
    shown = dict(zip(quality_table(outcome).heads, quality_table(outcome).rows[0], strict=True))
    assert shown["images"] == "24" and shown["half-committed textures"] == "0.12 (0.06 to 0.25)"
    assert shown["reader's sensitivity"] == "0.94 of 48" and shown["role as prompted"] == "n/a"
    assert shown["intervals with the planted rate"] == "23 of 24"


def test_notes_state_images_widths_and_the_full_measurement(outcome):
    assert mean_width(outcome) == pytest.approx(np.mean([0.4, 0.3]))
    text = " ".join(notes(outcome))
    assert "12 images per role" in text and "0.35 wide" in text and "eval rates" in text and "0.970" in text
    assert "4 images per role" in text
    first, second = outcome.twins
    assert find_record(second.result, "spearman", "permuted") is None
    assert "cap" not in " ".join(notes(replace(outcome, twins=(second, first))))


def test_lines_are_aligned(outcome):
    lines = as_lines(comparison_table(outcome))
    assert len(lines) == 5 and {line.index("its ") for line in lines[1:]} == {lines[0].index("planted rates")}
