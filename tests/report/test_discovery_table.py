"""The table of a discovery, from its result."""

import csv
import io

from diffprobe.core.result import MetricRecord, StartTime, make_result
from diffprobe.report.discovery_table import COLUMNS, component_records, render_csv, terminal_lines

DETAIL = {
    "kind": "association", "is_hidden": True, "stability": 0.9, "kurtosis": -1.0, "has_groups": True, "evidence": 99.0,
    "separation": 4.0, "frequency": 0.25, "smaller_end": "high", "distinctiveness": 0.95, "rarity": 0.7, "p": 0.001,
    "smallest_p": 0.001, "q": 0.004, "high_subjects": ["a <b>cook</b>", "=a"], "low_subjects": [],
    "rates": [{"subject": "a <b>cook</b>", "rate": 0.7, "interval": [0.5, 0.9], "p": 0.001},
              {"subject": "=a", "rate": 0.2, "interval": [0.1, 0.3], "p": 0.01}],
    "named_by": [], "examples": {"high": ["x/1"], "low": ["x/2"]},
    "reader": {"factor": "background", "value": "dots", "auroc": 0.95, "end": "high", "planted": ["waiter"]},
}  # fmt: skip


def result_of(*details):
    """Return a result with the given components."""
    counts = {kind: sum(d["kind"] == kind for d in details) for kind in ("association", "free", "identity",
                                                                          "unstructured")}  # fmt: skip
    about = {
        "notes": ["a note"], "limits": ["a limit"], "counts": counts, "hidden": sum(d["is_hidden"] for d in details),
        "subjects": ["a <b>cook</b>", "=a"], "subject_by": "prompt", "is_paired": True, "n_components": len(details),
        "explained": 0.99, "associations_by_chance": 0.05, "has_words": False,
    }  # fmt: skip
    metrics = [
        MetricRecord(name="structured", value=1.0, split="all", n=96, cell="mid_block@t100:empty:mean",
                     controls={"normal_random_numbers": 0.0}, detail=about),
        *(MetricRecord(name="subject_share", value=0.2, split="all", n=96, target=str(i),
                       controls={"permuted_subjects": 0.01}, detail=d) for i, d in enumerate(details, 1)),
    ]  # fmt: skip
    return make_result(
        run="discover/0", experiment="", kind="discovery", metrics=metrics, seeds={"seed": 0},
        config={"cell": "<i>", "level": 0.95, "n_permutations": 99, "fdr": 0.05}, started_at=StartTime.now(),
        artifacts={"input/store": "ab"},
    )  # fmt: skip


def test_the_csv_file_has_a_line_per_component():
    rows = list(csv.DictReader(io.StringIO(render_csv(result_of(DETAIL, {**DETAIL, "has_groups": False})))))
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(component_records(result_of(DETAIL, DETAIL)))
    assert rows[0]["high_subjects"] == "a <b>cook</b>; =a" and rows[0]["hidden"] == "yes"
    assert rows[0]["reader_planted"] == "waiter" and rows[0]["words_explained"] == ""
    assert float(rows[0]["frequency"]) == 0.25 and rows[1]["frequency"] == ""


def test_the_terminal_shows_structure_only():
    other = {**DETAIL, "kind": "unstructured", "is_hidden": False, "rates": []}
    lines = terminal_lines(result_of(DETAIL, other))
    text = "\n".join(lines)
    assert "hidden association" in text and "background dots (AUROC 0.950)" in text and "note: a note" in text
    assert "1 of 2 components" in text and "unstructured" not in text
    assert not any("hidden association" in line for line in terminal_lines(result_of(other)))
