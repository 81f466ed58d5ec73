"""Lines of finished measurements: found by all of their key, and after an end in the middle of a line."""

from pathlib import Path

import pytest

from diffprobe.benchmarks.kept_lines import KeptLines


def test_a_measurement_is_found_by_all_of_its_key(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    kept = KeptLines(file, {"rows": "abc"})
    assert kept.find({"rate": 0.001}) is None
    kept.add({"rate": 0.001}, {"fvu": 0.1 + 0.2, "dead": None})
    kept.add({"rate": 0.003}, {"fvu": 0.5})
    assert KeptLines(file, {"rows": "abc"}).find({"rate": 0.001}) == {"fvu": 0.1 + 0.2, "dead": None}
    assert KeptLines(file, {"rows": "abd"}).find({"rate": 0.001}) is None and kept.find({"rate": 0.01}) is None
    kept.add({"rate": 0.003}, {"fvu": 0.4})
    assert kept.find({"rate": 0.003}) == {"fvu": 0.4}


def test_a_line_without_its_end_is_missing_and_harms_no_other(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    kept = KeptLines(file, {})
    kept.add({"n": 1}, {"fvu": 1.0})
    kept.add({"n": 2}, {"fvu": 2.0})
    file.write_bytes(file.read_bytes()[:-9])
    assert kept.find({"n": 1}) == {"fvu": 1.0} and kept.find({"n": 2}) is None
    kept.add({"n": 2}, {"fvu": 3.0})
    assert kept.find({"n": 1}) == {"fvu": 1.0} and kept.find({"n": 2}) == {"fvu": 3.0}


def test_without_a_file_nothing_is_kept(tmp_path: Path) -> None:
    kept = KeptLines(None, {})
    kept.add({"n": 1}, {"fvu": 1.0})
    assert kept.find({"n": 1}) is None and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="JSON"):
        KeptLines(tmp_path / "a", {}).add({}, {"fvu": float("nan")})
