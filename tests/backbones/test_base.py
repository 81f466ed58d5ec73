import pytest
import torch
from torch import nn

from diffprobe.backbones.base import DTYPES, Backbone, Checkpoint
from diffprobe.core.errors import WeightsMismatch


class Two(Backbone):
    """A backbone of two networks."""

    def __init__(self) -> None:
        self.denoiser, self.other = nn.Linear(1, 1), nn.Linear(1, 1)

    def encode_images(self, images):
        return images

    def encode_conditions(self, values):
        return {}

    def denoise(self, x_t, timesteps, condition) -> None:
        self.denoiser(x_t)

    def components(self) -> dict[str, nn.Module]:
        return {"denoiser": self.denoiser, "other": self.other}


def test_all_parts_move_together() -> None:
    backbone = Two()
    backbone.to(torch.device("meta"))
    assert all(p.is_meta for module in backbone.components().values() for p in module.parameters())


def test_a_checkpoint_without_a_folder_has_no_parts(tmp_path) -> None:
    assert Checkpoint(name="sd", folder=tmp_path, index={}).part("unet") == tmp_path / "unet"
    with pytest.raises(WeightsMismatch, match="'unet'"):
        Checkpoint(name="pixels", folder=None, index={}).part("unet")


def test_precisions_are_named_as_torch_names_them() -> None:
    assert {name: str(dtype) for name, dtype in DTYPES.items()} == {name: f"torch.{name}" for name in DTYPES}
