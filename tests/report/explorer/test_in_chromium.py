"""A browser drives the explorer from disk: search, sort, filter, pages, comparison, keys; no error, no network.

Skipped where Chromium is not installed.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from diffprobe.report.explorer.records import Column
from diffprobe.report.explorer.writer import ExplorerWriter
from tests.report.explorer.chromium import COMMAND, Chromium
from tests.report.explorer.example import HOSTILE, columns, facts, images, pages, write

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMMAND is None, reason="Chromium is not installed")]
N_LATENTS, N_IMAGES = 400, 120


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer") / "out"
    return write(folder, n_latents=N_LATENTS, n_images=N_IMAGES, runs=2, caption=HOSTILE)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(started: Chromium) -> Iterator[Chromium]:
    """The browser; after each test, no message was logged, nothing but files was asked for, and no text became code."""
    started.messages.clear()
    started.requests.clear()
    yield started
    assert not started.messages
    assert all(url.startswith(("file://", "about:", "data:")) for url in started.requests)
    assert started.run("window.hacked === undefined && !document.querySelector('img')")


def latents(browser: Chromium, n: int = 5) -> list[int]:
    """Return the latents of the first rows."""
    rows = "[...document.querySelectorAll('.body .row')].sort((a, b) => a.dataset.position - b.dataset.position)"
    return [
        int(text)
        for text in browser.run(f"{rows}.slice(0, {n}).map((row) => row.querySelector('.number-link').innerText)")
    ]


def text(browser: Chromium, selector: str) -> str:
    return str(browser.run(f"document.querySelector({selector!r})?.innerText ?? ''"))


def test_the_table_holds_only_the_rows_in_view(browser: Chromium, index: Path) -> None:
    browser.open(index)
    assert text(browser, "h1") == "emoji/sae" and text(browser, ".count") == "400 latents"
    assert latents(browser) == [0, 1, 2, 3, 4]
    assert browser.run("document.querySelector('.grid').getAttribute('aria-rowcount')") == str(N_LATENTS + 1)
    assert browser.run("document.querySelectorAll('.body .row').length") < 60
    browser.press("End")
    browser.wait(f"document.querySelector('.row.active [href=\"#/latent/{N_LATENTS - 1}\"]')")
    assert browser.run("document.querySelectorAll('.body .row').length") < 60
    browser.wait("document.querySelector('.tiny')")


def test_texts_are_searched_filtered_and_sorted(browser: Chromium, index: Path) -> None:
    browser.open(index, "#/?q=style%3D%3Cb%3E")
    assert text(browser, ".count") == "199 of 400 latents" and latents(browser, 2) == [2, 4]
    browser.open(index, "#/?q=style+%3D+%3Cb%3E+dog")
    assert latents(browser, 2) == [4, 20]  # 12 has no name
    browser.open(index, "#/?has.about=class%3DA")
    assert text(browser, ".count") == "200 of 400 latents" and text(browser, ".chip").startswith("is about: class=A")
    browser.run("document.querySelector('.chip').click()")
    assert text(browser, ".count") == "400 latents"
    browser.run("document.querySelector('[data-key=about] button').click()")
    assert latents(browser, 2) == [1, 3] and "sort=about" in browser.run("location.hash")
    browser.press("End")
    browser.wait("document.querySelector('.row.active [href=\"#/latent/0\"]')")  # it has no text
    browser.go("#/latent/2")
    assert "is about style = <b> (AUROC 0.502)" in text(browser, ".headline")
    assert "style = <b>" in text(browser, ".numbers .text")


def test_sorting_by_a_number_and_missing_values_come_last(browser: Chromium, index: Path) -> None:
    browser.open(index)
    head = "document.querySelector('[data-key=auroc] button')"
    browser.run(f"{head}.click()")
    assert latents(browser, 3) == [399, 398, 397]
    assert browser.run("document.querySelector('.head [data-key=auroc]').getAttribute('aria-sort')") == "descending"
    browser.press("End")
    browser.wait("document.querySelector('.row.active [href=\"#/latent/0\"]')")  # it has no AUROC
    browser.run(f"{head}.click()")
    assert latents(browser, 2) == [1, 2]
    browser.press("End")
    browser.wait("document.querySelector('.row.active [href=\"#/latent/0\"]')")
    assert browser.run("location.hash") == "#/?sort=auroc"
    browser.run("document.querySelector('[data-key=frequency] button').focus()")
    browser.press("Enter")
    assert browser.run("location.hash") == "#/?sort=-frequency" and latents(browser, 2) == [0, 1]


def test_search_by_name_and_number_with_keys_alone(browser: Chromium, index: Path) -> None:
    browser.open(index)
    browser.press("/", *"boat 7")
    browser.wait("document.querySelector('.count').innerText.includes(' of ')")
    assert browser.run("document.activeElement.id") == "search"
    expected = [i for i in range(N_LATENTS) if i % 8 == 7 and i % 3 and i != 399 and "7" in str(i)]
    found = [i for i in expected if str(i).startswith("7") or "7" in f"boat {i}"]
    assert latents(browser, 4) == found[:4]
    browser.press("Enter", "j", "Enter")
    browser.wait(f"document.querySelector('h1').innerText === 'Latent {found[1]}'")
    browser.press("]")
    browser.wait(f"document.querySelector('h1').innerText === 'Latent {found[2]}'")
    browser.press("[")
    browser.wait(f"document.querySelector('h1').innerText === 'Latent {found[1]}'")
    browser.press("Escape")
    browser.wait("document.querySelector('.grid')")
    assert browser.run("document.querySelector('#search').value") == "boat 7"
    assert browser.run("document.querySelector('.row.active .number-link').innerText") == str(found[1])


def test_filters_by_numbers_and_by_having_a_name(browser: Chromium, index: Path) -> None:
    browser.open(index, "#/?min.auroc=0.75&max.auroc=0.8&named=1")
    expected = [i for i in range(1, N_LATENTS) if 0.75 <= 0.5 + 0.5 * i / N_LATENTS <= 0.8000001 and i % 3]
    assert latents(browser) == expected[:5]
    assert text(browser, ".count").startswith(f"{len(expected)} of 400")
    browser.run("document.querySelector('.chip').click()")
    assert browser.run("location.hash") == "#/?named=1"
    browser.run("[...document.querySelectorAll('.toggle')].find((b) => b.innerText === 'Named only').click()")
    assert text(browser, ".count") == "400 latents"
    browser.open(index, "#/?min.auroc=2")
    assert "No latent is left" in text(browser, ".table-view") and not browser.run(
        "document.querySelectorAll('.body .row').length"
    )


def test_the_page_of_a_latent(browser: Chromium, index: Path) -> None:
    browser.open(index, "#/latent/7")
    assert text(browser, "h1") == "Latent 7" and text(browser, ".headline .names") == "boat 7"
    assert browser.run("document.querySelectorAll('.shots .heat').length") == 2
    assert browser.run("document.querySelector('.heat').width + 'x' + document.querySelector('.heat').height") == "3x2"
    assert "not passed" in text(browser, "tr.failed") and "failed" in text(browser, "tr.failed")
    assert {"Activations", "Frequency by timestep", "By class", "Nearest latents", "In other seeds"} <= set(
        browser.run("[...document.querySelectorAll('h2')].map((h) => h.innerText)")
    )
    browser.press("m")
    assert browser.run("getComputedStyle(document.querySelector('.shots .heat')).display") == "none"
    browser.press("m")
    browser.run("document.querySelector('.shots a').click()")
    browser.wait("document.querySelector('h1').innerText === 'Image 7'")
    browser.go(f"#/latent/{N_LATENTS - 1}")
    assert "not active on any image" in text(browser, ".latent-view")


def test_the_page_of_an_image_shows_its_caption_as_text(browser: Chromium, index: Path) -> None:
    browser.open(index, "#/image/1")
    caption = browser.run("document.querySelector('.caption').textContent")
    assert caption == HOSTILE.replace("\0", "\u2400")
    assert not browser.run("document.querySelectorAll('.shot.large .heat').length")
    browser.press("j")
    browser.wait("document.querySelector('.shot.large .heat')")
    assert "2 × 3 places" in text(browser, ".under")
    browser.press("Enter")
    browser.wait("document.querySelector('h1').innerText.startsWith('Latent ')")


def test_images_are_found_by_caption(browser: Chromium, index: Path) -> None:
    browser.open(index, "#/images")
    browser.press("/", *"119")
    browser.wait("document.querySelector('.count').innerText === '1 of 120 images'")
    browser.press("Enter", "Enter")
    browser.wait("document.querySelector('h1').innerText === 'Image 119'")


def test_two_runs_side_by_side(browser: Chromium, index: Path) -> None:
    browser.open(index, "#/compare")
    assert latents(browser, 2) == [399, 398]  # of the largest similarity
    browser.press("j", "Enter")
    browser.wait("document.querySelectorAll('article').length === 2")
    titles = browser.run("[...document.querySelectorAll('article h2.title')].map((h) => h.innerText)")
    assert titles[0].startswith("Latent 398") and titles[1].startswith("Latent 1 ")
    browser.press("Escape")
    browser.wait("document.querySelector('.compare')")
    browser.wait("document.querySelector('.row.active .number-link').innerText === '398'")  # where it was left
    browser.go("#/run/1/latent/2")
    assert browser.run("document.querySelector('.shots a').getAttribute('href')").startswith("#/run/1/image/")


@pytest.mark.parametrize(
    "address", ["#/latent/400", "#/latent/x", "#/image/-1", "#/nothing", "#/run/7/", "#/latent/1.5"]
)
def test_an_address_that_does_not_exist_is_explained(browser: Chromium, index: Path, address: str) -> None:
    browser.open(index, address)
    assert browser.run("document.querySelectorAll('[role=alert]').length") == 1
    browser.press("Escape")
    browser.wait("document.querySelector('.grid')")


def test_help_is_a_dialog(browser: Chromium, index: Path) -> None:
    browser.open(index)
    browser.press("?")
    assert "Previous and next latent" in text(browser, "dialog[open]")
    browser.press("Escape")
    browser.wait("!document.querySelector('dialog[open]')")


def test_without_pictures_and_with_hostile_names(browser: Chromium, tmp_path: Path) -> None:
    writer = ExplorerWriter(tmp_path)
    shown = [replace(column, title=HOSTILE, help=HOSTILE) for column in columns(9)]
    named = (replace(page, names=[replace(name, text=HOSTILE) for name in page.names]) for page in pages(9, 4))
    shots = images(4, 9, with_pictures=False, caption=HOSTILE)
    writer.run(replace(facts(9, 4, HOSTILE), notes=(HOSTILE,)), shown, named, shots)
    index = writer.close()
    browser.open(index)
    assert "pictures are not at hand" in text(browser, ".facts") and "false" not in text(browser, "#bar")
    for address in ("#/latent/1", "#/image/1", "#/images", "#/?min.auroc=0"):
        browser.go(address)
        assert "<img src=x" in browser.run("document.body.textContent")
    assert text(browser, "[role=alert]") == ""


def test_a_run_of_which_little_is_known(browser: Chromium, tmp_path: Path) -> None:
    """No images, no captions, no groups, a column without any value."""
    writer = ExplorerWriter(tmp_path)
    bare = (
        replace(page, names=[], top=[], groups=[], curve=[], neighbours=[], recurrence=[], histogram=[])
        for page in pages(3, 1)
    )
    writer.run(facts(3, 0), [Column(key="iou", title="Mask IoU", help="", values=[None] * 3)], bare, [])
    browser.open(writer.close(), "#/?sort=-iou")
    assert latents(browser) == [0, 1, 2]
    browser.run("[...document.querySelectorAll('.toggle')].find((b) => b.innerText === 'Filters').click()")
    assert "not measured" in text(browser, "#filters")
    browser.go("#/latent/1")
    for words in ("not active on any image", "No word was tested", "one seed"):
        assert words in text(browser, ".latent-view")
    browser.go("#/images")
    assert text(browser, ".count") == "0 images"


def test_a_missing_file_is_named(started: Chromium, tmp_path: Path) -> None:
    index = write(tmp_path)
    (tmp_path / "data/0/latents/0001.js").unlink()
    started.open(index, "#/latent/33")
    assert "data/0/latents/0001.js is missing" in text(started, "[role=alert]")
