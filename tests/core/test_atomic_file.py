"""A file is either the old one or the whole new one."""

import os
import stat
from pathlib import Path

import pytest

from diffprobe.core.atomic_file import atomic_file, atomic_folder, current_umask, open_to_readers, remove_unfinished


def test_the_target_changes_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "one"
    mask = os.umask(0o027)
    try:
        with atomic_file(path) as temporary:
            temporary.write_text("two")
            assert path.read_text() == "one"
    finally:
        os.umask(mask)
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_file(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        done.append("fsync")
        fsync(handle)

    def noted_replace(source: Path, target: Path) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert done == ["fsync", "replace", "fsync"]


def test_a_folder_is_replaced_with_all_its_files(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    for names in (("a", "b"), ("b", "c")):
        with atomic_folder(path) as folder:
            for name in names:
                (folder / "part").mkdir(exist_ok=True)
                (folder / "part" / name).write_text(name)
                (folder / "part" / name).chmod(0o600)  # as safetensors does
    assert sorted(file.name for file in path.rglob("*")) == ["b", "c", "part"]
    assert stat.S_IMODE((path / "part" / "b").stat().st_mode) == 0o666 & ~current_umask()
    with pytest.raises(OSError, match="full"), atomic_folder(path) as folder:
        (folder / "d").write_text("")
        raise OSError("full")
    assert sorted(file.name for file in path.rglob("*")) == ["b", "c", "part"] and list(tmp_path.iterdir()) == [path]


def test_what_kills_have_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [".hidden.tmp", "last.ckpt", "a.0123abcd.tmp", ".x.0123abcd.tmp2"]
    left = [".last.ckpt.0123abcd.tmp", "probes/.probe.json.00000000.tmp", ".weights.ffffffff.tmp/unet/model"]
    for name in (*kept, *left):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert len(remove_unfinished(tmp_path)) == 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*kept, "probes"])


def test_files_of_others_are_opened_to_whom_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    closed = [tmp_path / "one", tmp_path / "deep" / "two"]
    for file in closed:
        file.touch(0o600)
    old = os.umask(0o027)
    try:
        open_to_readers(tmp_path)
    finally:
        os.umask(old)
    assert [stat.S_IMODE(file.stat().st_mode) for file in closed] == [0o640] * 2 and (tmp_path / "deep").is_dir()
