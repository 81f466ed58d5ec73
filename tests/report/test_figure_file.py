"""Figures as files: endings, names, pages, and the same bytes for the same table."""

import xml.etree.ElementTree as ET

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.report.figure_file import check_ending, figures_of, save_figures
from diffprobe.report.table_data import fill_table


@pytest.fixture
def tables(results, spec):
    return [fill_table(results, spec)]


@pytest.mark.slow
@pytest.mark.parametrize("plot", ["heat-map", "line"])
def test_a_pdf_has_a_page_for_each_block(tables, tmp_path, plot):
    (path,) = save_figures(figures_of(tables, plot), tmp_path / "new" / "out.pdf")
    data = path.read_bytes()
    assert data.startswith(b"%PDF") and data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") == 2
    assert b"CreationDate" not in data
    save_figures(figures_of(tables, plot), path)
    assert path.read_bytes() == data and [file.name for file in path.parent.iterdir()] == ["out.pdf"]


def test_images_are_numbered_where_there_are_several(tables, tmp_path):
    paths = save_figures(figures_of(tables), tmp_path / "out.PNG")
    assert [path.name for path in paths] == ["out-1.PNG", "out-2.PNG"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert save_figures(figures_of(tables)[:1], tmp_path / "one.png") == [tmp_path / "one.png"]


def test_an_svg_is_a_document_whose_text_is_text(tables, tmp_path):
    first, second = save_figures(figures_of(tables), tmp_path / "out.svg")
    texts = ["".join(node.itertext()) for node in ET.parse(first).iter("{http://www.w3.org/2000/svg}text")]
    assert {"accuracy (%)", "mid_block", "82.8", "raw pixels 43.8", "t = 25"} <= set(texts)
    assert any("group" in text for text in texts) and "$" not in "".join(texts)
    data = second.read_bytes()
    save_figures(figures_of(tables), tmp_path / "out.svg")
    assert second.read_bytes() == data


@pytest.mark.parametrize("name", ["out.jpg", "out", "out.pdf.gz"])
def test_other_endings_are_refused_with_a_list(name):
    with pytest.raises(ConfigError, match=f"'{name}'(.|\n)*.pdf, .svg, .png(.|\n)*--figure out"):
        check_ending(name)
