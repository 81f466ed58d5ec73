"""Notes say what a table needs and nothing else."""

import dataclasses

from diffprobe.report.entries import build_table
from diffprobe.report.notes import table_notes


def test_each_source_has_one_letter_in_order_of_appearance(results, spec):
    marks = table_notes(build_table(results, spec)).marks
    assert list(marks.values()) == ["a", "b"] and next(iter(marks)).startswith("Nobody et al. 2025, Figure 2")


def test_a_plain_table_has_one_note(results, spec):
    rows = (
        dataclasses.replace(spec.rows[0], values=("group",)),
        dataclasses.replace(spec.rows[1], values=("up_blocks.0",)),
    )
    plain = dataclasses.replace(spec, rows=rows, published=(), nulls=())
    lines = table_notes(build_table(results[:2], plain)).lines
    assert lines == (
        "accuracy in % on test; 50 samples an entry, 1 seed; higher is better, best of each block in bold.",
    )


def test_unequal_samples_are_given_as_a_span(results, spec):
    run = results[1]
    first = dataclasses.replace(run.metrics[0], n=1500)
    results = [results[0], dataclasses.replace(run, metrics=(first, *run.metrics[1:]))]
    assert "50 to 1,500 samples" in table_notes(build_table(results, spec)).lines[0]
