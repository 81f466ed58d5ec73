"""Reading the Markdown of the repository: pages, code blocks, links and anchors."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^(?P<indent> {0,3})(?P<ticks>`{3,}|:{3,})(?P<info>.*)$")
_LINK = re.compile(r"!?\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^(#{1,6}) (?P<text>.+?)\s*$")


@dataclass(frozen=True)
class Block:
    """One block of code."""

    page: str
    """File, relative to the repository."""
    line: int
    """Line of the fence, from 1."""
    language: str
    """Language of the fence; empty for an indented block."""
    code: str
    """The code."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def pages() -> tuple[Path, ...]:
    """Return README, docs, cards, protocols and the other Markdown files for readers."""
    found = [
        *ROOT.glob("*.md"),
        *(path for path in (ROOT / "docs").rglob("*.md") if "_generated" not in path.parts),
        *(ROOT / "diffprobe").rglob("*.md"),
        *(ROOT / "slurm").rglob("*.md"),
    ]
    return tuple(sorted(found))


@cache
def notebooks() -> tuple[Path, ...]:
    """Return the tutorials."""
    return tuple(sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")))


@cache
def text_of(path: Path) -> str:
    """Return the Markdown of a page, or of the Markdown cells of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text("utf-8")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def blocks(path: Path) -> list[Block]:
    """Return the code blocks of a page, fenced or indented by four spaces."""
    page, found, fence, lines, start = path.relative_to(ROOT).as_posix(), [], None, [], 0
    for number, line in enumerate(text_of(path).splitlines(), 1):
        mark = _FENCE.match(line)
        if fence is None and mark:
            fence, lines, start = mark, [], number
        elif fence is not None and line.strip() == fence["ticks"]:
            found.append(Block(page, start, fence["info"].strip(), "\n".join(lines)))
            fence = None
        elif fence is not None:
            lines.append(line)
        elif line.startswith("    ") and line.strip():
            found.append(Block(page, number, "", line.strip()))
    assert fence is None, f"{page}:{start}: the block is not closed"
    return found


def without_code(text: str) -> str:
    """Return Markdown without fenced blocks and code spans."""
    lines, fence = [], None
    for line in text.splitlines():
        mark = _FENCE.match(line)
        if fence is None and mark:
            fence = mark["ticks"]
        elif fence is not None and line.strip() == fence:
            fence = None
        elif fence is None:
            lines.append(re.sub(r"`[^`]*`", "", line))
    return "\n".join(lines)


def links(path: Path) -> list[str]:
    """Return the targets of the links and images of a page."""
    text = re.sub(r"^```.*?^```", "", text_of(path), flags=re.DOTALL | re.MULTILINE)
    return [match["target"] for match in _LINK.finditer(text)]


def anchors(path: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    found: dict[str, int] = {}
    text = re.sub(r"^```.*?^```", "", text_of(path), flags=re.DOTALL | re.MULTILINE)
    names = set()
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading:
            slug = re.sub(r"[^\w\- ]", "", heading["text"].lower().replace("`", "")).replace(" ", "-")
            names.add(slug if slug not in found else f"{slug}-{found[slug]}")
            found[slug] = found.get(slug, 0) + 1
    return names
