"""Published numbers beside measured ones."""

import dataclasses

import pytest

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.report.published import compare
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_spec import Published

NUMBER = Published(where={}, value=0.83, tolerance=0.02, source="Nobody, TableData 1", provenance="read in the table")
BLOCK = {"metric": "accuracy", "value": 0.5, "tolerance": 0.1, "source": "S", "provenance": "P"}


@pytest.mark.parametrize(("value", "within"), [(0.81, True), (0.8099, False), (0.85, True), (0.86, False)])
def test_tolerance_has_two_sides_and_counts_its_ends(value, within):
    assert compare(NUMBER, value).within is within


def test_nothing_measured_is_neither_within_nor_outside():
    missing = compare(NUMBER, None)
    assert (
        missing.delta is None and missing.within is None and missing.note == "Nobody, TableData 1 (read in the table)"
    )
    assert compare(None, 0.5) is None


def with_block(run, **changes):
    return dataclasses.replace(run, config={**run.config, "published": {**BLOCK, **changes}})


def test_a_run_brings_its_own_published_number(results, spec):
    spec = dataclasses.replace(spec, published=())
    entry = fill_table([results[0], with_block(results[1])], spec).entries()[0]
    assert entry.comparison.published.value == 0.5 and entry.comparison.delta == 0.0
    other = fill_table([results[0], with_block(results[1], metric="fvu")], spec).entries()[0]
    assert other.comparison is None


def test_contradicting_numbers_are_refused(results, spec):
    with pytest.raises(RunFailed, match="disagree"):
        fill_table([results[0], with_block(results[1])], spec)
    broken = with_block(results[1], tolerence=0.1)
    with pytest.raises(ConfigError, match="tolerence"):
        fill_table([results[0], broken], dataclasses.replace(spec, published=()))
