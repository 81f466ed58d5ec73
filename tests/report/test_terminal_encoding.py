"""Streams that cannot encode every character."""

import io

import pytest

from diffprobe.report.terminal_encoding import _ASCII, replace_unencodable


def written(encoding, text, **settings):
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, newline="\n", **settings)
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
def test_a_stream_writes_what_it_can(encoding, expected):
    assert written(encoding, "13.3 ‡ ± 0.2, man’s 茶") == expected


def test_substitutes_are_ascii():
    assert all(plain.isascii() for plain in _ASCII.values())


def test_a_stream_that_handles_its_errors_is_left_alone():
    assert written("ascii", "‡", errors="xmlcharrefreplace") == "&#8225;"
    text = io.StringIO()
    replace_unencodable(text)
    assert text.errors is None
