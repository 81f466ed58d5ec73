import json
import os
import stat
from pathlib import Path

import pytest

from diffprobe import __version__
from diffprobe.core.artifact import (
    HEADER,
    dump_json,
    make_header,
    read_json,
    write_artifact,
    write_json_atomic,
)
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import NonFinite, SchemaError


def test_an_artifact_comes_back_with_its_header(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "thing.json"
    write_artifact(path, {"x": [1, 2.5], "y": "ä"}, kind="thing", schema_version=3, inputs={"shards": "ab"})
    tree = read_json(path, kind="thing", schema_version=3)
    assert tree.pop(HEADER) == {
        "kind": "thing",
        "schema_version": 3,
        "made_by": f"diffprobe {__version__}",
        "digest": digest_json({"x": [1, 2.5], "y": "ä"}),
        "inputs": {"shards": "ab"},
    }
    assert tree == {"x": [1, 2.5], "y": "ä"}


@pytest.mark.parametrize(
    "body",
    [{"a": {2: "x", 10: "y", 1: "z"}}, {"a": (1, (2.5, -0.0))}, {"a": 1e-300, "b": 10**18, "c": "\u2028ä"}],
    ids=ascii,
)
def test_what_was_written_is_read(tmp_path: Path, body: dict) -> None:
    """Keys that are numbers sort differently once they are text; the digest is that of the file."""
    write_artifact(tmp_path / "a", body, kind="thing", schema_version=1)
    read = read_json(tmp_path / "a", kind="thing", schema_version=1)
    assert read.pop(HEADER)["digest"] == digest_json(read) and read == json.loads(json.dumps(body))


@pytest.mark.parametrize(
    ("old", "new"), [('"x": 1', '"x": 2'), ('"x": 1', '"y": 1'), ('"x": 1', '"x": 1.0'), ('"x": 1', '"w": 0, "x": 1')]
)
def test_a_changed_artifact_is_refused_with_the_command_that_makes_it_anew(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "thing.json"
    write_artifact(path, {"x": 1}, kind="thing", schema_version=1)
    path.write_text(path.read_text().replace("  ", " "))
    read_json(path, kind="thing", schema_version=1)  # spaces and line breaks are not content
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(SchemaError, match=r"(?s)thing\.json' was modified .*fix: restore the file; or make thing 7"):
        read_json(path, kind="thing", schema_version=1, remake=lambda old: "make thing 7")


@pytest.mark.parametrize("digest", [None, "", 1, "00" * 32, ["x"]])
def test_an_artifact_without_a_digest_that_fits_is_refused(tmp_path: Path, digest: object) -> None:
    path = tmp_path / "thing.json"
    path.write_text(json.dumps({HEADER: {**make_header("thing", 1), "digest": digest}, "x": 1}))
    with pytest.raises(SchemaError, match="was modified"):
        read_json(path, kind="thing", schema_version=1)


def test_text_that_is_not_unicode_is_refused_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    with pytest.raises(SchemaError, match=r"text that is not Unicode: '.*\\udcff"):
        write_artifact(path, {"path": "data/\udcff"}, kind="thing", schema_version=1)
    path.write_text(json.dumps({HEADER: make_header("thing", 1), "x": "\udcff"}))
    with pytest.raises(SchemaError, match="not Unicode"):
        read_json(path, kind="thing", schema_version=1)


def test_equal_values_give_equal_text() -> None:
    assert dump_json({"b": 1, "a": 2}) == dump_json({"a": 2, "b": 1}) == '{\n  "a": 2,\n  "b": 1\n}\n'


def test_nan_is_refused_by_place_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    write_json_atomic(path, {"old": True})
    with pytest.raises(NonFinite) as caught:
        write_json_atomic(path, {"metrics": [{"value": float("nan")}]})
    assert "metrics[0].value = nan" in str(caught.value) and "thing.json" in str(caught.value)
    with pytest.raises(NonFinite, match=r"thing\.json"):
        write_artifact(path, {"x": float("inf")}, kind="thing", schema_version=1)
    assert json.loads(path.read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["thing.json"]


def test_what_json_cannot_hold_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json_atomic(tmp_path / "thing.json", {"x": object()})
    assert os.listdir(tmp_path) == []


def test_a_written_file_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_json_atomic(tmp_path / "thing.json", {})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "thing.json").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable JSON file"),
        ("[1]", "no artifact header"),
        ('{"kind": "thing"}', "no artifact header"),
        (json.dumps({HEADER: make_header("store", 1)}), "is an artifact 'store', expected 'thing'"),
        (json.dumps({HEADER: {**make_header("thing", 1), "schema_version": True}}), "has schema version True"),
        (json.dumps({HEADER: make_header("thing", 2)}), "has schema version 2 of 'thing', expected 1"),
    ],
)
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "thing.json"
    path.write_text(text)
    with pytest.raises(SchemaError, match=message) as caught:
        read_json(path, kind="thing", schema_version=1)
    assert str(path) in str(caught.value)


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thing.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SchemaError, match="not a readable JSON file"):
        read_json(tmp_path / "thing.json", kind="thing", schema_version=1)


def test_a_newer_file_asks_for_newer_code(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", {}, kind="thing", schema_version=9)
    with pytest.raises(SchemaError, match="fix: update diffprobe"):
        read_json(tmp_path / "a", kind="thing", schema_version=1)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a", kind="thing", schema_version=1)
