"""Heat maps: content, determinism, escaping; looks are judged by eye."""

import dataclasses
import xml.etree.ElementTree as ET

import pytest

from diffprobe.report.figure import _luminance, _spread, control_levels, heat_map
from diffprobe.report.spec import TableAxis
from diffprobe.report.table_data import build_table


def texts(svg):
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_svg_holds_values_labels_and_control_levels(results, spec):
    table = build_table(results, spec)
    _, rows = table.blocks()[1]
    found = texts(heat_map(table, rows))
    for text in ("14.1 ‡", "39.1", "n/a", "mid_block", "t = 200", "raw pixels 18.8", "chance 5.0", "best 39.1"):
        assert text in found


def test_svg_is_a_deterministic_fragment_in_the_colour_of_the_page(results, spec):
    table = build_table(results, spec)
    first = heat_map(table)
    assert first == heat_map(table)
    assert first.startswith(b"<svg ") and b"currentColor" in first and b"#010203" not in first
    assert b"<metadata" not in first and b"http://" not in first.replace(b"http://www.w3.org/2000/svg", b"")


def test_a_hostile_label_stays_text(results, spec):
    axis = dataclasses.replace(spec.rows[1], labels={"mid_block": "</text><script>x</script> $\\frac{1}$"})
    table = build_table(results, dataclasses.replace(spec, rows=(spec.rows[0], axis)))
    svg = heat_map(table)
    assert b"<script" not in svg and "</text><script>x</script> $\\frac{1}$" in texts(svg)


def test_all_axes_within_a_block_are_labelled_and_have_room(results, spec):
    pool = TableAxis(field="pool", values=("mean",), labels={"mean": "a mean over all the places"})
    deep = build_table(results, dataclasses.replace(spec, rows=(spec.rows[0], pool, spec.rows[1]), published=()))
    flat = build_table(results, spec)
    found = texts(heat_map(deep, deep.blocks()[0][1]))
    assert found.count("a mean over all the places") == 3 and found.count("mid_block") == 1
    widths = [
        float(ET.fromstring(heat_map(table, table.blocks()[0][1])).get("viewBox").split()[2]) for table in (flat, deep)
    ]
    assert widths[1] - widths[0] > 72  # points: an inch for fifteen more characters


def test_png_stands_alone(results, spec):
    assert heat_map(build_table(results, spec), format="png").startswith(b"\x89PNG")


def test_control_levels_span_the_rows(results, spec):
    table = build_table(results, spec)
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
