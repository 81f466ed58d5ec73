"""The note of a failed run."""

from pathlib import Path

import pytest

from diffprobe.core.errors import NonFinite, SchemaError
from diffprobe.core.failure import FAILURE_FILE, failures_below, note_failure, read_failure

CONFIG = {"experiment": "paper/mid", "probe": {"kind": "sae"}}


def test_a_failure_is_read_as_it_was_noted(tmp_path: Path) -> None:
    path = note_failure(tmp_path / "paper/mid/abc", CONFIG, NonFinite("fvu is nan.", "epoch 3", fix="less"))
    found = read_failure(path)
    assert (found.run, found.experiment, found.error, found.message) == ("abc", "paper/mid", "NonFinite", "fvu is nan.")
    assert found.config == CONFIG
    assert read_failure(note_failure(tmp_path / "x", {}, ValueError())).message == "(no message)"


def test_one_with_a_result_beside_it_does_not_count(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        note_failure(tmp_path / name, CONFIG, RuntimeError(name))
    (tmp_path / "c" / "result.json").write_text("{}")
    assert [failure.run for failure in failures_below(tmp_path)] == ["a", "b"]
    assert list(failures_below(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("text", ["{}", "[]", '{"kind": "failure", "schema_version": 9}', '{"kind": "result"}', "{"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FAILURE_FILE).write_text(text)
    with pytest.raises(SchemaError, match=FAILURE_FILE):
        read_failure(tmp_path / FAILURE_FILE)
