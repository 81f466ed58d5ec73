import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffprobe.backbones.base import Checkpoint, LoadOptions
from diffprobe.backbones.families import dit, family_of
from diffprobe.backbones.loading import load_denoiser, load_whole, require_parts
from diffprobe.backbones.weights import locate
from diffprobe.core.errors import WeightsMissing

WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = {"unet": "conv_in", "transformer": "pos_embed.proj"}  # denoiser -> its first layer


@pytest.fixture(scope="module")
def checkpoint(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    tiny_dit = dit.tiny(tmp_path_factory.mktemp("dit") / "dit")
    return lambda part: locate(str(tiny_sd if part == "unet" else tiny_dit))


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("part", list(PARTS))
def test_a_denoiser_is_loaded_pruned_frozen_and_in_the_asked_precision(
    part: str, seed: int | None, checkpoint: Callable[[str], Checkpoint]
) -> None:
    found, first = checkpoint(part), PARTS[part]
    spec = family_of(found).spec(found, None)
    options = LoadOptions(dtype=torch.bfloat16, random_seed=seed)
    network = load_denoiser(found, spec, {first}, options, part=part)
    assert {name for name, _ in network.named_parameters()} == {f"{first}.weight", f"{first}.bias"}
    for parameter in network.parameters():
        assert parameter.dtype == torch.bfloat16 and not parameter.requires_grad and not parameter.is_meta
    assert not network.training
    assert all(parameter.is_meta for parameter in spec.denoiser.parameters())


@pytest.mark.parametrize("part", list(PARTS))
def test_the_denoisers_weights_are_needed_only_if_they_are_read(
    part: str, checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    whole = checkpoint(part)
    assert whole.folder is not None
    folder = shutil.copytree(whole.folder, tmp_path / "copy")
    (folder / part / WEIGHTS).unlink()
    require_parts(locate(str(folder)), part, ("vae",), trained=False)
    with pytest.raises(WeightsMissing, match=rf"missing: {part} \(1 of 2 parts\)"):
        require_parts(locate(str(folder)), part, ("vae",), trained=True)
    replaced = locate(str(folder), denoiser_weights=str(whole.folder / part / WEIGHTS))
    require_parts(replaced, part, ("vae",), trained=True)


@pytest.mark.parametrize("part", list(PARTS))
def test_a_whole_backbone_has_every_module(part: str, checkpoint: Callable[[str], Checkpoint]) -> None:
    found = checkpoint(part)
    family = family_of(found)
    spec = family.spec(found, None)
    backbone = load_whole(found, family, spec, LoadOptions())
    assert set(backbone.denoiser.state_dict()) == set(spec.denoiser.state_dict())
