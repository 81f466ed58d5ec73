"""Many cells on test are refused; the best cell on val is named, with its score on test."""

import csv
import dataclasses
import io

import pytest

from diffprobe.core.errors import ConfigError, SelectionOnTest
from diffprobe.report.default_table import default_tables
from diffprobe.report.entry_tests import NO_PREDICTIONS
from diffprobe.report.footnotes import table_notes
from diffprobe.report.pages.page import Page, render_page
from diffprobe.report.table import render
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_spec import TableAxis


def with_val(results, gain=0.01, best=None):
    """Return the results with numbers of val too: those of test plus `gain`, and 0.99 in the cell `best`."""

    def val(record):
        value = 0.99 if best is not None and best in (record.cell or "") else record.value + gain
        return dataclasses.replace(record, split="val", value=value)

    on_test = {run.run: tuple(m for m in run.metrics if m.split == "test") for run in results}
    return [dataclasses.replace(run, metrics=(*on_test[run.run], *map(val, on_test[run.run]))) for run in results]


def on_val(spec, **changes):
    changes = {"exploratory": False, "published": (), "select": "val", **changes}
    return dataclasses.replace(spec, filter={**spec.filter, "split": "val"}, **changes)


def test_selection_on_test_is_refused_unless_the_table_is_exploratory(results, spec):
    plain = dataclasses.replace(spec, exploratory=False)
    with pytest.raises(SelectionOnTest, match="6 cells on test(.|\n)*select: val(.|\n)*--exploratory"):
        fill_table(results, plain)
    filled = fill_table(results, spec)
    assert [entry.value for entry in filled.entries()].count(None) == 1
    unranked = dataclasses.replace(plain, ranked=False)
    with pytest.raises(SelectionOnTest):
        fill_table(results, unranked)
    whole = dataclasses.replace(plain, filter={**spec.filter, "split": ["val", "test"]})
    with pytest.raises(SelectionOnTest):
        fill_table(results, whole)


def test_one_cell_for_each_target_and_setting_is_no_selection(results, spec):
    """Cells that were fixed before: one per target, or one per value of a setting."""
    plain = dataclasses.replace(spec, exploratory=False, published=())
    one = dataclasses.replace(plain, filter={**spec.filter, "tap": "mid_block", "timestep": 25})
    assert fill_table(results, one).entries()[0].value == 0.515625
    places = {"group": "mid_block@t25:empty:mean", "label": "up_blocks.0@t200:empty:mean"}
    fixed = [
        dataclasses.replace(run, metrics=tuple(m for m in run.metrics if m.cell == places.get(m.target)))
        for run in results[1:]
    ]
    assert fill_table(fixed, plain).entries()
    other = dataclasses.replace(
        fixed[0], run="other", config={**fixed[0].config, "data": {**fixed[0].config["data"], "path": "elsewhere"}},
        metrics=tuple(dataclasses.replace(m, cell="up_blocks.1@t25:empty:mean") for m in fixed[0].metrics),
    )  # fmt: skip
    by_data = dataclasses.replace(plain, rows=(TableAxis(field="config.data.path"), TableAxis(field="target")),
                                  columns=TableAxis(field="timestep"))  # fmt: skip
    assert fill_table([fixed[0], other], by_data).entries()
    by_name = dataclasses.replace(by_data, rows=(TableAxis(field="run"), TableAxis(field="target")))
    with pytest.raises(SelectionOnTest, match="cells on test"):  # a name of a run does not make it another measurement
        fill_table([fixed[0], other], by_name)


def test_every_format_of_an_exploratory_table_has_the_word(results, spec):
    for format in ("markdown", "latex", "csv"):
        first = render(results, spec, format).split("\n\n")[0]
        assert "exploratory" in first, format
    rows = list(csv.DictReader(io.StringIO(render(results, spec, "csv"))))
    assert {row["exploratory"] for row in rows} == {"True"}
    html = render_page(Page(title="t", lead="l", facts=(), results=tuple(results), tables=(spec,)))
    assert "(exploratory)</h3>" in html and "best (exploratory) accuracy" in html
    val = with_val(results)
    assert "xploratory" not in render(val, spec.narrowed({"split": "val"}))  # marked, but test is not read
    for format in ("markdown", "latex", "csv"):
        assert "xploratory" not in render(val, on_val(spec), format)


def test_the_best_cell_on_val_is_scored_on_test(results, spec):
    table = fill_table(with_val(results, best="up_blocks.1@t25"), on_val(spec))
    group, label = table.chosen
    assert group.of == "group" and label.of == "sub_group | 20 & more"
    assert group.val.cell == group.test.cell == "up_blocks.1@t25:empty:mean" and len(group.candidates) == 6
    assert (group.val.value, group.test.split) == (0.99, "test")
    assert group.test.value == pytest.approx(0.265625) and group.test.controls["chance"] == 0.25
    assert (group.interval, group.no_interval) == (None, NO_PREDICTIONS)
    assert table_notes(table).lines[-2] == (
        "Chosen on val for group: up_blocks.1, t = 25 (99.0 there, the best of 6); on test 26.6 ± 2.2, strongest "
        f"control 43.8 (raw pixels). No interval: {NO_PREDICTIONS}."
    )
    rows = list(csv.DictReader(io.StringIO(render(with_val(results, best="up_blocks.1@t25"), on_val(spec), "csv"))))
    (chosen, *_) = [row for row in rows if row["chosen"] == "True"]
    assert (chosen["target"], chosen["test_value"], chosen["test_low"], chosen["test_n"]) == (
        "group", "0.265625", "", "50",
    )  # fmt: skip
    lower = fill_table(with_val(results), on_val(spec, higher_is_better=False))
    assert lower.chosen[0].val.value == min(e.value for e in lower.chosen[0].candidates)
    html = render_page(
        Page(title="t", lead="l", facts=(), results=tuple(with_val(results, best="up_blocks.1@t25")),
             tables=(on_val(spec),))
    )  # fmt: skip
    assert "chosen on val; on test accuracy" in html and "26.6" in html and "Chosen on val for group" in html


def test_a_cell_that_was_not_measured_on_test_is_named_as_such(results, spec):
    only_val = [
        dataclasses.replace(run, metrics=tuple(m for m in run.metrics if m.split == "val"))
        for run in with_val(results)
    ]  # fmt: skip
    table = fill_table(only_val, on_val(spec))
    assert table.chosen[0].test is None and table_notes(table).lines[-1].endswith("; not measured on test.")


def test_a_choice_needs_ranked_numbers_of_val(spec):
    for wrong in ({"filter": {"split": "test"}}, {"filter": {}}, {"filter": {"split": "val"}, "ranked": False}):
        with pytest.raises(ConfigError, match="select: val"):
            dataclasses.replace(spec, select="val", **wrong)
    narrowed = on_val(spec).narrowed({"split": "test"})
    assert (narrowed.select, narrowed.filter["split"]) == ("none", "test")
    assert on_val(spec).narrowed({"tap": "mid_block"}).select == "val"


def test_default_tables_of_many_cells_are_of_val_and_choose(results):
    made = default_tables(with_val(results))
    assert all((one.filter["split"], one.select, one.exploratory) == ("val", "val", False) for one in made.specs)
    assert any("scored on test" in line for line in made.choices)
    asked = default_tables(with_val(results), {"split": "test"}).specs[0]
    assert (asked.filter["split"], asked.select, asked.exploratory) == ("test", "none", False)
    with pytest.raises(SelectionOnTest):
        fill_table(with_val(results), asked)
    marked = default_tables(with_val(results), {"split": "test"}, exploratory=True).specs[0]
    assert marked.exploratory and fill_table(with_val(results), marked).entries()
    only_test = default_tables(results).specs[0]
    with pytest.raises(SelectionOnTest):
        fill_table(results, only_test)
    single = default_tables(with_val(results), {"tap": "mid_block", "timestep": 25}).specs[0]
    assert (single.filter["split"], single.select) == ("test", "none")
