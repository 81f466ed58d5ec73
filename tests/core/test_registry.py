import sys
from pathlib import Path

import pytest

from diffprobe.core.errors import UnknownName
from diffprobe.core.registry import Registry


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    folder = tmp_path / "registry_under_test"
    folder.mkdir()
    for name in ("__init__", "topk", "linear", "_shared"):
        (folder / f"{name}.py").write_text(f"NAME = {name!r}\n")
    (folder / "base.py").write_text("")
    (folder / "__init__.py").write_text('SHARED = ("base",)\n')
    monkeypatch.syspath_prepend(tmp_path)
    return Registry(folder.name, "probe")


def test_names_are_the_public_files_in_order_and_none_is_imported(registry: Registry) -> None:
    assert registry.names() == ["linear", "topk"]
    assert not [name for name in sys.modules if name.startswith("registry_under_test.")]


def test_load_imports_the_one_asked_for(registry: Registry) -> None:
    assert registry.load("topk").NAME == "topk"
    assert "registry_under_test.linear" not in sys.modules


@pytest.mark.parametrize("name", ["topkk", "_shared", "base", "os"])
def test_an_unknown_entry_is_refused_with_what_there_is(registry: Registry, name: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown probe '{name}'.*") as caught:
        registry.load(name)
    assert "allowed: linear, topk" in str(caught.value)
