"""Every relative link and anchor of README, docs, notebooks, cards and protocols exists."""

from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, anchors, links, notebooks, pages

ALL = [*pages(), *notebooks()]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_and_anchors_exist(path: Path) -> None:
    missing = []
    for link in links(path):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        if not there.exists():
            missing.append(f"{link}: there is no {target}")
        elif anchor and anchor not in anchors(there):
            missing.append(f"{link}: {there.name} has no heading '#{anchor}'")
    assert not missing


def test_there_are_links_and_anchors_to_check() -> None:
    found = [link for path in ALL for link in links(path) if "://" not in link]
    assert len(found) >= 60
    assert sum("#" in link for link in found) >= 10
    assert "1-pack-the-images" in anchors(ROOT / "docs/users/guide.md")


def test_a_missing_file_and_a_missing_anchor_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b` c\n\n[x](gone.md) [y](#a-b-c) [z](#d)\n\n```\n# no heading [n](none.md)\n```\n")
    assert links(page) == ["gone.md", "#a-b-c", "#d"]
    assert anchors(page) == {"a-b-c"}
