"""Every way in which JSON can be wrong gives the caller's error, with the place."""

import os
from pathlib import Path

import pytest

from diffprobe.core.errors import SchemaError, WeightsMismatch
from diffprobe.core.json_file import expect, parse_json, read_json_file, read_json_object

WRONG = {
    "truncated": (b'{"a": [1, 2', "delimiter"),
    "empty": (b"", "Expecting value"),
    "not UTF-8": (b'{"a": "\xff"}', "UTF-8"),
    "a key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' occurs twice"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "infinity": (b"[-Infinity]", "-Infinity"),
    "infinity by overflow": (b'{"a": 1e999}', "1e999"),
    "nested far too deeply": (b"[" * 200_000, "too deeply"),
    "nested deeper than allowed": (b"[" * 70 + b"]" * 70, "64 levels"),
    "deep behind a shallow element": (b"[1, {}, " + b"[" * 70 + b"]" * 71, "64 levels"),
    "a number without end": (b'{"a": ' + b"9" * 10_000 + b"}", "too many digits"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
}


@pytest.mark.parametrize("text, cause", WRONG.values(), ids=list(WRONG))
def test_wrong_json_is_named(text: bytes, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(WeightsMismatch, match=cause) as found:
        read_json_file(path, error=WeightsMismatch)
    assert str(path) in str(found.value)


def test_right_json_is_read() -> None:
    text = '{"a": [1, 2.5, null, true], "b": {"c": "\\u00e9"}}'
    assert parse_json(text, where="here") == {"a": [1, 2.5, None, True], "b": {"c": "é"}}
    nested = parse_json("[" * 64 + "]" * 64, where="here")
    assert isinstance(nested, list)


def test_another_type_and_a_large_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text("[1, 2]")
    with pytest.raises(SchemaError, match="expected an object, found a list"):
        read_json_object(path)
    with pytest.raises(SchemaError, match="6 bytes.*5"):
        read_json_file(path, max_bytes=5)
    with pytest.raises(SchemaError, match="expected int, found bool"):
        expect(True, int, where="n_samples")


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "pipe.json"
    os.mkfifo(path)
    with pytest.raises(SchemaError, match="not a regular file"):
        read_json_file(path)
    with pytest.raises(FileNotFoundError):
        read_json_file(tmp_path / "none.json")
