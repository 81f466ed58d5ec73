"""Heat maps: content, determinism, escaping."""

import dataclasses
import xml.etree.ElementTree as ET

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.report.figure import _luminance, _spread, control_levels, heat_map, render_heat_map
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_spec import TableAxis


def texts(svg):
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_svg_contains_values_labels_and_control_levels(results, spec):
    table = fill_table(results, spec)
    _, rows = table.blocks()[1]
    found = texts(render_heat_map(table, rows))
    for text in ("14.1 ‡", "39.1", "n/a", "mid_block", "t = 200", "raw pixels 18.8", "chance 5.0", "best 39.1"):
        assert text in found


def test_svg_is_a_deterministic_fragment_in_the_colour_of_the_page(results, spec):
    table = fill_table(results, spec)
    first = render_heat_map(table)
    assert first == render_heat_map(table)
    assert first.startswith(b"<svg ") and b"currentColor" in first and b"#010203" not in first
    assert b"<metadata" not in first and b"http://" not in first.replace(b"http://www.w3.org/2000/svg", b"")


def test_a_hostile_label_stays_text(results, spec):
    axis = dataclasses.replace(spec.rows[1], labels={"mid_block": "</text><script>x</script> $\\frac{1}$"})
    table = fill_table(results, dataclasses.replace(spec, rows=(spec.rows[0], axis)))
    svg = render_heat_map(table)
    assert b"<script" not in svg and "</text><script>x</script> $\\frac{1}$" in texts(svg)


def test_all_axes_within_a_block_are_labelled_and_have_room(results, spec):
    pool = TableAxis(field="pool", values=("mean",), labels={"mean": "a mean over all the places"})
    deep = fill_table(results, dataclasses.replace(spec, rows=(spec.rows[0], pool, spec.rows[1]), published=()))
    flat = fill_table(results, spec)
    found = texts(render_heat_map(deep, deep.blocks()[0][1]))
    assert found.count("a mean over all the places") == 3 and found.count("mid_block") == 1
    widths = [
        float(ET.fromstring(render_heat_map(table, table.blocks()[0][1])).get("viewBox").split()[2])
        for table in (flat, deep)
    ]
    assert widths[1] - widths[0] > 72  # points: an inch for fifteen more characters


def test_png_is_a_complete_file(results, spec):
    assert render_heat_map(fill_table(results, spec), format="png").startswith(b"\x89PNG")


def test_control_levels_span_the_rows(results, spec):
    table = fill_table(results, spec)
    levels = {level.title: (level.low, level.high) for level in control_levels(table, table.blocks()[0][1])}
    assert levels["random weights"] == (0.3125, 0.5) and levels["chance"] == (0.25, 0.25)


def test_labels_of_the_scale_do_not_overlap():
    places = _spread([0.0, 0.01, 0.02, 0.98, 0.99], gap=0.1, low=0.0, high=1.0)
    assert all(b - a >= 0.1 - 1e-9 for a, b in zip(places, places[1:], strict=False))
    assert min(places) >= 0 and max(places) <= 1


@pytest.mark.parametrize("value", [i / 20 for i in range(21)])
def test_numbers_in_cells_can_be_read(value):
    import matplotlib as mpl

    light = _luminance(mpl.colormaps["cividis"](value))
    ink = 1.0 if light < 0.18 else _luminance((0x10 / 255, 0x14 / 255, 0x1C / 255))
    contrast = (max(light, ink) + 0.05) / (min(light, ink) + 0.05)
    assert contrast >= 4  # WCAG asks 3 of text this large


def test_a_plain_array_is_a_figure_with_values_labels_and_scale():
    figure = heat_map([[0.5, float("nan")], [0.25, 1.0]], rows=["mid", "up"], columns=[25, 200], label="accuracy")
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert found == ["0.5", "n/a", "0.25", "1", "25", "200", "mid", "up", "0.25", "1", "accuracy"]
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook displays


def test_a_tensor_without_labels_is_numbered_and_a_constant_has_a_scale():
    torch = pytest.importorskip("torch")
    figure = heat_map(torch.full((1, 3), 2.0), number=".1f")
    assert [text.get_text() for text in figure.axes[0].texts] == ["2.0"] * 3 + ["0", "1", "2", "0"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["2.0"]


@pytest.mark.parametrize(
    ("values", "labels", "facts"),
    [
        ([1.0, 2.0], {}, "1 dimensions"),
        ([[1.0, 2.0]], {"columns": ["a"]}, r"1 labels in columns.*\(1, 2\)"),
        ([[1.0, 2.0]], {"rows": ["a", "b"]}, r"2 labels in rows.*\(1, 2\)"),
        ([[float("nan")]], {}, "no finite value"),
    ],
)
def test_an_array_that_cannot_be_drawn_is_refused(values, labels, facts):
    with pytest.raises(ConfigError, match=facts):
        heat_map(values, **labels)
