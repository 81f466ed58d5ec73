import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.testing.tiny_transformer import (
    tiny_cogvideox_vae,
    tiny_dc,
    tiny_flux2_vae,
    tiny_ltx_vae,
    tiny_qwen_vae,
    tiny_vae,
    tiny_wan_vae,
)
from diffprobe.backbones.vae import (
    EDM2_MEAN,
    EDM2_STD,
    VaeDecoder,
    latent_geometry,
    load_movq_encoder,
    load_vae_encoder,
    match_encoder,
)
from diffprobe.core.errors import WeightsMismatch


def test_latents_are_the_scaled_mode(tiny_sd: Path, images: Tensor) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(tiny_sd / "vae")
    with torch.no_grad():
        expected = vae.encode(images * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
    encoder = load_vae_encoder(tiny_sd / "vae", dtype=torch.float32)
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)
    assert not [name for name in encoder.vae.state_dict() if "decoder" in name or "post_quant" in name]


def test_a_shift_is_taken_off_before_scaling(tiny_sd: Path, images: Tensor, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd / "vae", tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"shift_factor": 0.5}))
    plain, shifted = (load_vae_encoder(path, dtype=torch.float32)(images) for path in (tiny_sd / "vae", folder))
    torch.testing.assert_close(shifted, plain - 0.5 * config["scaling_factor"])


def test_a_deep_compression_autoencoder_gives_its_scaled_latents_and_takes_them_back(
    images: Tensor, tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = tiny_dc().eval()
    whole.save_pretrained(tmp_path)
    assert latent_geometry(tmp_path, "AutoencoderDC") == (4, 2)
    with torch.no_grad():
        latents = whole.encode(images * 2 - 1).latent
        back = (whole.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    encoder = load_vae_encoder(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(encoder(images), latents * whole.config.scaling_factor, atol=1e-5, rtol=1e-5)
    assert not [name for name in encoder.vae.state_dict() if name.startswith("decoder")]
    torch.testing.assert_close(VaeDecoder.from_folder(tmp_path)(encoder(images)), back, atol=1e-4, rtol=0)
    with pytest.raises(WeightsMismatch, match="AutoencoderDC.*AutoencoderKL"):
        latent_geometry(tmp_path)


@torch.no_grad()
def test_latents_of_flux2_are_those_of_the_pipeline_and_are_taken_back(images: Tensor, tmp_path: Path) -> None:
    from diffusers import Flux2Pipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = tiny_flux2_vae().eval()
    whole.save_pretrained(tmp_path)
    assert latent_geometry(tmp_path, "AutoencoderKLFlux2") == (16, 4)
    pipeline = Flux2Pipeline(scheduler=None, vae=whole, text_encoder=None, tokenizer=None, transformer=None)
    expected = pipeline._encode_vae_image(images * 2 - 1, None)
    encoder = load_vae_encoder(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)
    assert {name.split(".")[0] for name in encoder.vae.state_dict()} == {"encoder", "quant_conv", "bn"}
    back = (whole.decode(whole.encode(images * 2 - 1).latent_dist.mode()).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(VaeDecoder.from_folder(tmp_path)(expected), back, atol=1e-4, rtol=0)
    placeholder = load_vae_encoder(tmp_path, dtype=torch.float32, images=False)
    assert not placeholder.vae.state_dict()


@pytest.mark.parametrize(
    ("make", "settings", "factor"),
    [(tiny_qwen_vae, {}, 2), (tiny_wan_vae, {}, 2), (tiny_wan_vae, {"patch": 2}, 4)],
    ids=["Qwen-Image", "Wan 2.1", "Wan 2.2"],
)
@torch.no_grad()
def test_latents_of_one_frame_are_normalised_by_channel_and_are_taken_back(
    make: Any, settings: dict[str, int], factor: int, images: Tensor, tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = make(**settings).eval()
    whole.save_pretrained(tmp_path)
    assert latent_geometry(tmp_path, type(whole).__name__) == (4, factor)
    mode = whole.encode(images[:, :, None] * 2 - 1).latent_dist.mode()
    mean, std = (torch.tensor(x)[:, None, None] for x in (whole.config.latents_mean, whole.config.latents_std))
    encoder = load_vae_encoder(tmp_path, dtype=torch.float32)
    found = encoder(images)
    torch.testing.assert_close(found, (mode[:, :, 0] - mean) / std, atol=1e-5, rtol=1e-5)
    assert not [name for name in encoder.vae.state_dict() if "decoder" in name or "post_quant" in name]
    back = (whole.decode(mode).sample[:, :, 0] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(VaeDecoder.from_folder(tmp_path)(found), back, atol=1e-4, rtol=0)


@torch.no_grad()
def test_latents_of_cogvideox_are_one_scaled_frame_and_are_taken_back(images: Tensor, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = tiny_cogvideox_vae().eval()
    whole.save_pretrained(tmp_path)
    assert latent_geometry(tmp_path, "AutoencoderKLCogVideoX") == (4, 2)
    mode = whole.encode(images[:, :, None] * 2 - 1).latent_dist.mode()
    encoder = load_vae_encoder(tmp_path, dtype=torch.float32)
    found = encoder(images)
    torch.testing.assert_close(found, mode[:, :, 0] * whole.config.scaling_factor, atol=1e-5, rtol=1e-5)
    assert not [name for name in encoder.vae.state_dict() if "decoder" in name]
    back = (whole.decode(mode).sample[:, :, 0] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(VaeDecoder.from_folder(tmp_path)(found), back, atol=1e-4, rtol=0)


@pytest.mark.parametrize("conditioned", [False, True])
@torch.no_grad()
def test_latents_of_ltx_are_normalised_as_in_the_pipeline_and_are_taken_back(
    conditioned: bool, images: Tensor, tmp_path: Path
) -> None:
    from diffusers import LTXPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = tiny_ltx_vae(conditioned=conditioned).eval()
        for name, weight in whole.named_parameters():
            if "scale_shift_table" in name or "per_channel" in name:
                torch.nn.init.normal_(weight, std=0.1)
    whole.save_pretrained(tmp_path)
    assert latent_geometry(tmp_path, "AutoencoderKLLTXVideo") == (4, 4)
    mode = whole.encode(images[:, :, None] * 2 - 1).latent_dist.mode()
    expected = LTXPipeline._normalize_latents(mode, whole.latents_mean, whole.latents_std, whole.config.scaling_factor)
    encoder = load_vae_encoder(tmp_path, dtype=torch.float32)
    found = encoder(images)
    torch.testing.assert_close(found, expected[:, :, 0], atol=1e-5, rtol=1e-5)
    assert not [name for name in encoder.vae.state_dict() if "decoder" in name]
    times = torch.zeros(len(images)) if conditioned else None
    back = (whole.decode(mode, times).sample[:, :, 0] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(VaeDecoder.from_folder(tmp_path)(found), back, atol=1e-4, rtol=0)


@torch.no_grad()
def test_edm2_encodes_images_in_0_to_1_and_normalises_by_channel(images: Tensor, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = tiny_vae(32).eval()
    whole.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKLEdm2"}))
    assert latent_geometry(tmp_path, "AutoencoderKLEdm2") == (4, 2)
    mode = whole.encode(images).latent_dist.mode()
    mean, std = (torch.tensor(x)[:, None, None] for x in (EDM2_MEAN, EDM2_STD))
    found = load_vae_encoder(tmp_path, dtype=torch.float32)(images)
    torch.testing.assert_close(found, (mode - mean) / std, atol=1e-5, rtol=1e-5)
    back = whole.decode(mode).sample.clamp(0, 1)
    torch.testing.assert_close(VaeDecoder.from_folder(tmp_path)(found), back, atol=1e-4, rtol=0)
    assert match_encoder(tmp_path).encoder is not None


@pytest.mark.parametrize("changes", [{"latents_mean": [0.0] * 3}, {"latents_std": [1.0, 0.0, 1.0, 1.0]}])
def test_statistics_that_do_not_fit_the_channels_are_refused(changes: dict[str, object], tmp_path: Path) -> None:
    tiny_qwen_vae().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(WeightsMismatch, match="4 numbers"):
        latent_geometry(tmp_path, "AutoencoderKLQwenImage")


def test_many_pixels_are_encoded_in_bounded_passes(
    tiny_sd: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_vae_encoder(tiny_sd / "vae", dtype=torch.float32)
    whole, sizes = encoder(images), []
    encoder.vae.encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    monkeypatch.setattr("diffprobe.backbones.vae.PIXELS", 2 * 32 * 32)
    torch.testing.assert_close(encoder(images), whole, atol=1e-5, rtol=0)
    assert sizes == [2, 2, 1]


def test_float16_is_not_forced_on_an_encoder_that_overflows(tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd / "vae", tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    for upcast, dtype in ((True, torch.float32), (False, torch.float16)):
        (folder / "config.json").write_text(json.dumps(config | {"force_upcast": upcast}))
        assert next(load_vae_encoder(folder, dtype=torch.float16).vae.parameters()).dtype == dtype


def test_geometry_comes_from_the_config(tiny_sd: Path, tmp_path: Path) -> None:
    assert latent_geometry(tiny_sd / "vae") == (4, 2)
    for config in ({"_class_name": "AutoencoderTiny"}, {"_class_name": "AutoencoderKL", "latents_mean": [0.1]}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(WeightsMismatch):
            latent_geometry(tmp_path)


@pytest.fixture
def movq(tmp_path: Path) -> Path:
    from diffusers import VQModel

    model = VQModel(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
        vq_embed_dim=6,
        num_vq_embeddings=8,
        scaling_factor=9.0,  # which the Kandinsky pipelines do not use
    )
    model.save_pretrained(tmp_path / "movq")
    return tmp_path / "movq"


def test_latents_of_a_vq_model_are_neither_quantised_nor_scaled(movq: Path, images: Tensor) -> None:
    from diffusers import VQModel

    with torch.no_grad():
        expected = VQModel.from_pretrained(movq).encode(images * 2 - 1).latents
    encoder = load_movq_encoder(movq, dtype=torch.float32)
    found = encoder(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert latent_geometry(movq, "VQModel") == (6, 2) == (found.shape[1], 32 // found.shape[2])
    assert {name.split(".")[0] for name in encoder.vae.state_dict()} == {"encoder", "quant_conv"}


def test_half_precision_latents_are_given_in_float32(movq: Path, images: Tensor) -> None:
    encoder = load_movq_encoder(movq, dtype=torch.bfloat16)
    assert {p.dtype for p in encoder.vae.parameters()} == {torch.bfloat16}
    assert encoder(images).dtype == torch.float32


def test_a_vae_of_another_class_is_refused(movq: Path) -> None:
    with pytest.raises(WeightsMismatch, match="VQModel.* AutoencoderKL"):
        latent_geometry(movq)


def test_the_tiny_one_halves_a_side() -> None:
    vae = tiny_vae(32)
    with torch.no_grad():
        assert vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode().shape == (1, 4, 16, 16)


def test_the_decoder_is_that_of_diffusers_and_inverts_the_scaling(tiny_sd: Path, images: Tensor) -> None:
    from diffusers import AutoencoderKL

    latents = load_vae_encoder(tiny_sd / "vae", dtype=torch.float32)(images)
    vae = AutoencoderKL.from_pretrained(tiny_sd / "vae")
    with torch.no_grad():
        expected = (vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample / 2 + 0.5).clamp(0, 1)
    found = VaeDecoder.from_folder(tiny_sd / "vae")(latents)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
