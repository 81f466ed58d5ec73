"""Methods named as `module:callable`."""

from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.evaluation.certificates.method import call, is_callable_name, load_callable

CODE = """
value = 3

def two(a, b):
    return a + b

def broken(a, b):
    raise KeyError("lost")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"lab_{abs(hash(tmp_path)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_callable_of_the_working_folder_is_imported(module: str) -> None:
    assert load_callable(f"{module}:two", "(a, b) -> c", 2)(1, 2) == 3


@pytest.mark.parametrize(
    ("name", "fact"), [("value", "int"), ("missing", "no such name"), ("two", "3 positional arguments")]
)
def test_what_does_not_fit_is_refused_with_the_signature(module: str, name: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact) as caught:
        load_callable(f"{module}:{name}", "(a, b, c) -> d", 3)
    assert any("(a, b, c) -> d" in line for line in caught.value.details)


def test_a_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(ConfigError, match="no_such_lab"):
        load_callable("no_such_lab:f", "()", 0)


def test_an_error_of_the_callable_is_reported(module: str) -> None:
    broken = load_callable(f"{module}:broken", "(a, b) -> c", 2)
    with pytest.raises(RunFailed, match="KeyError: 'lost'"):
        call(broken, f"{module}:broken", "(a, b) -> c", 1, 2)


def test_an_existing_path_is_not_a_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_callable_name("a.b:c") and not is_callable_name("a/b:c") and not is_callable_name("runs")
    (tmp_path / "a:b").mkdir()
    assert not is_callable_name("a:b")
