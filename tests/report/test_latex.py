"""LaTeX escaping."""

import dataclasses

from diffprobe.report.latex import escape_latex
from diffprobe.report.table import render


def test_every_special_character_is_escaped():
    assert escape_latex(r"\{}$&#%_~^") == (r"\textbackslash{}\{\}\$\&\#\%\_\textasciitilde{}\textasciicircum{}")
    assert escape_latex("[a]*|") == r"{[}a{]}{*}\textbar{}"


def test_a_hostile_label_stays_text(results, spec):
    axis = dataclasses.replace(spec.rows[0], labels={"group": r"\input{secret} & 1 \\ %"})
    text = render(results, dataclasses.replace(spec, rows=(axis, spec.rows[1])), "latex")
    assert r"\input" not in text and r"\textbackslash{}input\{secret\} \& 1" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert {line.replace(r"\&", "").count("&") for line in body.splitlines() if line.endswith(r"\\")} == {7}
