"""Text for terminals: control characters of foreign text are escaped, and characters that an encoding lacks replaced.

Keys, captions, class names, file names and messages of libraries can contain codes that move the cursor, recolour or
hide text, set the window's title, or reverse the order of letters. `terminal_output` wraps stdout and stderr, so that
everything that a command prints shows such a code as text: `\\x1b`. Standard library only.
"""

import codecs
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

_HANDLER = "diffprobe.ascii"
_ASCII = {
    "‡": "^", "±": "+-", "✓": "*", "→": "->", "×": "x", "−": "-", "–": "-", "—": "--", "…": "...",
    "‘": "'", "’": "'", "“": '"', "”": '"', "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip
_FORMAT = (
    "\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e007f\ud800-\udfff"
)
"""Invisible characters: bidirectional controls, zero width, line separators, tags; and halves of surrogate pairs."""
_UNSAFE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_FORMAT}]")
_UNSAFE_IN_LINE = re.compile(f"[\x00-\x1f\x7f-\x9f{_FORMAT}]")
_DRAWING = re.compile(r"\r|\x1b\[[0-9;]*[mABCDGJK]|\x1b\[\?25[hl]")
"""What a progress bar consists of: return, colours, moves of the cursor, erasing, hiding the cursor."""
_TQDM = re.compile(r"\A(?:\r|\n|\x1b\[A)+")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def printable(text: str) -> str:
    r"""Return a text with control characters and invisible ones escaped; line breaks and tabs stay.

    >>> print(printable("cat\x1b[2J\u202egpj.exe"))
    cat\x1b[2J\u202egpj.exe
    """
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Return a text as one printable line: line breaks with the spaces around them become one space.

    >>> one_line("shape mismatch:\n    [3] and [4]\x07")
    'shape mismatch: [3] and [4]\\x07'
    """
    return _UNSAFE_IN_LINE.sub(_escape, re.sub(r"[^\S\n]*\n\s*", " ", text.strip("\n")))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class TerminalStream:
    """A text stream that escapes control characters, except those with which libraries draw.

    A progress bar (rich, tqdm) keeps the codes that it consists of; colours of W&B are left out. What a library draws
    is recognised by the module that calls `write`. Everything but `write` is that of the stream.

    Args:
        stream: where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text with its control characters escaped. Returns: its number of characters."""
        if not (text.isascii() and text.isprintable()):
            caller = str(sys._getframe(1).f_globals.get("__name__", ""))
            self._stream.write(_for_terminal(text, caller.partition(".")[0]))
        else:
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # not set yet: a copy of an unfinished object
            raise AttributeError(name)
        return getattr(self._stream, name)


def _for_terminal(text: str, library: str) -> str:
    if library == "rich":
        kept, parts = _DRAWING.findall(text), _DRAWING.split(text)
        return "".join(printable(part) + code for part, code in zip(parts, [*kept, ""], strict=True))
    if library == "tqdm":
        start = _TQDM.match(text)
        return start[0] + printable(text[start.end() :]) if start else printable(text)
    if library in ("wandb", "click"):
        return printable(_COLOUR.sub("", text))
    return printable(text)


@contextmanager
def terminal_output() -> Iterator[None]:
    """Make stdout and stderr escape control characters and replace characters that they cannot encode.

    The traceback of an exception that leaves the program is escaped as well.
    """
    before = sys.stdout, sys.stderr
    for name, stream in (("stdout", before[0]), ("stderr", before[1])):
        if stream is not None and not isinstance(stream, TerminalStream):
            replace_unencodable(stream)
            setattr(sys, name, TerminalStream(stream))
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_exception
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _print_exception(cls: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(printable("".join(traceback.format_exception(cls, error, trace))))


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
