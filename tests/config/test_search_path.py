from pathlib import Path

import pytest

from diffprobe.config import search_path
from diffprobe.core.errors import ConfigError


def make(path: Path, text: str = "path: x\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def two_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A root named by the variable, and the working folder; both hold data/pets, one each something else."""
    named, here = tmp_path / "named", tmp_path / "here"
    make(named / "configs/data/pets.yaml", "path: named\n")
    make(here / "configs/data/pets.yaml", "path: here\n")
    make(here / "experiments/paper/row.yaml")
    make(here / "experiments/paper/table.yaml")
    monkeypatch.setenv(search_path.VARIABLE, str(named))
    monkeypatch.chdir(here)
    return named, here


def test_the_variable_comes_before_the_working_folder_before_the_shipped_root(two_roots: tuple[Path, Path]) -> None:
    assert search_path.roots() == [*two_roots, search_path.shipped_root()]
    assert search_path.find("data/pets") == two_roots[0] / "configs/data/pets.yaml"
    assert search_path.find("data/emoji") == search_path.shipped_root() / "configs/data/emoji.yaml"
    assert search_path.find("data/nothing") is None


def test_choices_of_all_roots_are_listed(two_roots: tuple[Path, Path]) -> None:
    groups = search_path.groups()
    assert {"pets", "emoji", "folder"} <= set(groups["data"])
    assert search_path.BASE not in groups


def test_tables_are_not_experiments(two_roots: tuple[Path, Path]) -> None:
    assert {"paper/row", "emoji/classifier"} <= set(search_path.experiments())
    assert "paper/table" not in search_path.experiments()


def test_files_are_shown_relative_where_possible(two_roots: tuple[Path, Path], tmp_path: Path) -> None:
    assert search_path.display(two_roots[1] / "configs/data/pets.yaml") == "configs/data/pets.yaml"
    assert search_path.display(two_roots[0] / "configs/data/pets.yaml") == "configs/data/pets.yaml"
    assert search_path.display(tmp_path / "elsewhere.yaml") == str(tmp_path / "elsewhere.yaml")


def test_a_variable_that_does_not_name_a_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(search_path.VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="DIFFPROBE_CONFIGS.*neither configs/ nor experiments/"):
        search_path.roots()
