"""What an entry knows of its results."""

import dataclasses

from diffprobe.report.filled_table import Entry
from diffprobe.report.table_data import fill_table


def test_an_entry_names_its_cell_and_split_and_keeps_its_results(results, spec):
    entries = fill_table(results, spec).entries()
    assert (entries[0].cell, entries[0].split) == ("mid_block@t25:empty:mean", "test")
    assert [run.run for run, _ in entries[0].sources] == ["bank-0", "bank-1"]
    missing = entries[-1]
    assert (missing.value, missing.cell, missing.split, missing.sources) == (None, None, None, ())
    assert dataclasses.replace(entries[0], sources=()) == entries[0] and "RunResult" not in repr(entries[0])
    assert Entry(where={}, controls={}).cell is None
