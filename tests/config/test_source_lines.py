from pathlib import Path

import pytest

from diffprobe.config.source_lines import origins, read_kind
from diffprobe.core.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.yaml").write_text("# note\npath: x\nfields:\n  image: [png]\n")
    (tmp_path / "row.yaml").write_text("kind: demo\ndefaults:\n  - a\ndata:\n  path: y\n")
    return tmp_path


def test_the_last_file_that_sets_a_key_is_its_origin(folder: Path) -> None:
    assert origins([("data/a", "data"), ("row", "")], [folder]) == {
        "data": ("row.yaml", 4),
        "data.path": ("row.yaml", 5),
        "data.fields": ("data/a.yaml", 3),
        "data.fields.image": ("data/a.yaml", 4),
    }
    assert origins([("row", "_global_"), ("data/a", "data")], [folder])["data.path"] == ("data/a.yaml", 2)


def test_files_outside_the_search_path_have_no_origin(folder: Path) -> None:
    assert origins([("hydra/output", "hydra")], [folder]) == {}


def test_the_kind_is_read_before_anything_is_merged(folder: Path) -> None:
    assert read_kind(folder / "row.yaml") == "demo"
    assert read_kind(folder / "data" / "a.yaml") is None
    (folder / "empty.yaml").write_text("")
    assert read_kind(folder / "empty.yaml") is None


@pytest.mark.parametrize("kind", ["[demo]", "{demo: 1}"])
def test_a_kind_is_one_word(folder: Path, kind: str) -> None:
    (folder / "row.yaml").write_text(f"seed: 1\nkind: {kind}\n")
    with pytest.raises(ConfigError, match=r"kind in row\.yaml, line 2"):
        read_kind(folder / "row.yaml")


def test_keys_of_nested_blocks_have_to_be_text_too(folder: Path) -> None:
    (folder / "odd.yaml").write_text("data:\n  limit: 3\n  3: x\n")
    with pytest.raises(ConfigError, match=r"key '3' in odd\.yaml, line 3, has YAML type int"):
        read_kind(folder / "odd.yaml")
