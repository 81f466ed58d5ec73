"""A file written in parts is that of the library, and parts that do not fit are refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffprobe.core.errors import RunFailed
from diffprobe.core.safetensors_writer import write_safetensors

TENSORS = {
    "weights": torch.arange(12, dtype=torch.float32).view(4, 3),
    "flag": torch.tensor(True),
    "wide": torch.arange(4, dtype=torch.float64),
    "none": torch.zeros(0, 3),
    "n": torch.tensor(7),
}
LAYOUT = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}


def parts_of(name: str) -> Iterator[Tensor]:
    tensor = TENSORS[name]
    yield from tensor.split(3) if tensor.ndim and len(tensor) else [tensor]


def test_the_file_is_that_of_the_library(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "one")
    write_safetensors(tmp_path / "two", LAYOUT, parts_of)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        (torch.zeros(3, 3), "'weights' have 36 of 48 bytes"),
        (torch.zeros(5, 3), "'weights' have 60 of 48 bytes"),
        (torch.zeros(4, 3, dtype=torch.float64), "'weights' is torch.float64"),
        (torch.zeros(4, 2), r"'weights' is torch.float32 \[4, 2\]"),
    ],
)
def test_parts_that_are_not_the_tensor_are_refused(tmp_path: Path, part: Tensor, complaint: str) -> None:
    with pytest.raises(RunFailed, match=complaint):
        write_safetensors(tmp_path / "two", {"weights": LAYOUT["weights"]}, lambda name: [part])
