"""What messages advise exists: commands parse, settings are keys that a configuration takes.

Reads every `fix=` of the code. `tests/config/test_advice.py` follows the advice that is made at run time.
"""

import argparse
import ast
import re
import shlex
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest

from diffprobe.cli.main import VERBS
from diffprobe.config import search_path
from diffprobe.config.cluster import ClusterConfig
from diffprobe.config.kinds import KINDS, PROBE
from tests.docs.markdown import ROOT

_SETTING = re.compile(
    r"(?<![\w.=/@-])((?:[a-z_]+\.)+[a-z_]+|seed|output|control)=(\[[^\]\s]*\]|\"[^\"]*\"|[\w./@*-]+)?"
)
_COMMAND = re.compile(r"diffprobe (?!again)[a-z]+(?: [^;,]*)?")


def fixes() -> list[tuple[str, str]]:
    """Return (place, text) of every `fix=` in the code; what is filled in at run time is `X`."""
    found = []
    for path in sorted((ROOT / "diffprobe").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "fix":
                for text in texts(node.value):
                    found.append((f"{path.relative_to(ROOT).as_posix()}:{node.value.lineno}", text))
    return found


def texts(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)]
    if isinstance(node, ast.IfExp):
        return [*texts(node.body), *texts(node.orelse)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in texts(value)]
    return []


FIXES = fixes()


@cache
def keys() -> frozenset[str]:
    """Return all dotted keys of all kinds, as far as they are dataclasses."""
    found: set[str] = set()

    def collect(cls: type, at: str) -> None:
        hints = get_type_hints(cls)
        for field in fields(cls):
            full = f"{at}{field.name}"
            found.add(full)
            hint = hints[field.name]
            for arm in (hint, *getattr(hint, "__args__", ())):
                if hasattr(arm, "__dataclass_fields__"):
                    collect(arm, f"{full}.")

    for kind in KINDS.values():
        collect(kind.load(), "")
    collect(ClusterConfig, "cluster.")
    return frozenset(found)


def test_there_is_advice_to_test() -> None:
    assert len(FIXES) > 120
    assert sum(bool(_SETTING.search(text)) for _, text in FIXES) > 40
    assert sum("diffprobe " in text for _, text in FIXES) > 10


@pytest.mark.slow  # imports all libraries
def test_advised_settings_are_keys() -> None:
    known = keys()
    free = ("probe.params.", "probe.grid.", "data.caps.", "ends.")
    unknown = []
    for place, text in FIXES:
        for match in _SETTING.finditer(text):
            if match[1] not in known and not match[1].startswith(free):
                unknown.append(f"{place}: {match[0]}")
    assert not unknown


def options_of(parser: argparse.ArgumentParser, words: list[str]) -> set[str] | None:
    """Return the options of a verb with the sub-verbs that a command names; None for a sub-verb that it has not."""
    options = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words:
            if words[0] not in action.choices:
                return None if words[0] != "X" else options
            inner = options_of(action.choices[words[0]], words[1:])
            return None if inner is None else options | inner
    return options


def test_advised_commands_parse() -> None:
    wrong = []
    for place, text in FIXES:
        for match in _COMMAND.finditer(text):
            verb, *words = shlex.split(re.sub(r"[\"']", "", match[0]), comments=True)[1:]
            known = None
            if verb in VERBS.names():
                parser = argparse.ArgumentParser(exit_on_error=False)
                VERBS.load(verb).add_arguments(parser)
                known = options_of(parser, ["emoji" if word == "X" else word for word in words])
            if known is None or {word for word in words if word.startswith("--")} - known:
                wrong.append(f"{place}: {match[0]}")
    assert not wrong


@pytest.mark.slow  # imports all libraries
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_key_has_the_name_of_a_group(kind: str) -> None:
    """`data=FOLDER` chooses a preset; a plain key of that name could not be set on the command line."""
    plain = {
        field.name
        for field in fields(KINDS[kind].load())
        if f"{field.name}." not in "".join(f"{key} " for key in keys())
    }
    assert plain & set(search_path.groups()) == set()


@pytest.mark.slow  # imports all libraries
def test_a_wrong_setting_would_be_found() -> None:
    assert _SETTING.findall("use trainer.resum=false; or seed=3 and x=1") == [("trainer.resum", "false"), ("seed", "3")]
    assert "trainer.resum" not in keys() and {"trainer.resume", "data.fields.image", "panels.n_top"} <= keys()
    assert KINDS[PROBE].verb == "train" and Path(ROOT / "diffprobe").is_dir()
