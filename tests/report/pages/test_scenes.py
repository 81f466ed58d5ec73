import re
from dataclasses import replace

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.report.pages.panels import Picture
from diffprobe.report.pages.rate_dots import RateDot
from diffprobe.report.pages.scenes import (
    ModelRates,
    PromptRow,
    Samples,
    ScenesPage,
    TextTable,
    WorldRow,
    render_scenes_page,
)

HOSTILE = "<script>alert(1)</script>\u202e"
PICTURE = Picture(data=b"GIF8", caption=HOSTILE)
DOTS = tuple(
    RateDot(group=group, planted=planted, other=0.5, measured=0.25, interval=(0.125, 0.375))
    for group, planted in ((HOSTILE, 0.02), ("cook", 0.98))
)
TABLE = TextTable(heads=("model", HOSTILE), rows=((HOSTILE, "+0.94"),))
PAGE = ScenesPage(
    title=HOSTILE, lead=HOSTILE, models=("a", HOSTILE), sampling=HOSTILE, n_per_role=24,
    world=(WorldRow(heading=f"role\n{HOSTILE}", pictures=(PICTURE, PICTURE)),),
    prompts=(PromptRow(prompt=HOSTILE, samples=(Samples(pictures=(PICTURE,), note=HOSTILE),) * 2),),
    rates=(ModelRates(model="a", world="planted", dots=DOTS), ModelRates(model=HOSTILE, world=HOSTILE, dots=DOTS)),
    comparison=TABLE, qualities=TABLE, notes=(HOSTILE,), tiles=((HOSTILE, "0.94", HOSTILE),), limits=(HOSTILE,),
    facts=((HOSTILE, HOSTILE),), next_steps=(HOSTILE,),
)  # fmt: skip


def test_everything_is_escaped_and_nothing_is_loaded() -> None:
    html = render_scenes_page(PAGE)
    assert "<script" not in html and "\u202e" not in html and html.count("&lt;script&gt;") > 20
    assert not re.search(r"(?:src|href)=\"(?!data:image/gif|#)", html) and "default-src 'none'" in html
    assert html == render_scenes_page(PAGE)


def test_the_dot_plot_has_every_group_its_rates_and_a_text_alternative() -> None:
    html = render_scenes_page(PAGE)
    assert html.count('<circle class="measured"') == html.count('<path class="planted"') == 4
    assert "cook: planted 0.98, generated 0.25 (0.12 to 0.38)" in html and "24 images per role" in html
    labels = [float(y) for y in re.findall(r'<text class="group" x="[\d.]+" y="([\d.]+)"', html)]
    assert len(labels) == 4 and labels[1] - labels[0] >= 16


def test_tables_and_sections_are_there_and_empty_parts_are_left_out() -> None:
    html = render_scenes_page(PAGE)
    assert html.count("+0.94") == 2
    for name in ("world", "samples", "rates", "limits", "provenance"):
        assert f'id="{name}"' in html and f'href="#{name}"' in html
    bare = render_scenes_page(replace(PAGE, tiles=(), next_steps=(), notes=()))
    assert 'class="tiles"' not in bare and "<pre>" not in bare


def test_an_image_of_unknown_type_is_refused() -> None:
    row = WorldRow(heading="role", pictures=(Picture(data=b"<svg>", caption=""),))
    with pytest.raises(ConfigError, match="PNG"):
        render_scenes_page(replace(PAGE, world=(row,)))
