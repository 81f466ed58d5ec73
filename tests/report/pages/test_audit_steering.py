"""What the page of an audit shows of its steering."""

import io

from PIL import Image

from diffprobe.analysis.audit.spec import Axis
from diffprobe.report.pages.audit import render_audit
from diffprobe.report.pages.audit_steering import steering_views
from tests.evaluation.audit_world import TEXTURE, TONE, example, steered_example


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def test_each_axis_has_plots_images_and_the_reader() -> None:
    result = steered_example(axes=(TEXTURE, TONE))
    page = render_audit(result, images={"texture": png()})
    assert page.count('class="doses"') == 4 and page.count('<img class="strengths" src="data:image/png') == 1
    for text in ("Causal link: images with the direction added", "planted eyes", "400 planted images", "perceived as",
                 "90 % of those with the positive end", "random directions", "smallest attainable p 0.33",
                 "The perceived tone of an image changes", "Association and what is perceived without steering",
                 "It does not show that the model uses this direction when nothing is added"):  # fmt: skip
        assert text in page, text
    assert page == render_audit(result, images={"texture": png()})


def test_views_have_a_row_per_strength() -> None:
    (view,) = steering_views(steered_example(), {})
    assert [row["strength"] for row in view["rows"]] == [-2, 0, 2] and view["images"] is None
    assert view["rate_plot"].curves[-1].is_own and len(view["rate_plot"].curves) == 3
    assert len(view["scatter"].points) == 6


def test_without_steering_the_page_states_it() -> None:
    page = render_audit(example())
    assert "Causal link" not in page and "No steering: whether moving along the directions moves" in page


def test_names_of_axes_are_escaped() -> None:
    axis = Axis(name="<script>x</script>", positive=("<b>up</b>",), negative=("down",))
    page = render_audit(steered_example(axes=(axis, TONE)), images={axis.name: png()})
    assert "<script" not in page and "<b>up" not in page
