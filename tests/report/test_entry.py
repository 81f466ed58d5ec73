"""One formatter of entries: every output format prints the same parts, with markup of its own."""

import dataclasses

from diffprobe.core.result import MetricRecord, StartTime, make_result
from diffprobe.report.entry import (
    PLAIN,
    ComparisonText,
    EntryStyle,
    format_control,
    format_entry,
    format_record,
    published_lines,
)
from diffprobe.report.latex import render_latex
from diffprobe.report.pages.page import Page, render_page
from diffprobe.report.table import render_markdown
from diffprobe.report.table_data import fill_table


def parts(found: ComparisonText) -> str:
    return f"<{found.published}|{found.delta}|{found.is_within}|{found.note.partition(' ')[0]}>"


STYLE = EntryStyle(
    escape=lambda text: text,
    bold=lambda text: f"b({text})",
    spread=lambda text: f" sd({text})",
    below_control=" mark",
    injected=" injected",
    comparison=parts,
)


def texts(results, spec):
    table = fill_table(results, spec)
    return [
        format_entry(table, entry, best=table.best(rows), style=STYLE)
        for _, rows in table.blocks()
        for row in rows
        for entry in row.entries
    ]


def test_an_entry_has_its_parts_in_one_order(results, spec):
    found = texts(results, spec)
    assert found[0] == "51.6 sd(2.2)<60.0|-8.4|False|Nobody>"
    assert found[3] == "b(82.8) sd(2.2)<83.0|-0.2|True|Nobody>"
    assert found[4] == "26.6 sd(2.2) mark"
    assert found[-1] == "n/a<30.0|None|None|Nobody>"


def test_seeds_that_all_give_one_value_are_not_a_spread_of_zero(results, spec):
    equal = [dataclasses.replace(run, metrics=results[1].metrics) for run in results[1:3]]
    table = fill_table(equal, dataclasses.replace(spec, published=()))
    assert {entry.n_seeds for entry in table.entries() if entry.value is not None} == {2}
    assert {entry.spread for entry in table.entries()} == {None}
    assert "±" not in render_markdown(table).replace(
        "no ±", ""
    ) and "no ± where they change nothing" in render_markdown(table)
    assert render_latex(table).count(r"\pm") == 1


def test_plain_text_is_the_number_and_its_mark(results, spec):
    table = fill_table(results, spec)
    plain = [format_entry(table, entry, best=None, style=PLAIN) for entry in table.entries()]
    assert plain[0] == "51.6" and plain[4] == "26.6 ‡" and plain[-1] == "n/a"


def test_every_format_prints_every_value_and_mark(results, spec):
    """Markdown, LaTeX and the page agree with the plain text on values and on the number of marks."""
    table = fill_table(results, spec)
    plain = [format_entry(table, entry, best=None, style=PLAIN) for entry in table.entries()]
    page = render_page(Page(title="t", lead="l", facts=(), results=tuple(results), tables=(spec,)))
    cells = page[page.index('<table class="grid">') : page.index('<div class="maps">')]
    for text, mark in ((render_markdown(table), "‡"), (render_latex(table), r"$\ddagger$"), (cells, "‡")):
        assert all(value.removesuffix(" ‡") in text for value in plain)
        n_legend = 1  # each has one legend below the table
        assert text.count(mark) == sum(value.endswith("‡") for value in plain) + n_legend


def test_an_absent_control_is_marked_as_missing(results, spec):
    table = fill_table(results, dataclasses.replace(spec, missing="none"))
    assert format_control(table, None) == "none" and format_control(table, 0.5) == "50.0"


def test_a_record_is_one_line():
    record = MetricRecord(
        name="auroc", value=0.98765, split="test", n=1280, cell="mid_block@t25:empty:mean", target="style",
        controls={"random_direction": 0.5, "shuffled_labels": 0.51}, detail={"interval": [0.9711, 0.9955]},
    )  # fmt: skip
    assert format_record(record) == (
        "test auroc = 0.9877 [0.971, 0.996]  n=1,280  mid_block@t25:empty:mean style"
        "  (controls: random_direction 0.5, shuffled_labels 0.51)"
    )
    plain = dataclasses.replace(record, cell=None, target=None, controls={}, detail={}, split="val")
    assert format_record(plain) == "val auroc = 0.9877  n=1,280"


def test_a_published_number_is_beside_the_metric_and_probe_that_it_is_of_alone() -> None:
    published = {"metric": "oiou", "value": 0.7346, "tolerance": 0.01, "source": "a paper", "provenance": "second hand"}
    own = MetricRecord(name="oiou", value=0.7, split="test", n=9, probe="vpd")
    others = [
        dataclasses.replace(own, name="miou_per_image"),
        dataclasses.replace(own, split="val"),
        dataclasses.replace(own, probe="vpd-adapter"),
        dataclasses.replace(own, probe=None),
    ]
    result = make_result(
        run="a", experiment="a", kind="train_vpd", config={"recipe": "vpd", "published": published}, seeds={"seed": 0},
        metrics=[own, *others], started_at=StartTime.now(), artifacts={},
    )  # fmt: skip
    assert published_lines(own, result) == ["  published 0.7346 (a paper; second hand), delta -0.0346"]
    assert all(published_lines(one, result) == [] for one in others)
    assert published_lines(own, dataclasses.replace(result, config={"recipe": "vpd"})) == []
