"""Invalid safetensors files give the caller's error, with the place."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.safetensors_file import load_safetensors, open_safetensors


def test_tensors_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0)}, tmp_path / "model.safetensors")
    assert torch.equal(load_safetensors(tmp_path / "model.safetensors")["a"], torch.arange(6.0))


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"\xff" * 64, "safetensors"),
        (b"PK\x03\x04 a torch file", "safetensors"),
    ],
)
def test_other_content_is_named(content: bytes, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsMismatch, match=cause) as found, open_safetensors(path, error=WeightsMismatch):
        pass
    assert str(path) in str(found.value)


def test_a_header_beyond_the_file_is_refused_before_it_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for header, size in ((2**32, 2**33), (57, 64), (2**63, 64)):
        path.write_bytes(header.to_bytes(8, "little"))
        os.truncate(path, size)
        with pytest.raises(WeightsMismatch, match=f"header of {header:,} bytes"):
            load_safetensors(path, error=WeightsMismatch)


def test_a_truncated_file_and_a_pipe_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsMismatch, match="safetensors"):
        load_safetensors(path, error=WeightsMismatch)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightsMismatch, match="regular file"):
        load_safetensors(tmp_path / "pipe", error=WeightsMismatch)
