"""Tables of captions and attributes: meanings of columns, missing values, and lines that are refused."""

import json
from pathlib import Path

import pytest

from diffprobe.core.errors import ShardError
from diffprobe.shards.annotation_table import match, read_table


def test_a_csv_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        '\ufefffile_name,text,breed,class\n./a/1.jpg,"a cat, black",siamese,cat\na/2.jpg,,NaN,cat\n', "utf-8"
    )
    assert read_table(path) == {
        "a/1.jpg": {"caption": "a cat, black", "attributes": {"breed": "siamese"}, "class_name": "cat"},
        "a/2.jpg": {"class_name": "cat"},
    }
    path.with_suffix(".tsv").write_text("name\tlabel\na/1.jpg\t3\n")
    assert read_table(path.with_suffix(".tsv"), file_column="name") == {"a/1.jpg": {"label": 3}}


def test_a_jsonl_table(tmp_path: Path) -> None:
    rows = [{"image": "1.jpg", "captions": ["a", "b"], "age": 3, "old": False, "x": None}, {"image": "2.jpg", "age": 4}]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    assert read_table(path) == {
        "1.jpg": {"caption": "a", "captions": ["a", "b"], "attributes": {"age": "3", "old": "false"}},
        "2.jpg": {"attributes": {"age": "4"}},
    }


@pytest.mark.parametrize(
    ("name", "text", "facts"),
    [
        ("t.xlsx", "x", "not a table"),
        ("t.csv", "", "no column|no row"),
        ("t.csv", "a,b\n1,2\n", "no column that names the files(?s:.*)its columns: a, b"),
        ("t.csv", "file,b\n1.jpg\n", "line 2: 1 values for 2 columns"),
        ("t.csv", "file,b\n1.jpg,2\n,3\n", "line 3: column 'file' does not name"),
        ("t.csv", "file,b\n1.jpg,2\n./1.jpg,3\n", "line 3: '1.jpg' was already named in line 2"),
        ("t.csv", "file,b,b\n1.jpg,2,3\n", "'b' twice"),
        ("t.csv", "file,caption,text\n1.jpg,2,3\n", "several columns for caption: caption, text"),
        ("t.csv", "file,key\n1.jpg,2\n", "attribute 'key'"),
        ("t.csv", "file,label\n1.jpg,cat\n", "column 'label' is 'cat'"),
        ("t.csv", 'file,b\n1.jpg,"2\n', "not readable as CSV"),
        ("t.csv", "file,captions\n1.jpg,a\n", "list of texts"),
        ("t.jsonl", '{"file": "1.jpg"}\n{\n', "1 lines .*(?s:.*)line 2"),
        ("t.jsonl", "[1]\n", "line 1: expected an object"),
        ("t.jsonl", '{"file": "1.jpg", "a": {"b": 1}}\n', "column 'a' must be one value"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, name: str, text: str, facts: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ShardError, match=facts):
        read_table(tmp_path / name)


def test_a_missing_table_and_other_bytes(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="not found"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"file\n\xff.jpg\n")
    with pytest.raises(ShardError, match="line 2: not UTF-8"):
        read_table(tmp_path / "t.csv")


def test_files_and_lines_without_each_other() -> None:
    lacking, missing = match(["a", "b"], {"b": {}, "c": {}}, Path("t.csv"))
    assert [line.split(":")[0] for line in (*lacking, *missing)] == ["a", "c"]
