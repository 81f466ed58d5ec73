"""Tables against golden files."""

import csv
import dataclasses
import io
from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.core.terminal import one_line, printable
from diffprobe.report.table import FORMATS, Table, build_table, csv_value, render
from diffprobe.report.table_data import fill_table

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(("format", "suffix"), [("markdown", "md"), ("csv", "csv"), ("latex", "tex")])
def test_equals_the_golden_file(results, spec, format, suffix):
    assert render(results, spec, format) == (GOLDEN / f"table.{suffix}").read_text()


@pytest.mark.parametrize("format", FORMATS)
def test_is_a_pure_function(results, spec, format):
    first = render(results, spec, format)
    later = [dataclasses.replace(run, started="2030-01-01T00:00:00+00:00", wall_time_s=9.0) for run in results]
    assert render(later[::-1], spec, format) == first


def test_markdown_keeps_its_columns_whatever_the_labels_say(results, spec):
    axis = dataclasses.replace(spec.rows[0], labels={"group": "a|b\n<b>*x*</b> &lt; [l](http://x) `c` _e_ in_word"})
    lines = render(results, dataclasses.replace(spec, rows=(axis, spec.rows[1])), "markdown").splitlines()
    row = next(line for line in lines if line.startswith("| a"))
    assert row.replace(r"\|", "").count("|") == 9
    assert r"a\|b &lt;b&gt;\*x\*&lt;/b&gt; &amp;lt; \[l\](http://x) \`c\` \_e\_ in_word" in row


def test_csv_is_unrounded_and_starts_no_formula(results, spec):
    spec = dataclasses.replace(spec, published=(dataclasses.replace(spec.published[0], source="=1+1"),))
    rows = list(csv.DictReader(io.StringIO(render(results, spec, "csv"))))
    assert len(rows) == 12 and rows[0]["value"] == "0.515625"
    assert [row["source"] for row in rows if row["published"]] == ["'=1+1"]
    assert [row["status"] for row in rows].count("missing") == 1 and rows[-1]["value"] == ""


FORMULAS = [
    "=1+1", "+A1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\u00a0=1", "'=1", '"=1', "\u201c=1",
    "\uff1d1", "\uff0b1", "\uff0d1", "\uff20x", " \uff1d1", "-2-cmd", "\u3000=1",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
def test_no_cell_of_a_csv_is_a_formula(results, spec, text):
    number = dataclasses.replace(spec.published[0], source=text, provenance=text)
    rows = list(csv.DictReader(io.StringIO(render(results, dataclasses.replace(spec, published=(number,)), "csv"))))
    cell = next(row["source"] for row in rows if row["published"])
    assert cell == f"'{one_line(text)}"


@pytest.mark.parametrize("text", ["-0.5", "+1e-3", ".5", "plain", "a=b", "1-2", "\u200b=1", "mean - 1"], ids=ascii)
def test_numbers_and_words_of_a_csv_stay_as_they_are(text):
    assert csv_value(text) == one_line(text)
    assert csv_value(-0.5) == "-0.5" and csv_value(-3) == -3 and csv_value(None) is None


@pytest.mark.parametrize("format", FORMATS)
def test_no_format_has_control_characters(results, spec, format):
    codes = "\x1b[2J\u202e\x9b\r\x00\u2028"
    axis = dataclasses.replace(spec.rows[0], title=codes, labels={"group": f"a{codes}"}, heading=f"{{value}}{codes}")
    number = dataclasses.replace(spec.published[0], source=codes)
    control, unit = dataclasses.replace(spec.controls[0], title=codes), dataclasses.replace(spec.number, unit=codes)
    spec = dataclasses.replace(
        spec, title=codes, caption=codes, missing=codes, rows=(axis, spec.rows[1]), published=(number,),
        controls=(control,), number=unit,
    )  # fmt: skip
    text = render(results, spec, format)
    assert printable(text) == text and r"\x1b" in text.replace(r"\textbackslash{}", "\\").replace("\\\\", "\\")


def test_one_row_axis_is_one_block(results, spec):
    spec = dataclasses.replace(spec, rows=(spec.rows[1],), published=(), filter={**spec.filter, "target": "group"})
    text = render(results, spec, "markdown")
    assert text.count("**") == 4  # the title and one best entry


def test_markdown_lines_up_and_breaks_no_paragraph_into_a_list(results, spec):
    lines = render(results, dataclasses.replace(spec, caption="word " * 40), "markdown").splitlines()
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
    assert max(len(line) for line in lines if line.startswith("word")) <= 110
    long = "x" * 107 + " - 3. and so on"
    assert long in render(results, dataclasses.replace(spec, caption=long), "markdown").splitlines()


def test_several_tables_stand_behind_each_other_and_csv_has_one_head(results, spec):
    specs = (spec, dataclasses.replace(spec, title="again", ranked=False))
    one, two = (render(results, each, "markdown") for each in specs)
    both = Table(tuple(fill_table(results, each) for each in specs))
    assert both.to_markdown() == f"{one}\n{two}"
    assert "is better" in one and "is better" not in two and two.count("**") == 2 and "‡" not in two
    rows = list(csv.DictReader(io.StringIO(both.to_csv())))
    assert len(rows) == 24 and rows[0]["value"] == rows[12]["value"] == "0.515625"
    assert Table((fill_table(results, spec),)).to_latex() == render(results, spec, "latex")


def test_the_table_of_an_experiment_is_built_by_name(results, tmp_path, monkeypatch):
    folder = tmp_path / "experiments" / "toy"
    folder.mkdir(parents=True)
    (folder / "table.yaml").write_bytes((GOLDEN.parent / "table.yaml").read_bytes())
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path))
    table = build_table("toy", GOLDEN.parent / "results")
    for text, suffix in ((table.to_markdown(), "md"), (table.to_csv(), "csv"), (table.to_latex(), "tex")):
        assert text == (GOLDEN / f"table.{suffix}").read_text()
    assert [entry.value for entry in table.entries()][0] == 0.515625
    narrowed = build_table("toy", GOLDEN.parent / "results", where={"run": "bank-0"})
    assert "1 seed;" in narrowed.to_markdown()
    with pytest.raises(ConfigError, match="toy"):
        build_table("toyy", GOLDEN.parent / "results")
