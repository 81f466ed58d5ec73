"""Notes contain what a table needs and nothing else."""

import dataclasses
import itertools

from diffprobe.report.footnotes import table_notes
from diffprobe.report.table_data import fill_table


def test_each_source_has_one_letter_in_order_of_appearance(results, spec):
    marks = table_notes(fill_table(results, spec)).marks
    assert list(marks.values()) == ["a", "b"] and next(iter(marks)).startswith("Nobody et al. 2025, Figure 2")


def test_a_plain_table_has_one_note(results, spec):
    rows = (
        dataclasses.replace(spec.rows[0], values=("group",)),
        dataclasses.replace(spec.rows[1], values=("up_blocks.0",)),
    )
    columns = dataclasses.replace(spec.columns, values=(25,))
    plain = dataclasses.replace(spec, rows=rows, columns=columns, published=(), controls=(), exploratory=False)
    lines = table_notes(fill_table(results[:2], plain)).lines
    assert lines == (
        "accuracy in % on test; 50 samples per entry, 1 seed; higher is better, best of each block in bold.",
    )


def test_a_mean_over_classes_names_them(results, spec):
    """Its chance level is one over their number, which need not be that of the data set."""
    runs = [
        dataclasses.replace(
            run, metrics=tuple(dataclasses.replace(record, name="balanced_accuracy") for record in run.metrics)
        )
        for run in results
    ]
    lines = table_notes(fill_table(runs, dataclasses.replace(spec, metric="balanced_accuracy"))).lines
    assert lines[0].startswith("balanced accuracy in % on test over the classes that the split holds; 50 samples")
    for counts, words in (
        ((3,), "over the 3 classes"),
        ((3, 8), "over the 3 to 8 classes"),
        ((3, None), "the classes"),
    ):
        recorded = [
            dataclasses.replace(
                run,
                metrics=tuple(
                    dataclasses.replace(record, detail={} if n is None else {"n_classes_held": n})
                    for record, n in zip(run.metrics, itertools.cycle(counts), strict=False)
                ),
            )
            for run in runs
        ]
        table = fill_table(recorded, dataclasses.replace(spec, metric="balanced_accuracy"))
        assert f"{words} that the split holds" in table_notes(table).lines[0]
    assert "over" not in table_notes(fill_table(results, spec)).lines[0].split(";")[0]


def test_entries_far_from_convergence_are_counted(results, spec):
    run = results[1]
    for far, words in (({"far_from_convergence": True}, "1 of 11 entries"), ({"far_from_convergence": False}, None)):
        first = dataclasses.replace(run.metrics[0], detail=far)
        changed = [results[0], dataclasses.replace(run, metrics=(first, *run.metrics[1:])), *results[2:]]
        lines = [line for line in table_notes(fill_table(changed, spec)).lines if "convergence" in line]
        assert len(lines) == (words is not None) and all(words in line for line in lines)
    every = [
        dataclasses.replace(
            one, metrics=tuple(dataclasses.replace(m, detail={"far_from_convergence": True}) for m in one.metrics)
        )
        for one in results
    ]
    assert any("Training of all entries" in line for line in table_notes(fill_table(every, spec)).lines)


def test_unequal_samples_are_given_as_a_span(results, spec):
    run = results[1]
    first = dataclasses.replace(run.metrics[0], n=1500)
    results = [results[0], dataclasses.replace(run, metrics=(first, *run.metrics[1:]))]
    assert "50 to 1,500 samples" in table_notes(fill_table(results, spec)).lines[0]
