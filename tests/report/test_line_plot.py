"""Line plots: what is drawn, where, and how what does not beat its controls is shown."""

import dataclasses
import math

import pytest

from diffprobe.report.line_plot import line_plot
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_spec import TableAxis


def drawn(figure):
    """Return the lines of a plot by their legend text: x and y values."""
    (axes,) = figure.axes
    return {line.get_label().strip("\u200b"): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_each_row_is_a_line_over_the_values_of_the_columns(results, spec):
    table = fill_table(results, spec)
    rows = table.blocks()[1][1]
    figure = line_plot(table, rows, heading="what it shows")
    lines, (axes,) = drawn(figure), figure.axes
    for row in rows:
        x, y = lines[table.row_labels(row)[0]]
        assert x == [25.0, 200.0]
        for value, entry in zip(y, row.entries, strict=True):
            assert math.isnan(value) if entry.value is None else value == pytest.approx(100 * entry.value)
    assert lines["raw pixels"][1] == pytest.approx([18.75, 18.75])  # the whole width
    assert axes.get_title(loc="left") == "what it shows" and axes.get_ylabel() == "accuracy (%)"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["t = 25", "t = 200"]
    assert len(axes.containers) == 3  # error bars of the two seeds


def test_what_does_not_beat_its_controls_is_hollow(results, spec):
    table = fill_table(results, spec)
    figure = line_plot(table, table.blocks()[0][1])
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    below = [100 * e.value for row in table.blocks()[0][1] for e in row.entries if table.beats_controls(e) is False]
    assert [value for line in hollow for value in line.get_ydata()] == pytest.approx(below)
    assert "not above its controls" in drawn(figure)
    plain = fill_table(results, dataclasses.replace(spec, ranked=False, published=()))
    assert "not above its controls" not in drawn(line_plot(plain))


def test_columns_of_text_are_in_order_and_hostile_labels_stay_text(results, spec):
    columns = TableAxis(field="probe")
    axis = dataclasses.replace(spec.rows[1], labels={"mid_block": "_$\\frac{1}$"})
    one = dataclasses.replace(spec, rows=(axis,), columns=columns, published=(), filter={"target": "group"})
    one = dataclasses.replace(one, filter={**one.filter, "timestep": 25, "split": "test"})
    figure = line_plot(fill_table(results, one))
    assert drawn(figure)["_$\\frac{1}$"][0] == [0.0]
    figure.canvas.draw()  # would raise for a formula
