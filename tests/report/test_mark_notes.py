"""The line on the mark: what it compares, and which entries compare point estimates."""

import dataclasses

from diffprobe.report.entry_tests import NO_PREDICTIONS, Difference, EntryTests, NullTest
from diffprobe.report.mark_notes import mark_line
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
