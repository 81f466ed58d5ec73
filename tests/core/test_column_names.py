"""Attribute names beside the names of diffprobe."""

import pytest

from diffprobe.core.column_names import RESERVED, column_faults, describe_faults, path_part


def test_ordinary_names_pass() -> None:
    names = ["style", "5_o_Clock_Shadow", "hair/colour", "class", "index", "shard", "split", "Größe", "a b", "50 %"]
    assert column_faults(names) == {}


@pytest.mark.parametrize(
    "name", [*RESERVED, "Label", "CAPTION", "", " ", "tone ", "a\x1b[2J", "a\u202eb", "\n", "x" * 121]
)
def test_a_name_that_cannot_be_kept_apart_is_one_fault(name: str) -> None:
    faults = column_faults(["style", name])
    assert list(faults) == [name]
    (line,) = describe_faults(faults)
    assert line.startswith("attribute ") and line.isprintable()


def test_names_that_a_file_system_would_join_are_a_fault() -> None:
    assert list(column_faults(["Male", "male", "tone"])) == ["male"]
    assert len(column_faults(["caf\u00e9", "cafe\u0301"])) == 1  # composed and decomposed


def test_parts_of_paths_stay_inside_and_apart() -> None:
    names = ["..", ".", "../x", "/etc", "a/b", "a%2Fb", "a\\b", "c:", ".hidden", "a\nb", "%", "plain name"]
    parts = [path_part(name) for name in names]
    assert len(set(parts)) == len(names)
    for part in parts:
        assert "/" not in part and "\\" not in part and not part.startswith(".")
    assert path_part("plain name") == "plain name"
