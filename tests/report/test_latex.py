"""LaTeX: escaping, labels, and structure, by a small parser; no LaTeX is installed where the tests run."""

import dataclasses
import re

import pytest

from diffprobe.report.default_table import default_tables
from diffprobe.report.latex import escape_latex, label_of, render_latex
from diffprobe.report.table import Table, render
from diffprobe.report.table_data import fill_table


def tokens(text: str) -> list[str]:
    """Split LaTeX into commands, escaped characters and single characters, without comments."""
    return re.findall(r"\\[A-Za-z]+|\\.|[^\\]", re.sub(r"(?<!\\)%.*", "", text), re.DOTALL)


def check_structure(text: str) -> None:
    """Check that braces, dollars and environments are balanced, and that nothing special is left unescaped."""
    environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            environments.append(name)
        else:
            assert environments.pop() == name
    assert environments == []
    found, depth = tokens(text), 0
    for token in found:
        depth += {"{": 1, "}": -1}.get(token, 0)
        assert depth >= 0
    assert depth == 0 and found.count("$") % 2 == 0
    assert not {"#", "^", "_", "~"} & set(found)


def marks_and_notes(text: str) -> tuple[set[str], list[str]]:
    table, notes = text.split(r"\begin{tablenotes}")
    return set(re.findall(r"\\tnote\{(.*?)\}", table)), re.findall(r"^\\item\[(.*?)\]", notes, re.MULTILINE)


def columns(text: str) -> set[int]:
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    return {1 + tokens(line).count("&") for line in body.splitlines() if line.endswith(r"\\")}


def declared(text: str) -> int:
    match = re.search(r"\\begin\{tabular\}\{(.*)\}\n", text)
    assert match is not None
    return len(re.sub(r"@\{.*?\}", "", match[1]))


@pytest.mark.parametrize("change", [{}, {"published": ()}, {"controls": (), "published": ()}, {"ranked": False}])
def test_a_table_is_well_formed_and_every_mark_has_its_note(results, spec, change):
    text = render(results, dataclasses.replace(spec, **change), "latex")
    check_structure(text)
    marks, notes = marks_and_notes(text)
    assert marks == set(notes) and len(notes) == len(set(notes))
    assert columns(text) == {declared(text)}
    if not change:
        assert marks == {"a", "b", "!", r"$\ddagger$"}
    assert text.count(r"\label{tab:toy-accuracy-100-of-b-up-blocks-b}") == 1 == text.count(r"\caption{")


def test_the_default_tables_are_well_formed_and_their_labels_differ(results):
    specs = default_tables(results, exploratory=True).specs
    text = Table(tuple(fill_table(results, one) for one in (*specs, *specs))).to_latex()
    check_structure(text)
    labels = re.findall(r"\\label\{tab:(.*?)\}", text)
    assert len(set(labels)) == 4 and labels[2] == f"{labels[0]}-2"
    assert text.count("% packages: booktabs, threeparttable") == 4


def test_a_caption_is_title_and_text_without_a_doubled_end(results, spec):
    table = fill_table(results, dataclasses.replace(spec, title="Does it know?", caption="Yes.\n\n50%"))
    assert r"\caption{Does it know? (exploratory). Yes. 50\%}" in render_latex(table, label="x")
    plain = dataclasses.replace(table.spec, exploratory=False)
    assert r"\caption{Does it know? Yes. 50\%}" in render_latex(dataclasses.replace(table, spec=plain), label="x")
    bare = dataclasses.replace(plain, title="T", caption="")
    assert r"\caption{T}" in render_latex(dataclasses.replace(table, spec=bare))


@pytest.mark.parametrize(
    ("title", "label"), [("\u00c9t\u00e9 & {x}_1", "ete-x-1"), ("\u6f22", "table"), ("a" * 99, "a" * 60)]
)
def test_a_label_has_plain_characters(title, label):
    assert label_of(title) == label


def test_every_special_character_is_escaped():
    assert escape_latex(r"\{}$&#%_~^") == (r"\textbackslash{}\{\}\$\&\#\%\_\textasciitilde{}\textasciicircum{}")
    assert escape_latex("[a]*|") == r"{[}a{]}{*}\textbar{}"


def test_a_hostile_label_stays_text(results, spec):
    axis = dataclasses.replace(spec.rows[0], labels={"group": r"\input{secret} & 1 \\ %"})
    text = render(results, dataclasses.replace(spec, rows=(axis, spec.rows[1])), "latex")
    assert r"\input" not in text and r"\textbackslash{}input\{secret\} \& 1" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert {line.replace(r"\&", "").count("&") for line in body.splitlines() if line.endswith(r"\\")} == {7}
