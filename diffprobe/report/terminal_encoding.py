"""Replacement of characters that the encoding of an output stream lacks, for example on Latin-1 terminals."""

import codecs
from typing import Any

_HANDLER = "diffprobe.ascii"
_ASCII = {
    "‡": "^", "±": "+-", "✓": "*", "→": "->", "×": "x", "−": "-", "–": "-", "—": "--", "…": "...",
    "‘": "'", "’": "'", "“": '"', "”": '"', "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip


def replace_unencodable(stream: Any) -> None:
    """Make a stream write an ASCII substitute, or ?, for characters that it cannot encode, where it would raise.

    Streams with another error handler, and those without an encoding, are not changed.
    """
    if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
        codecs.register_error(_HANDLER, _substitute)
        stream.reconfigure(errors=_HANDLER)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(char, "?") for char in error.object[error.start : error.end]), error.end
