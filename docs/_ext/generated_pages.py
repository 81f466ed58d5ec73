"""Pages that are made from the code before each build, below docs/_generated: API, configuration, command line, cards.

Markdown of the repository (cards, protocols, the change log) is copied. Relative links are those of the repository, so
that they work wherever the files are read; here they are changed to those of the site, and a link to a file that is
not a page of the site becomes code.
"""

import os
import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
OUT = DOCS / "_generated"

COPIES = {
    "diffprobe/assets/emoji/README.md": "emoji.md",
    "diffprobe/assets/emoji-sd/README.md": "emoji-sd.md",
    "diffprobe/assets/scenes-sd/README.md": "scenes-sd.md",
    "diffprobe/assets/scenes-sd-permuted/README.md": "scenes-sd-permuted.md",
    "diffprobe/assets/scenes-flow/README.md": "scenes-flow.md",
    "diffprobe/assets/scenes-reader/README.md": "scenes-reader.md",
    "diffprobe/shards/PROTOCOL.md": "shard-format.md",
    "diffprobe/features/PROTOCOL.md": "store-format.md",
    "slurm/README.md": "slurm.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""File of the repository -> page."""
PACKAGES = (
    "core",
    "config",
    "shards",
    "backbones",
    "metrics",
    "scoring",
    "features",
    "probes",
    "analysis",
    "training",
    "generative",
    "report",
    "launch",
    "runs",
    "evaluation",
    "notebook",
    "benchmarks",
    "demo",
)
"""Packages with API pages, low to high. `cli` has the reference of the command line instead."""
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def write_all() -> None:
    """Write every generated page, and remove those of an earlier tree."""
    wanted = {OUT / name: text for name, text in (*_copies(), *_references(), *_api())}
    for path, text in wanted.items():
        if not path.is_file() or path.read_text("utf-8") != text:  # an equal page keeps its time: not built again
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    for path in OUT.rglob("*.md"):
        if path not in wanted:
            path.unlink()


def site_links(text: str, source: Path, page: Path) -> str:
    """Change the relative links of a Markdown file of the repository to those of its copy on the site.

    Args:
        text: the Markdown.
        source: the file, absolute.
        page: where its copy goes, absolute.
    """

    def change(match: "re.Match[str]") -> str:
        target, _, anchor = match["target"].partition("#")
        if "://" in match["target"] or not target:
            return match[0]
        path = (source.parent / target).resolve()
        inside = path.relative_to(ROOT).as_posix()
        if inside in COPIES:
            path = OUT / COPIES[inside]
        elif not path.is_relative_to(DOCS) or path.suffix == ".py":
            return f"{match['text']} (`{inside}`)"
        there = Path(os.path.relpath(path, page.parent)).as_posix()
        return f"{match['image']}[{match['text']}]({there}{'#' + anchor if anchor else ''})"

    return _LINK.sub(change, text)


def _copies() -> list[tuple[str, str]]:
    texts = {file: (ROOT / file).read_text("utf-8") for file in COPIES}
    return [(name, site_links(texts[file], ROOT / file, OUT / name)) for file, name in COPIES.items()]


def _references() -> list[tuple[str, str]]:
    from diffprobe.cli.reference import render_reference as command_line
    from diffprobe.config.describe import render_reference as configuration

    return [
        ("config-reference.md", _untitled(configuration())),
        ("cli-reference.md", _untitled(command_line())),
    ]


def _untitled(text: str) -> str:
    """Remove a title, since the page that includes the text has one; escape `<` outside of code."""
    body = text.partition("\n")[2].lstrip() if text.startswith("# ") else text
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", body, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else part.replace("<", "\\<") for i, part in enumerate(parts))


def _api() -> list[tuple[str, str]]:
    """Make one page for each package, with a section for each of its modules."""
    pages = []
    for package in PACKAGES:
        root = import_module(f"diffprobe.{package}")
        names = [info.name for info in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")]
        lines = [f"# {root.__name__}", "", "```{eval-rst}", f".. automodule:: {root.__name__}", "```", ""]
        for name in names:
            if not any(part.startswith("_") for part in name.split(".")):
                title = name.removeprefix(f"{root.__name__}.")
                lines += [f"## {title}", "", "```{eval-rst}", f".. automodule:: {name}", "```", ""]
        pages.append((f"api/{package}.md", "\n".join(lines)))
    return pages


def _change_links(app: Any, name: str, content: list[str]) -> None:
    """Change the links of a page as Sphinx reads it. Copies and notebooks have those of the site already."""
    path = Path(app.env.doc2path(name))
    if path.suffix == ".md" and not path.is_relative_to(OUT):
        content[0] = site_links(content[0], path, path)


def setup(app: Any) -> dict[str, Any]:
    """Write the pages before Sphinx looks for its sources."""
    app.connect("config-inited", lambda app, config: write_all())
    app.connect("source-read", _change_links)
    return {"parallel_read_safe": True}
