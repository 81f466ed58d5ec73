"""The page of an audit."""

import re

import pytest

from diffprobe.analysis.audit.spec import Axis, Subject
from diffprobe.core.result import RunResult
from diffprobe.report.pages.audit import render_audit
from tests.evaluation.audit_world import TEXTURE, TONE, example

HOSTILE = "<script>alert(1)</script>\u202e\"'><img src=x onerror=y>"


def test_the_page_shows_what_was_measured() -> None:
    page = render_audit(example(axes=(TEXTURE, TONE)))
    for heading in ("What these numbers cannot say", "texture", "tone", "Association", "Default",
                    "Rate from prompt latents",
                    "Position between the own variants", "Descriptors at both ends", "Intersections", "Clusters",
                    "Groups of subjects", "Provenance"):  # fmt: skip
        assert heading in page, heading
    assert '<div class="up"><span style="top:' in page  # numbers on the vertical axis
    assert page.count('<div class="dots"') == 8 and page.count("<svg") == 9  # four plots per axis, one scatter plot
    assert "No control by words" in page and "perceives" in page


def test_the_page_escapes_everything_and_needs_nothing() -> None:
    axis = Axis(name=f"axis {HOSTILE}", positive=(f"up {HOSTILE}",), negative=(f"down {HOSTILE}",))
    other = Axis(name=f"b {HOSTILE}", positive=("c",), negative=("d",))
    result = example(
        axes=(axis, other), subjects=tuple(Subject(name=name, group=f"g {HOSTILE}" if name == "cook" else None)
                                     for name in ("cook", "judge", "poet", "pilot", "miner", "actor")),
        descriptors=(f"word {HOSTILE}", "a", "b"),
    )  # fmt: skip
    page = render_audit(result)
    assert "<script" not in page and "<img" not in page and "\u202e" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"https?://|\bsrc=x|url\(|@import|<link|<iframe", page.replace("src=x onerror", ""))
    assert page == render_audit(result)


def test_hostile_subjects_are_escaped_in_plots_and_tables() -> None:
    result = example()
    renamed = RunResult(**{**result.__dict__, "metrics": tuple(
        type(m)(**{**m.__dict__, "detail": {**m.detail, "subject": HOSTILE + m.detail["subject"]}})
        if "subject" in m.detail else m for m in result.metrics
    )})  # fmt: skip
    page = render_audit(renamed)
    assert "<script" not in page and "<img" not in page and page.count("&lt;script&gt;") > 20


@pytest.mark.parametrize("keys", [{"n_templates": 1}, {"compare_variants": False}, {"descriptors": ()}])
def test_parts_that_were_not_measured_are_left_out(keys: dict[str, object]) -> None:
    page = render_audit(example(**keys))
    assert ("Rate from prompt latents" in page) is ("descriptors" in keys)
    assert ("Descriptors at both ends" in page) is ("descriptors" not in keys)
