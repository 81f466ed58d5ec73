"""Docstrings as this code writes them, to reStructuredText: sections on one line, names in backticks, no markup.

A docstring has plain paragraphs, doctests, and the sections Args, Attributes, Returns, Yields, Raises and Source, each
of which may begin on its heading's line ("Raises: ConfigError if k exceeds n_latents."). Characters that
reStructuredText would read as markup are escaped.
"""

import re
from typing import Any

_ITEMS = {"Args": "param", "Attributes": "ivar"}
_TEXTS = ("Returns", "Yields", "Raises", "Source")
_HEADING = re.compile(rf"(?P<name>{'|'.join([*_ITEMS, *_TEXTS])}):(?:\s+(?P<text>.*))?$")
_ITEM = re.compile(r"(?P<names>\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): (?P<text>.*)$")
_FIELD = re.compile(r":[\w *\\.]+: ")
_INLINE = re.compile(rf"(?P<before>\S.*[.:;)]) (?P<section>(?:{'|'.join(_TEXTS)}): .*)$")
_CODE = re.compile(r"(``.+?``|`[^`]+`)")
_MARKUP = re.compile(r"([\\*|`]|(?<=\w)_(?!\w))")


def convert(lines: list[str]) -> list[str]:
    """Return the reStructuredText of one docstring.

    >>> convert(["Keep |x| of `d_in`.", "", "Args:", "    k: how many.", "Raises: ConfigError if k < 1."])
    ['Keep \\\\|x\\\\| of ``d_in``.', '', ':param k: how many.', ':Raises: ConfigError if k < 1.', '']
    """
    out: list[str] = []
    lines = [part for line in lines for part in _split(line)]
    i, n = 0, len(lines)
    while i < n:
        line = lines[i]
        heading = _HEADING.match(line)
        if heading:
            i = _section(heading, lines, i, out)
        elif line.lstrip().startswith(">>>"):
            _blank(out)
            while i < n and lines[i].strip():
                out.append(lines[i])
                i += 1
        elif line.rstrip().endswith("::"):
            out.append(escape(line))
            i += 1
            while i < n and (not lines[i].strip() or lines[i].startswith(" ")):
                out.append(lines[i])
                i += 1
        else:
            out.append(escape(line))
            i += 1
    _blank(out)
    between = {
        i for i in range(1, len(out) - 1) if not out[i] and _FIELD.match(out[i - 1]) and _FIELD.match(out[i + 1])
    }
    return [line for i, line in enumerate(out) if i not in between]


def _split(line: str) -> list[str]:
    """Give a section that begins after a sentence ("Return it. Raises: ConfigError.") a line of its own."""
    inline = None if line.startswith((" ", ">>>")) else _INLINE.match(line)
    return [inline["before"], inline["section"]] if inline else [line]


def escape(text: str) -> str:
    """Escape markup outside code, and write code in double backticks."""
    parts = _CODE.split(text)
    return "".join(f"``{part.strip('`')}``" if i % 2 else _MARKUP.sub(r"\\\1", part) for i, part in enumerate(parts))


def _section(heading: "re.Match[str]", lines: list[str], i: int, out: list[str]) -> int:
    """Append one section as fields; return the index of the line after it."""
    name, first = heading["name"], heading["text"] or ""
    body, i = [first] if first else [], i + 1
    while i < len(lines) and lines[i].strip() and not _HEADING.match(lines[i]) and not lines[i].startswith(">>>"):
        body.append(lines[i])
        i += 1
    if out and not out[-1].startswith((":", "    ")):
        _blank(out)
    if name not in _ITEMS:
        out.append(f":{name}: {' '.join(escape(line.strip()) for line in body)}")
        return i
    indent = min((len(line) - len(line.lstrip()) for line in body), default=0)
    items: list[tuple[str, list[str]]] = []
    for line in body:
        item = _ITEM.match(line[indent:]) if not line[indent:].startswith(" ") else None
        if item:
            items.append((item["names"], [item["text"]]))
        elif items:
            items[-1][1].append(line.strip())
    for names, texts in items:
        for one in names.split(", "):
            out.append(f":{_ITEMS[name]} {escape(one)}: {' '.join(map(escape, texts))}")
    return i


def _blank(out: list[str]) -> None:
    if out and out[-1]:
        out.append("")


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if getattr(obj, "__module__", "diffprobe").split(".")[0] == "diffprobe" or what in (
        "attribute",
        "property",
        "data",
    ):
        lines[:] = convert(lines)


def setup(app: Any) -> dict[str, Any]:
    """Register the conversion."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
