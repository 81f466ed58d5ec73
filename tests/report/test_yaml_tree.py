"""What is read of a YAML file, and what is refused with its place."""

import os
from pathlib import Path

import pytest

from diffprobe.config.yaml_guard import MAX_BYTES
from diffprobe.core.errors import ConfigError
from diffprobe.report.yaml_tree import parse_yaml, read_yaml_tree

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_a_tree_comes_with_the_lines_of_its_keys() -> None:
    tree, lines = parse_yaml("a: 1\nb:\n  c: [x,\n    y]\n", where="t")
    assert tree == {"a": 1, "b": {"c": ["x", "y"]}}
    assert lines == {"a": 1, "b": 2, "b.c": 3, "b.c[0]": 3, "b.c[1]": 4}
    assert parse_yaml("", where="t") == (None, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"line 2: an alias \(\*a\)"),
        ("a: &a [*a]", r"line 1: an alias \(\*a\)"),
        ("base: &b {x: 1}\nt:\n  <<: *b", "line 3: an alias"),
        ("[" * 5000, "line 1: nested deeper than 32 levels"),
        ("[{b: " * 20, "nested deeper than 32 levels"),
        ("a: .nan", "line 1: 'a' is nan, expected a finite number"),
        ("a: {b: [1, .inf]}", r"'a.b\[1\]' is inf"),
        ("a: -.inf", "'a' is -inf"),
        ("a: 1.0e+999", "'a' is inf"),
        ("a: " + "9" * 50, "'a' is 9{40}, expected"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: 2020-13-45", "not valid YAML"),
        ("a: 1\na: 2", "repeated keys(.|\n)*'a': lines 1 and 2"),
        ("? [a, b]\n: 1", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a: '\x1b[2J'", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: [", "not valid YAML"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_a_table_does_not_need_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"t.*{message}"):
        parse_yaml(text, where="t")


def test_files_that_are_no_text_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_bytes(b"title: \xff\xfe")
    with pytest.raises(ConfigError, match=r"table.yaml is not valid YAML(.|\n)*not UTF-8"):
        read_yaml_tree(path)
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="262,145 bytes"):
        read_yaml_tree(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_yaml_tree(path)
