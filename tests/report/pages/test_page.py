"""The page as a browser parses it: complete, escaped, without a request or a script."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.terminal import printable
from diffprobe.report.pages.page import Page, render_page
from diffprobe.report.pages.panels import Picture
from diffprobe.report.table_spec import TableAxis

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed where it was opened."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())


def test_hostile_text_stays_text_everywhere(page, hostile):
    read = Reader(render_page(page))
    assert "script" not in read.tags
    assert not [a for a in read.attributes if a[1].startswith("on")]
    assert [v for tag, name, v in read.attributes if tag == "img" and name == "alt" and v] == [hostile] * 9
    assert read.words().count(hostile) >= 12  # title, lead, facts, labels, captions, notes, limits, commands


def test_no_control_characters_reach_the_page(page):
    codes = "\x1b[2J\u202egpj\x9b\u200b"
    page = dataclasses.replace(page, title=codes, lead=codes, facts=(("a", codes),), limits=(codes,))
    page = dataclasses.replace(page, latents=(dataclasses.replace(page.latents[0], rule=codes),))
    axis = dataclasses.replace(page.tables[0].rows[1], heading=f"{codes} {{value}}")
    spec = dataclasses.replace(page.tables[0], rows=(page.tables[0].rows[0], axis), missing=codes)
    html = render_page(dataclasses.replace(page, tables=(spec,)))
    assert printable(html) == html and html.count(r"\x1b[2J\u202egpj\x9b\u200b") > 10


def test_nothing_is_requested(page):
    html = render_page(page)
    read = Reader(html)
    sources = [value for _, name, value in read.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert sources and all(value.startswith(("data:image/png;base64,", "#")) for value in sources)
    assert not re.search(r"@import|url\((?!#)", html)
    policy = [v for tag, name, v in read.attributes if tag == "meta" and name == "content" and "default-src" in v]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_links_of_the_page_lead_somewhere(page):
    read = Reader(render_page(page))
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in read.attributes if name == "href" and value.startswith("#")}
    assert {"layers", "directions", "latents", "sae", "limits"} <= targets <= set(ids)


def test_every_number_stands_beside_its_control(page):
    words = Reader(render_page(page)).words()
    for text in (
        "82.8 % best (exploratory) accuracy, at up_blocks.0, t = 200 strongest control 43.8 % (random weights)",
        "0.987 0.951 to 0.999 0.503 ± 0.081 0.512 50",  # AUROC, interval, random directions, shuffled labels, n
        "fvu 0.125 0.0625 test 50",  # with its random-weights control, which is a run of its own
        "label entropy 1.25 bits by chance 2.50 ± 0.25 density 12.5 % active on 1,234",
        "n/a: no result (1 of 12 entries).",
    ):
        assert text in words
    assert "the negative end -2.50" in words


def test_a_table_of_three_row_axes_keeps_the_middle_one(page):
    spec = page.tables[0]
    pool = TableAxis(field="pool", title="pooling", values=("mean",), heading="{value} pool")
    spec = dataclasses.replace(spec, rows=(spec.rows[0], pool, spec.rows[1]), published=())
    html = render_page(dataclasses.replace(page, tables=(spec,)))
    words = Reader(html).words()
    assert "pooling layer t = 25" in words and "mean pool up_blocks.0 76.6" in words
    assert "at mean\N{NO-BREAK SPACE}pool, up_blocks.0" in html  # the tile
    assert "mean pool, up_blocks.0: 76.6, 82.8" in html  # the map, for those who cannot see it


def test_a_direction_that_does_not_beat_its_controls_is_marked_in_table_and_tile(page):
    """As the reading guide states for ‡; a value equal to the strongest control does not beat it."""
    panel = page.directions[0]
    low = dataclasses.replace(panel.estimates[0], raw_pixels=panel.estimates[0].auroc)
    high = dataclasses.replace(low, estimator="logistic", auroc=0.995)
    words = Reader(render_page(page)).words()
    assert "0.987 0.951 to" in words and "0.987 ‡" not in words
    marked = dataclasses.replace(page, tables=(), directions=(dataclasses.replace(panel, estimates=(low, high)),))
    words = Reader(render_page(marked)).words()
    assert words.count("0.987 ‡") == 2 and "0.995 ‡" not in words  # the tile and the table
    assert words.count("‡ does not beat the strongest control") == 1


def test_the_tile_of_a_mean_over_classes_names_them(page):
    def renamed(run):
        metrics = tuple(
            dataclasses.replace(m, name=m.name.replace("accuracy", "balanced_accuracy")) for m in run.metrics
        )
        return dataclasses.replace(run, metrics=metrics)

    results = tuple(renamed(run) for run in page.results)
    spec = dataclasses.replace(page.tables[0], metric="balanced_accuracy")
    words = Reader(render_page(dataclasses.replace(page, results=results, tables=(spec,)))).words()
    assert "82.8 % best (exploratory) balanced accuracy over the classes that the split holds, at up_blocks.0" in words


def test_a_tile_is_marked_where_even_the_best_entry_is_below_its_control(page):
    pixels = page.results[0]
    strong = dataclasses.replace(
        pixels, metrics=tuple(dataclasses.replace(record, value=0.9) for record in pixels.metrics)
    )
    words = Reader(render_page(dataclasses.replace(page, results=(strong, *page.results[1:])))).words()
    assert "82.8 % ‡ best (exploratory) accuracy" in words and "82.8 % ‡" not in Reader(render_page(page)).words()


def test_every_column_of_the_table_is_there(page):
    read = Reader(render_page(page))
    assert "layer t = 25 t = 200 raw pixels random weights shuffled labels chance" in read.words()
    assert read.tags.count("svg") == 3  # two heat maps, one histogram


def test_an_empty_page_is_a_page():
    html = render_page(Page(title="t", lead="l", facts=(), results=()))
    read = Reader(html)
    assert "img" not in read.tags and "table" not in read.tags and "Limits" in read.words()


def test_the_same_page_gives_the_same_bytes(page):
    assert render_page(page) == render_page(page)


def test_an_image_that_is_none_is_refused(page):
    section = page.latents[0]
    latent = dataclasses.replace(section.panels[0], pictures=(Picture(data=b"<svg/>", caption="x"),))
    with pytest.raises(ConfigError, match="PNG, WebP, JPEG, GIF"):
        render_page(dataclasses.replace(page, latents=(dataclasses.replace(section, panels=(latent,)),)))


def test_contradicting_controls_of_an_autoencoder_are_refused(page, sae_run):
    runs = (sae_run(0.1), sae_run(0.2, control="random_weights"), sae_run(0.3, control="random_weights"))
    with pytest.raises(RunFailed, match="disagree"):
        render_page(dataclasses.replace(page, results=(*page.results[:3], *runs)))


def test_several_autoencoders_stand_side_by_side_with_their_controls(page, sae_run, hostile):
    """A control belongs to the autoencoder whose settings it has."""
    configs = [{"probe": {"params": {"k": k}}} for k in (8, 16)]
    runs = [
        sae_run(0.125, run="small", config={**configs[0], "control": "none"}),
        sae_run(0.25, run="large", config={**configs[1], "control": "none"}),
        sae_run(0.5, control="random_weights", config={**configs[1], "control": "random_weights"}),
    ]
    section = page.latents[0]
    other = dataclasses.replace(section, name="k=16")
    both = dataclasses.replace(
        page, results=(*page.results[:3], *runs), latents=(section, other), names={"small": hostile, "large": "k=16"}
    )
    html = render_page(both)
    words = Reader(html).words()
    assert f"metric split {hostile} k=16 meaning" in words and "fvu test 0.125 0.250 0.500" in words
    assert 'class="autoencoders beside"' in html and html.count('<div class="autoencoder">') == 2
    assert "The autoencoders" in words and "random weights split" not in words
    assert 'class="autoencoders beside"' not in render_page(page)


def test_the_place_of_an_activation_is_in_the_text_of_its_picture(page):
    section = page.latents[0]
    placed = dataclasses.replace(section.panels[0].pictures[0], place="row 3, column 5 of 8 x 8")
    latent = dataclasses.replace(section.panels[0], pictures=(placed,))
    read = Reader(render_page(dataclasses.replace(page, latents=(dataclasses.replace(section, panels=(latent,)),))))
    assert any(name == "title" and value.endswith(", row 3, column 5 of 8 x 8") for _, name, value in read.attributes)


def test_the_groups_of_a_latent_are_counted(page):
    section = page.latents[0]
    for n, text in ((1, ", in 1 group<"), (12, ", in 12 groups<"), (None, None)):
        latent = dataclasses.replace(section.panels[0], n_groups=n)
        html = render_page(dataclasses.replace(page, latents=(dataclasses.replace(section, panels=(latent,)),)))
        assert (text in html) if text else (", in 1" not in html)


def test_a_latent_without_pictures_keeps_its_numbers(page):
    section = page.latents[0]
    latent = dataclasses.replace(section.panels[0], pictures=())
    html = render_page(dataclasses.replace(page, latents=(dataclasses.replace(section, panels=(latent,)),)))
    assert "active on 1,234" in Reader(html).words() and "Not active on any" not in html


def test_a_direction_of_numbers_alone_has_no_empty_ends(page):
    panel = dataclasses.replace(page.directions[0], positive_end=(), negative_end=(), histogram=None, source="pets")
    words = Reader(render_page(dataclasses.replace(page, directions=(panel,)))).words()
    assert "far end" not in words and "0.987" in words and "direction, pets" in words
