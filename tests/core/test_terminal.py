"""What a terminal receives: no codes from foreign text, and only characters that its encoding has."""

import io
import logging
import subprocess
import sys
import unicodedata

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.core.terminal import _ASCII, TerminalStream, one_line, printable, replace_unencodable, terminal_output

HOSTILE = {
    "\x1b[2J": r"\x1b[2J",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x9b31m": r"\x9b31m",
    "a\rb": r"a\x0db",
    "a\x08\x7f": r"a\x08\x7f",
    "\u202egpj.exe": r"\u202egpj.exe",
    "\u2066x\u2069": r"\u2066x\u2069",
    "a\u200bb\ufeff": r"a\u200bb\ufeff",
    "\u2028": r"\u2028",
    "\udcff": r"\udcff",
    "\U000e0041": r"\U000e0041",
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items(), ids=ascii)
def test_codes_are_shown_as_text(text: str, shown: str) -> None:
    assert printable(f"ä\t{text}\n") == f"ä\t{shown}\n"
    assert one_line(f"ä {text}") == f"ä {shown}"


def test_every_control_and_format_character_is_escaped_and_nothing_else() -> None:
    unsafe = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    for code in range(0x110000):
        char = chr(code)
        kept = printable(char) == char
        if unicodedata.category(char) == "Cn":  # not assigned: free to either side
            continue
        assert kept == (unicodedata.category(char) not in unsafe or char in "\n\t"), hex(code)


def test_one_line_joins_lines() -> None:
    assert one_line("\na:\n\t b  c\r\n") == r"a: b  c\x0d"
    assert str(ConfigError("bad\n  fix: rm", "\x1b[1mx", fix="a\nb")) == "bad fix: rm\n  \\x1b[1mx\n  fix: a b"


def test_a_stream_is_that_of_the_terminal_but_for_its_codes() -> None:
    file = io.StringIO()
    stream = TerminalStream(file)
    print("x\x1b[1m", "y", file=stream, sep="\r")
    stream.writelines(["\x07\n"])
    assert file.getvalue() == "x\\x1b[1m\\x0dy\n\\x07\n"
    assert stream.getvalue() == file.getvalue() and not stream.isatty()
    with pytest.raises(AttributeError):
        _ = TerminalStream.__new__(TerminalStream).encoding


def test_everything_printed_and_logged_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_output():
        print("a\x1b[31m")
        print("b\x9bm", file=sys.stderr)
        logger, handler = logging.getLogger("diffprobe.test"), logging.StreamHandler()
        logger.addHandler(handler)
        logger.error("d\u202e")
        logger.removeHandler(handler)
        with terminal_output():
            assert isinstance(sys.stdout, TerminalStream) and not isinstance(sys.stdout._stream, TerminalStream)
    assert not isinstance(sys.stdout, TerminalStream)
    out, err = capsys.readouterr()
    assert out == "a\\x1b[31m\n"
    assert "b\\x9bm" in err and "d\\u202e" in err
    assert printable(out + err) == out + err


def test_progress_bars_keep_their_codes_and_what_is_printed_beside_them_does_not() -> None:
    code = """if True:
        import sys, warnings
        from rich.console import Console
        from tqdm import tqdm
        from diffprobe.core.progress import ProgressDisplay
        from diffprobe.core.terminal import terminal_output
        with terminal_output():
            with ProgressDisplay(console=Console(force_terminal=True)) as display:
                with display.bar(2, "key \\x1b[5m\\u202e", unit="\\x1b[6m") as bar:
                    print("\\x1b[7mmarked\\x1b]8;;http://x\\x1b\\\\link", flush=True)
                    bar.update(2)
            for _ in tqdm(range(2), desc="t\\x1b[9m", file=sys.stderr):
                pass
            warnings.warn("c\\x1b]0;t\\x07")
        raise ValueError("left\\x1b[4m")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 1 and "\x1b[?25l" in out and "2/2" in out and "\r" in err
    for text in (out, err):
        assert "\u202e" not in text and "\x1b]" not in text
        for code in "45679":
            assert f"\x1b[{code}m" not in text
    for shown in (r"key \x1b[5m\u202e", r"\x1b[6m", r"\x1b[7mmarked\x1b]8;;"):
        assert shown in out
    assert r"t\x1b[9m" in err and r"c\x1b]0;t\x07" in err and r"ValueError: left\x1b[4m" in err


def written(encoding: str, text: str, errors: str | None = None) -> str:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, newline="\n", errors=errors)
    replace_unencodable(stream)
    print(text, end="", file=stream, flush=True)
    return buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "13.3 ‡ ± 0.2, man’s 茶"),
        ("latin-1", "13.3 ^ ± 0.2, man's ?"),
        ("cp1252", "13.3 ‡ ± 0.2, man’s ?"),
        ("ascii", "13.3 ^ +- 0.2, man's ?"),
    ],
)
def test_a_stream_writes_what_it_can(encoding: str, expected: str) -> None:
    assert written(encoding, "13.3 ‡ ± 0.2, man’s 茶") == expected


def test_substitutes_are_ascii() -> None:
    assert all(plain.isascii() for plain in _ASCII.values())


def test_a_stream_that_handles_its_errors_is_left_alone() -> None:
    assert written("ascii", "‡", errors="xmlcharrefreplace") == "&#8225;"
    text = io.StringIO()
    replace_unencodable(text)
    assert text.errors is None
