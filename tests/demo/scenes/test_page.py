import io

import pytest
from rich.console import Console

from diffprobe.demo.console import DemoConsole
from diffprobe.demo.scenes.measures import comparison_table
from diffprobe.demo.scenes.page import scenes_facts, scenes_page, write_scenes_report
from diffprobe.demo.scenes.run import run_scenes


@pytest.mark.slow
def test_the_page_shows_world_samples_rates_and_limits(demo, drawn):
    text = io.StringIO()
    view = DemoConsole(Console(file=text, width=110))
    outcome = run_scenes(demo, view)
    page = scenes_page(outcome)
    assert [cell.caption for cell in page.world[-1].pictures][0] == "image" and len(page.world) == 11
    assert [row.prompt for row in page.prompts] == list(demo.prompts)
    first, stated = page.prompts
    assert [len(one.pictures) for one in first.samples] == [3, 3]
    assert first.samples[0].note.endswith("of 3 striped; planted 0.98")
    assert first.samples[1].note.endswith("planted 0.10") and "“striped” is stated" in stated.samples[0].note
    for one, own, other in zip(page.rates, (0, 1), (1, 0), strict=True):
        assert len(one.dots) == 24
        for dot in one.dots:
            role = next(role for role in outcome.spec.roles if role.name == dot.group)
            assert (dot.planted, dot.other) == (role.striped[own], role.striped[other])
            assert dot.interval[0] <= dot.measured <= dot.interval[1]
    assert page.comparison == comparison_table(outcome) and len(page.tiles) == 4
    assert any("12 images per role" in limit for limit in page.limits) and page.limits[-1] == "A <limit>."
    assert "no guidance" in page.sampling and dict(scenes_facts(outcome))["sampling"].endswith("seed 0")

    path = write_scenes_report(outcome, view)
    html = path.read_text("utf-8")
    assert html.count("<img ") == sum(len(row.pictures) for row in page.world) + 2 * 2 * 3
    assert "A &lt;limit&gt;." in html and "<script" not in html and 'href="http' not in html
    assert "report.html" in text.getvalue() and path == outcome.folder / "report.html"
