"""The lines on the marks: what ‡ compares, and what the prompts of entries with † state."""

import csv
import dataclasses
import io

from diffprobe.report.entry_tests import NO_PREDICTIONS, Difference, EntryTests, NullTest
from diffprobe.report.footnotes import table_notes
from diffprobe.report.latex import render_latex
from diffprobe.report.mark_notes import injection_line, mark_line
from diffprobe.report.table import render_csv, render_markdown
from diffprobe.report.table_data import fill_table


def with_tests(table, points=None):
    """Return the measured entries of a table, each with the same tests."""
    difference = Difference(control="raw_pixels", value=0.1, low=0.05, high=0.2, n_groups=12, unit="values of 'family'")
    null = NullTest(p=0.01, smallest_p=0.001, quantile=1.0, of="labels permuted by group", p_adjusted=0.02, n_tests=7)
    tests = EntryTests(differences=(difference,), null=null, points=points or {})
    measured = [entry for entry in table.entries() if entry.value is not None]
    return [dataclasses.replace(entry, tests=tests) for entry in measured]


def test_point_estimates_are_named_with_the_reason(results, spec):
    table = fill_table(results, spec)
    measured = [entry for entry in table.entries() if entry.value is not None]
    line = mark_line(table, measured)
    assert "does not beat the strongest control" in line and f"point estimates are compared: {NO_PREDICTIONS}" in line


def test_tests_state_their_interval_groups_and_number(results, spec):
    table = fill_table(results, spec)
    line = mark_line(table, with_tests(table))
    for fact in ("95% interval", "1,000 resamples of 12 values of 'family'", "above 0.05", "7 entries", "0.001"):
        assert fact in line, (fact, line)
    assert "Point estimates" not in line


def test_a_control_without_predictions_is_named(results, spec):
    table = fill_table(results, spec)
    name = next(name for entry in table.entries() for name in entry.controls)
    line = mark_line(table, with_tests(table, {name: "the result has no predictions of this control"}))
    assert "Point estimates alone are compared for" in line and "no predictions of this control" in line


def injected(results, *texts):
    """Return results of which the first records state these texts in the prompts of their features."""
    run = results[1]  # the first one is a control
    marked = [
        dataclasses.replace(record, detail={**record.detail, "label_injection": text})
        for record, text in zip(run.metrics, texts, strict=False)
    ]
    return [results[0], dataclasses.replace(run, metrics=(*marked, *run.metrics[len(marked) :])), *results[2:]]


def test_label_injection_is_marked_on_its_entries_and_named_once(results, spec):
    plain = fill_table(results, spec)
    assert injection_line([entry for entry in plain.entries() if entry.value is not None]) == ""
    assert "†" not in render_markdown(plain) and "label_injection" not in render_csv(plain)
    table = fill_table(injected(results, "zero_shot:openai/clip_<b>", "class_name"), spec)
    marked = [entry for entry in table.entries() if entry.injected]
    assert marked and {text for entry in marked for text in entry.injected} == {
        "zero_shot:openai/clip_<b>",
        "class_name",
    }
    n_measured = sum(entry.value is not None for entry in table.entries())
    line = next(line for line in table_notes(table).lines if line.startswith("† "))
    assert "zero_shot:openai/clip_<b>" in line and "class_name" in line and f"({len(marked)} of {n_measured}" in line
    text = render_markdown(table)
    assert sum(" †" in row for row in text.splitlines() if row.startswith("|")) >= 1
    assert text.count("†") == len(marked) + 1  # the entries and the note
    header, *rows = list(csv.reader(io.StringIO(render_csv(table))))
    at = header.index("label_injection")
    assert sorted(row[at] for row in rows if row[at]) == sorted("; ".join(entry.injected) for entry in marked)
    latex = render_latex(table)
    assert latex.count(r"\dagger") == len(marked) + 1 and r"clip\_\textless{}b" in latex
