"""The pages on errors and promises: each quoted message occurs in the code, each command and setting exists."""

import ast
import re
import shlex
from functools import cache

import pytest

from diffprobe.cli.main import FAULT
from diffprobe.core.signals import INTERRUPTED, TERMINATED
from tests.docs.markdown import ROOT, text_of
from tests.docs.test_advice import _SETTING, keys

ERRORS, PROMISES = ROOT / "docs/users/troubleshooting.md", ROOT / "docs/users/promises.md"
SETTINGS_OF_OTHERS = {"hydra.run.dir", "config.KEY"}


def rows(path) -> list[list[str]]:
    """Return the cells of all rows of a page's tables, without heads."""
    found = []
    for line in text_of(path).splitlines():
        if line.startswith("| ") and "`" in line:
            found.append([cell.strip() for cell in re.split(r"(?<!\\) \| | ?\|$|^\| ", line)[1:-1]])
    return found


@cache
def texts() -> tuple[str, ...]:
    """Return every text of the code, with nothing where values are filled in."""
    found = []
    for path in sorted((ROOT / "diffprobe").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def occurs(message: str) -> bool:
    """Return whether the parts of a message, between its `...`, occur in this order in one text of the code."""
    parts = [re.escape(part) for part in re.split(r" ?\.\.\. ?", message) if part]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in texts())


MESSAGES = [row[0].strip("`") for row in rows(ERRORS) if len(row) == 3]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_occurs_in_the_code(message: str) -> None:
    assert occurs(message)


def test_there_are_messages_of_each_part_and_a_wrong_one_would_be_found() -> None:
    assert len(MESSAGES) >= 45
    assert not occurs("no such message as this one") and not occurs("has no artifact ... header header")
    assert occurs("'...' has no artifact header.")


def test_the_exit_statuses_are_those_of_the_code() -> None:
    found = re.findall(r"^\| (\d+) \|", text_of(ERRORS), re.MULTILINE)
    assert [int(number) for number in found] == [0, 1, 2, FAULT, INTERRUPTED, TERMINATED]


COMMANDS = [span for row in rows(PROMISES) for span in re.findall(r"`([^`]+)`", row[-1])]


@pytest.mark.parametrize("command", list(dict.fromkeys(COMMANDS)))
def test_a_promise_has_a_command_that_exists(command: str) -> None:
    """Commands of diffprobe are parsed by `test_commands.py`."""
    words = shlex.split(command)
    if words[0] == "diffprobe":
        return
    assert words[:3] == ["python", "-m", "pytest"]
    paths = [word for word in words[3:] if word.startswith("tests")]
    assert paths and all((ROOT / path).exists() for path in paths)
    assert {word for word in words[3:] if word not in paths} <= {"-m", "slow"}
    if "slow" not in words:
        assert any("def test_" in (ROOT / path).read_text("utf-8") for path in paths if path.endswith(".py")) or all(
            (ROOT / path).is_dir() for path in paths
        )


def test_every_promise_has_a_command() -> None:
    promised = rows(PROMISES)
    assert len(promised) >= 25 and all(re.search(r"`(python -m pytest|diffprobe) [^`]+`", row[-1]) for row in promised)


@pytest.mark.slow  # imports all libraries
@pytest.mark.parametrize("path", [ERRORS, PROMISES], ids=lambda path: path.name)
def test_settings_exist(path) -> None:
    spans = " ; ".join(re.findall(r"`([^`]+)`", text_of(path)))
    given = {match[1] for match in _SETTING.finditer(spans)}
    known = (*keys(), *SETTINGS_OF_OTHERS)
    assert {key for key in given if key not in known and not key.startswith(("probe.grid.", "probe.params."))} == set()
