"""Text on a stream that cannot encode all of it. Owns what stands for a mark on a Latin-1 terminal."""

import codecs
from typing import Any

_HANDLER = "diffprobe.plain"
_PLAIN = {
    "‡": "^", "±": "+-", "✓": "*", "→": "->", "×": "x", "−": "-", "–": "-", "—": "--", "…": "...",
    "‘": "'", "’": "'", "“": '"', "”": '"', "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip


def print_what_can_be(stream: Any) -> None:
    """Let a stream write a plain mark, or ?, for a character that its encoding lacks, where it would raise.

    A stream whose errors are already handled in another way, or that encodes nothing, stays as it is.
    """
    if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
        codecs.register_error(_HANDLER, _plainly)
        stream.reconfigure(errors=_HANDLER)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(char, "?") for char in error.object[error.start : error.end]), error.end
