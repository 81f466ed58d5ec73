"""The place of the cache folder."""

from pathlib import Path

import pytest

from diffprobe.core.cache_folder import cache_root


def test_the_cache_is_where_the_environment_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFPROBE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("DIFFPROBE_CACHE")
    assert cache_root() == tmp_path / "diffprobe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path("~/.cache/diffprobe").expanduser()
