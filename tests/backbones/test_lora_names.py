from pathlib import Path

import pytest
from diffusers.loaders.lora_conversion_utils import _convert_unet_lora_key, _maybe_map_sgm_blocks_to_diffusers
from torch import nn

from diffprobe.backbones.families import describe, sdxl
from diffprobe.backbones.locate import locate
from diffprobe.backbones.lora_names import LoraKey, parse_key, targets

PLACE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
FLAT = PLACE.replace(".", "_")


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    path = sdxl.tiny(tmp_path_factory.mktemp("sdxl"))
    return describe(locate(str(path)), None)[1].denoiser


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (f"lora_unet_{FLAT}_to_q.lora_down.weight", LoraKey("denoiser", f"{FLAT}_to_q", "down", True)),
        ("lora_te2_text_projection.lora_up.weight", LoraKey("text_encoder_2", "text_projection", "up", True)),
        (f"unet.{PLACE}.to_q.lora_A.weight", LoraKey("denoiser", f"{PLACE}.to_q", "down", False)),
        (f"{PLACE}.processor.to_out_lora.up.weight", LoraKey("denoiser", f"{PLACE}.to_out.0", "up", False)),
        ("transformer.proj_out.lora_B.weight", LoraKey("denoiser", "proj_out", "up", False)),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_k_lora.down.weight",
            LoraKey("text_encoder", "text_model.encoder.layers.0.self_attn.k_proj", "down", False),
        ),
    ],
)
def test_the_conventions_are_read(key: str, expected: LoraKey) -> None:
    assert parse_key(key) == expected


@pytest.mark.parametrize("end", ["hada_w1_a", "lokr_w1", "dora_scale", "diff", "lora_mid.weight", "weight"])
def test_other_kinds_of_updates_are_not_names_of_a_lora(end: str) -> None:
    assert parse_key(f"lora_unet_{FLAT}_to_q.{end}") is None


def test_original_names_are_those_that_diffusers_converts(unet: nn.Module) -> None:
    """Each flat name of the original code, converted by diffusers, is the path that it has here."""
    paths = {id(module): path for path, module in unet.named_modules()}
    flat = {
        name: paths[id(module)]
        for name, module in targets(unet).items()
        if name.startswith(("input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_"))
    }
    assert len(flat) == sum(isinstance(module, nn.Linear | nn.Conv2d) for module in unet.modules())
    for name, path in flat.items():
        (mapped,) = _maybe_map_sgm_blocks_to_diffusers({f"lora_unet_{name}.lora_down.weight": 0}, unet.config)
        converted = _convert_unet_lora_key(mapped).replace(".processor", "").replace("_lora.", ".lora.")
        converted = converted.split(".lora")[0].replace("to_out", "to_out.0")
        assert converted.replace(".", "_") == path.replace(".", "_"), name


def test_an_original_name_and_a_path_are_one_layer(unet: nn.Module) -> None:
    known = targets(unet)
    assert known["input_blocks_0_0"] is known["conv_in"] is unet.conv_in
    assert known["middle_block_1_proj_in"] is known["mid_block_attentions_0_proj_in"]


def test_text_encoders_are_named_with_and_without_their_prefix(tiny_sd: Path) -> None:
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(tiny_sd / "text_encoder")
    known = targets(encoder)
    short = "encoder.layers.0.self_attn.q_proj"
    names = [short, short.replace(".", "_"), f"text_model.{short}", f"text_model_{short.replace('.', '_')}"]
    assert len({id(known[name]) for name in names}) == 1
