import json
from pathlib import Path

import pytest

from diffprobe.core.audit_file import FORMAT, read_audit_tree, write_audit
from diffprobe.core.errors import SchemaError


def test_a_file_has_the_rates_and_what_made_them(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    write_audit(path, {"cook": (0.9, 0.8, 0.95)}, level=0.95, made_by="diffprobe eval rates")
    assert json.loads(path.read_text("utf-8")) == {
        "format": FORMAT, "level": 0.95, "rates": {"cook": {"rate": 0.9, "low": 0.8, "high": 0.95}},
        "made_by": "diffprobe eval rates",
    }  # fmt: skip
    write_audit(path, {"judge": (0.0, 0.0, 0.1)}, level=0.9)
    assert set(json.loads(path.read_text("utf-8"))) == {"format", "level", "rates"}


def test_a_rate_that_is_not_a_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_audit(tmp_path / "audit.json", {"cook": (float("nan"), 0.0, 1.0)}, level=0.95)
    assert not (tmp_path / "audit.json").exists()


def test_a_file_is_read_back_and_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    write_audit(path, {"cook": (0.9, 0.8, 0.95)}, level=0.95)
    assert read_audit_tree(path)["rates"] == {"cook": {"rate": 0.9, "low": 0.8, "high": 0.95}}
    path.write_text('{"format": "diffprobe.audit/2"}', "utf-8")
    with pytest.raises(SchemaError, match="diffprobe.audit/2.*diffprobe.audit/1"):
        read_audit_tree(path)
