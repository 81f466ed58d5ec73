"""The miniature archives are ordinary tars, and their images differ."""

import tarfile
from pathlib import Path

from diffprobe.shards.tiny_archive import tiny_image, write_tar


def test_a_tar_has_its_files(tmp_path: Path) -> None:
    files = {"a/1.jpg": tiny_image(1), "b.txt": b"x"}
    for name, mode in (("x.tar", "r:"), ("sub/x.tgz", "r:gz")):
        with tarfile.open(write_tar(tmp_path / name, files), mode) as tar:
            found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert found == files
    assert len({tiny_image(number) for number in range(50)}) == 50
