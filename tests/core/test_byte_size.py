from pathlib import Path

from diffprobe.core.byte_size import folder_bytes, size


def test_sizes_are_written_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 1.25e6, 3e9, 2.5e15)] == [
        "0 B", "999 B", "1.0 kB", "1.2 MB", "3.0 GB", "2,500.0 TB",
    ]  # fmt: skip


def test_files_below_a_folder_are_counted_once_though_links_name_them_again(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/one").write_bytes(bytes(10))
    (tmp_path / "a/b/two").write_bytes(bytes(5))
    (tmp_path / "link").symlink_to("a/one")
    (tmp_path / "again").symlink_to("a", target_is_directory=True)
    assert folder_bytes(tmp_path) == 15
    assert folder_bytes(tmp_path / "absent") == 0
