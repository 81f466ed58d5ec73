import pickle

import pytest

from diffprobe.core import errors
from diffprobe.core.errors import ConfigError, DiffprobeError, UnknownName, UnknownTap, nearest, unknown


def family() -> list[type[DiffprobeError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [cls for cls in found if issubclass(cls, DiffprobeError) and cls is not DiffprobeError]


def test_a_message_has_what_then_details_then_the_fix() -> None:
    error = DiffprobeError(
        "no shard in 'data'.", "looked for: *.tar", "found: readme.txt", fix="diffprobe data index data"
    )
    assert str(error).splitlines() == [
        "no shard in 'data'.",
        "  looked for: *.tar",
        "  found: readme.txt",
        "  fix: diffprobe data index data",
    ]


@pytest.mark.parametrize("cls", family(), ids=lambda cls: cls.__name__)
def test_each_error_is_also_a_built_in_exception(cls: type[DiffprobeError]) -> None:
    builtin = (KeyError, ValueError, FileNotFoundError, RuntimeError)
    assert issubclass(cls, builtin) and cls.__doc__
    assert str(cls("what.", fix="do")) == "what.\n  fix: do"  # KeyError alone would print the repr


@pytest.mark.parametrize("cls", [DiffprobeError, *family()], ids=lambda cls: cls.__name__)
def test_errors_can_be_sent_between_processes(cls: type[DiffprobeError]) -> None:
    error = pickle.loads(pickle.dumps(cls("what.", "detail", fix="do")))
    assert type(error) is cls and str(error) == "what.\n  detail\n  fix: do"


def test_unknown_lists_the_nearest_first_and_then_all() -> None:
    error = unknown("tap", "up_block.1", ["up_blocks.1", "conv_in"], UnknownTap)
    assert isinstance(error, UnknownTap)
    assert str(error).splitlines() == [
        "unknown tap 'up_block.1'.",
        "  nearest: up_blocks.1",
        "  allowed: conv_in, up_blocks.1",
    ]


def test_unknown_without_anything_near_or_allowed() -> None:
    assert str(unknown("probe", "qqq", [])) == "unknown probe 'qqq'.\n  allowed: (none)"
    assert isinstance(unknown("probe", "qqq", []), UnknownName) and not isinstance(unknown("p", "q", []), ConfigError)


def test_nearest_is_ordered_and_bounded() -> None:
    assert nearest("learning_rte", ["learning_rate", "k", "learning_rates", "d_in"], n=2) == [
        "learning_rate",
        "learning_rates",
    ]


def test_a_long_part_of_a_message_shows_both_ends() -> None:
    lines = str(ConfigError("x" * 1990, "value is " + "7" * 5000 + " here")).splitlines()
    assert lines[0] == "x" * 1990
    assert len(lines[1]) < 2100 and lines[1].startswith("  value is 777") and lines[1].endswith("777 here")
    assert "[3,114 characters]" in lines[1]
