"""What the build of the site makes from the code: reStructuredText of docstrings, generated pages, links of copies."""

import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT

EXTENSIONS = ROOT / "docs" / "_ext"


@pytest.fixture(autouse=True)
def _extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXTENSIONS))


def test_sections_become_fields_and_markup_is_escaped() -> None:
    from docstrings import convert  # type: ignore[import-not-found]

    lines = [
        "Divide |x| by *all* of `d_in`. Raises: ConfigError if k_ < 1,",
        "or more.",
        "",
        "Args:",
        "    x, y: features,",
        "        any unit.",
        "    k: how many.",
        "Returns: pairs: [n, 2].",
        "Source: Gao et al.",
        "",
        ">>> 1 * 2",
        "2",
    ]
    assert convert(lines) == [
        r"Divide \|x\| by \*all\* of ``d_in``.",
        "",
        r":Raises: ConfigError if k\_ < 1, or more.",
        ":param x: features, any unit.",
        ":param y: features, any unit.",
        ":param k: how many.",
        ":Returns: pairs: [n, 2].",
        ":Source: Gao et al.",
        "",
        ">>> 1 * 2",
        "2",
        "",
    ]


def test_links_of_a_copied_page_become_those_of_the_site() -> None:
    from generated_pages import OUT, site_links  # type: ignore[import-not-found]

    source = ROOT / "diffprobe/assets/emoji-sd/README.md"
    text = "[d](../emoji/README.md#splits) ![s](../../../docs/emoji-sd-samples.png) [m](../../../Makefile) [w](https://x.y)"
    expected = "[d](emoji.md#splits) ![s](../emoji-sd-samples.png) m (`Makefile`) [w](https://x.y)"
    assert site_links(text, source, OUT / "emoji-sd.md") == expected


def test_a_reference_loses_its_title_and_is_not_read_as_html() -> None:
    from generated_pages import _untitled

    text = "# Title\n\nScan <split> and `<key>`.\n\n```text\nusage: x <y>\n```\n"
    assert _untitled(text) == "Scan \\<split> and `<key>`.\n\n```text\nusage: x <y>\n```\n"


def test_every_package_has_an_api_page() -> None:
    from generated_pages import PACKAGES

    found = {path.parent.name for path in (ROOT / "diffprobe").glob("*/__init__.py")}
    assert set(PACKAGES) == found - {"cli"}
    listed = re.findall(r"_generated/api/(\w+)", (ROOT / "docs/api/index.md").read_text("utf-8"))
    assert listed == list(PACKAGES)


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (ROOT / "docs/index.md").read_text("utf-8")
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
    names = {
        path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in pages if "_generated" not in path.parts
    }
    assert {name for name in names - {"index"} if f"\n{name}\n" not in index} == set()


WORDS = (
    "backbone family checkpoint tap timestep sigma draw condition conditioning prompt cell feature feature_store "
    "sample key latent activation code k n_latents d_in vae_latent probe direction run experiment entry fvu control "
    "placement latent_cache max_rows_per_pass dead_window group_by init_from p_dropout word_dropout rarity_power "
    "registry objective"
).split()


def test_the_glossary_explains_the_words_of_the_project() -> None:
    text = (ROOT / "docs/glossary.md").read_text("utf-8")
    words = {re.sub(r"[*`]", "", word) for word in re.findall(r"\*\*.+?\*\*|`.+?`", text)}
    assert {word for word in WORDS if word not in words and word.replace("_", " ") not in words} == set()


def test_the_folder_of_docs_has_what_the_readme_shows() -> None:
    for name in ("demo-group-accuracy.png", "emoji-sd-samples.png"):
        path: Path = ROOT / "docs" / name
        assert path.is_file() and path.stat().st_size < 300_000
