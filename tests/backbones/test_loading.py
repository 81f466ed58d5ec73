import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffprobe.backbones import loading
from diffprobe.backbones.base import Checkpoint, LoadOptions
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import dit, family_of
from diffprobe.backbones.loading import load_denoiser, load_network, load_whole, require_parts
from diffprobe.backbones.locate import locate
from diffprobe.core.errors import WeightsMismatch, WeightsMissing

WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = {"unet": "conv_in", "transformer": "pos_embed.proj"}  # denoiser -> its first layer


@pytest.fixture(scope="module")
def checkpoint(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    tiny_dit = dit.tiny(tmp_path_factory.mktemp("dit") / "dit")
    return lambda part: locate(str(tiny_sd if part == "unet" else tiny_dit))


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("part", list(PARTS))
def test_a_denoiser_is_loaded_pruned_frozen_and_in_the_asked_precision(
    part: str,
    seed: int | None,
    checkpoint: Callable[[str], Checkpoint],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    found, first = checkpoint(part), PARTS[part]
    spec = family_of(found).spec(found, None)
    options = LoadOptions(dtype=torch.bfloat16, random_seed=seed)
    network = load_denoiser(found, spec, {first}, options, part=part)
    assert {name for name, _ in network.named_parameters()} == {f"{first}.weight", f"{first}.bias"}
    for parameter in network.parameters():
        assert parameter.dtype == torch.bfloat16 and not parameter.requires_grad and not parameter.is_meta
    assert not network.training and caplog.messages == []
    assert all(parameter.is_meta for parameter in spec.denoiser.parameters())


@pytest.mark.parametrize("seed", [None, 3], ids=["trained", "random"])
@pytest.mark.parametrize("part", list(PARTS))
def test_each_block_is_quantised_before_the_next_one_is_read_or_drawn(
    part: str, seed: int | None, checkpoint: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    @torch.no_grad()
    def rounded(block: nn.Module, how: str) -> None:
        events.append("quantised")
        for parameter in block.parameters():
            assert parameter.dtype == torch.bfloat16 and not parameter.is_meta
            parameter.mul_(16).round_().div_(16)

    def drawn(network: nn.Module, blocks: Sequence[str], made: Callable[[str, nn.Module], None]) -> Any:
        def noted(path: str, block: nn.Module) -> None:
            events.append("held")
            made(path, block)

        return drawn_blocks(network, blocks, noted)

    def read(*args: Any, **settings: Any) -> dict[str, torch.Tensor]:
        events.append("held")
        return read_places(*args, **settings)

    found = checkpoint(part)
    spec = family_of(found).spec(found, None)
    needed, n = {path for path, _ in spec.denoiser.named_modules()}, len(spec.blocks)
    options = LoadOptions(dtype=torch.bfloat16, random_seed=seed)
    expected = load_denoiser(found, spec, needed, options, part=part)
    drawn_blocks, read_places = loading.drawn_blocks, loading.read_places
    for name, other in (("quantize", rounded), ("drawn_blocks", drawn), ("read_places", read)):
        monkeypatch.setattr(loading, name, other)
    network = load_denoiser(found, spec, needed, replace(options, quantize="int8"), part=part)
    assert n > 1 and events == ["held", "quantised"] * n
    for path in spec.blocks:  # after all have been drawn
        rounded(expected.get_submodule(path), "int8")
    whole = expected.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in network.state_dict().items())
    assert {x.dtype for x in network.parameters()} == {torch.bfloat16}


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


def test_a_whole_network_is_loaded_with_changed_settings(tiny_sd: Path) -> None:
    from diffusers import UNet2DConditionModel

    expected = UNet2DConditionModel.from_pretrained(tiny_sd / "unet").state_dict()
    found = load_network("UNet2DConditionModel", tiny_sd / "unet", dropout=0.25)
    assert found.config.dropout == 0.25 and found.down_blocks[0].resnets[0].dropout.p == 0.25
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"block_out_channels": "x"}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"down_block_types": ["NoBlock"] * 3}),
        ("unet", {"in_channels": -4}),
        ("unet", {"cross_attention_dim": 10**30}),
        ("vae", {"block_out_channels": None}),
        ("vae", {"latent_channels": "4"}),
        ("vae", {"act_fn": 3}),
        ("vae", {"scaling_factor": "6"}),
        ("vae", {"scaling_factor": None}),
        ("text_encoder", {"hidden_act": 3}),
        ("text_encoder", {"num_attention_heads": 0}),
        ("text_encoder", {"max_position_embeddings": [77]}),
        ("scheduler", {"num_train_timesteps": 10**12}),
        ("scheduler", {"num_train_timesteps": "1000"}),
        ("scheduler", {"beta_start": None}),
        ("scheduler", {"beta_schedule": ["linear"]}),
        ("scheduler", {"trained_betas": [0.5]}),
        ("scheduler", {"beta_end": 7.0}),
        ("scheduler", {"prediction_type": ["epsilon"]}),
    ],
)
def test_configs_that_describe_no_network_are_named(
    part: str, changes: dict[str, object], tiny_sd: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=str(folder)):
        DiffusionFeatures.from_pretrained(str(folder), taps=["mid_block"], timesteps=[0], device="cpu")
