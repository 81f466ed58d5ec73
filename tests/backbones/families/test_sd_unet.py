import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import sd_unet
from diffprobe.backbones.hooks import PrunedModule
from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.core.rng import noise_for
from tests.backbones.plans import plan_for

Load = Callable[..., DiffusionFeatures]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestTiny:
    def test_diffusers_loads_and_samples_it(self, tiny_sd: Path) -> None:
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline("red cat", num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)

    def test_it_is_seeded_and_leaves_the_random_state_alone(self, tiny_sd: Path, tmp_path: Path) -> None:
        state = torch.get_rng_state()
        same, other = sd_unet.tiny(tmp_path / "a"), sd_unet.tiny(tmp_path / "b", seed=1)
        assert torch.equal(torch.get_rng_state(), state)
        file = Path("unet") / "diffusion_pytorch_model.safetensors"
        assert (same / file).read_bytes() == (tiny_sd / file).read_bytes() != (other / file).read_bytes()


class TestCut:
    """The pruned network has no later blocks, and its weights are those stored."""

    def test_later_blocks_are_neither_in_memory_nor_run(self, load: Load, images: Tensor) -> None:
        features = load(taps=["up_blocks.0"])
        unet = features._backbone.denoiser
        names = set(unet.state_dict())
        assert {name.split(".")[0] for name in names} == {
            "conv_in",
            "time_embedding",
            "down_blocks",
            "mid_block",
            "up_blocks",
        }
        assert all(name.startswith("up_blocks.0") for name in names if name.startswith("up_blocks"))
        assert isinstance(unet.up_blocks[1], PrunedModule) and isinstance(unet.conv_out, PrunedModule)
        features(images, keys=list("abcde"))  # an absent module that ran would raise

    def test_a_tap_within_a_block_cuts_the_rest_of_the_block(self, load: Load, images: Tensor) -> None:
        features = load(taps=["mid_block.resnets.0"])
        names = set(features._backbone.denoiser.state_dict())
        assert any(name.startswith("mid_block.resnets.0") for name in names)
        assert not any(name.startswith(("mid_block.attentions", "mid_block.resnets.1", "up_blocks")) for name in names)
        assert features(images, keys=list("abcde"))["mid_block.resnets.0@t100:empty:mean"].shape == (5, 32)

    def test_a_tap_in_the_down_path_needs_nothing_below(self, load: Load) -> None:
        names = set(load(taps=["down_blocks.0"])._backbone.denoiser.state_dict())
        assert not any(name.startswith(("down_blocks.1", "mid_block")) for name in names)

    def test_weights_of_blocks_that_are_cut_need_not_exist(self, tiny_sd: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(tiny_sd, tmp_path / "sd")
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        save_file({k: v for k, v in load_file(path).items() if not k.startswith(("up_blocks", "conv_out"))}, path)
        DiffusionFeatures.from_pretrained(str(folder), taps=["mid_block"], timesteps=[0], device="cpu")
        with pytest.raises(WeightsMismatch, match="missing"):
            DiffusionFeatures.from_pretrained(str(folder), taps=["up_ft0"], timesteps=[0], device="cpu")

    def test_the_plan_is_left_whole_and_can_be_loaded_again(self, tiny_sd: Path, images: Tensor) -> None:
        plan = plan_for(tiny_sd, taps=["mid_block"], timesteps=[0], device="cpu")
        first, second = (DiffusionFeatures.from_plan(plan) for _ in range(2))
        assert all(p.is_meta for p in plan.spec.denoiser.parameters())
        (a,), (b,) = (features(images, keys=list("abcde")).values() for features in (first, second))
        assert torch.equal(a, b)

    def test_everything_is_frozen_and_in_evaluation_mode(self, load: Load) -> None:
        for module in load()._backbone.components().values():
            assert not module.training and not any(p.requires_grad for p in module.parameters())


class TestRandomWeights:
    """The control: another denoiser, the same input."""

    def test_only_the_denoiser_changes(self, load: Load) -> None:
        trained, random = load()._backbone.components(), load(random_weights=True)._backbone.components()
        for part in ("vae", "text_encoder"):
            for name, value in trained[part].state_dict().items():
                assert torch.equal(value, random[part].state_dict()[name])
        shared = [name for name, v in trained["denoiser"].state_dict().items() if name.endswith("conv1.weight")]
        assert shared and not any(
            torch.equal(trained["denoiser"].state_dict()[name], random["denoiser"].state_dict()[name])
            for name in shared
        )

    def test_they_are_seeded_and_the_same_for_every_cut(self, load: Load, images: Tensor) -> None:
        state = torch.get_rng_state()
        features = [
            load(random_weights=True, random_seed=seed, taps=taps)(images, keys=list("abcde"))[
                "mid_block@t100:empty:mean"
            ]
            for seed, taps in ((1, ["mid_block"]), (1, ["mid_block", "up_ft2"]), (2, ["mid_block"]))
        ]
        torch.testing.assert_close(features[0], features[1], atol=1e-5, rtol=0)
        assert float((features[0] - features[2]).abs().max()) > 1e-2
        assert torch.equal(torch.get_rng_state(), state)

    def test_they_need_no_trained_denoiser(self, tiny_sd: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(tiny_sd, tmp_path / "sd")
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        settings = {"taps": ["mid_block"], "timesteps": [0], "device": "cpu"}
        features = DiffusionFeatures.from_pretrained(str(folder), random_weights=True, **settings)  # type: ignore[arg-type]
        assert features.fingerprint["random_weights"] is True
        with pytest.raises(WeightsMissing, match="missing: unet"):
            DiffusionFeatures.from_pretrained(str(folder), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"in_channels": 9}, "9 channels.* 4"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type: text_time"),
        ("vae", {"_class_name": "VQModel"}, "VQModel.* AutoencoderKL"),
    ],
)
def test_checkpoints_of_other_kinds_are_refused(
    part: str, changes: dict[str, object], message: str, tiny_sd: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    edit(folder / part / "config.json", **changes)
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["mid_block"], timesteps=[0])


def test_a_missing_part_is_named(tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    shutil.rmtree(folder / "vae")
    with pytest.raises(WeightsMissing, match=r"vae/config\.json"):
        plan_for(str(folder), taps=["mid_block"], timesteps=[0])


class TestOfItsKind:
    """SD 2.x predicts v, latent consistency models take the guidance scale, CleanDIFT replaces the U-Net."""

    def test_what_the_network_predicts_is_no_matter(self, tiny_sd: Path, images: Tensor, tmp_path: Path) -> None:
        other = sd_unet.tiny(tmp_path / "v", prediction="v_prediction", scheduler="EulerDiscreteScheduler")
        for found, expected in zip(read(other, images), read(tiny_sd, images), strict=True):
            assert torch.equal(found, expected)

    def test_a_consistency_model_takes_the_guidance_scale(
        self, images: Tensor, tmp_path: Path, hooked: Callable[..., dict[str, Tensor]]
    ) -> None:
        from diffusers import LatentConsistencyModelPipeline

        folder = sd_unet.tiny(tmp_path / "lcm", lcm=True, scheduler="LCMScheduler")
        pipeline = LatentConsistencyModelPipeline.from_pretrained(folder, safety_checker=None)
        texts = ["red cat"] * 5
        states, _ = pipeline.encode_prompt(texts, "cpu", 1, False)
        scale = pipeline.get_guidance_scale_embedding(torch.tensor([8.5 - 1] * 5), embedding_dim=32)
        with torch.no_grad():
            clean = pipeline.vae.encode(images * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
        noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in "abcde"])
        t = torch.full((5,), 300)
        noisy = pipeline.scheduler.add_noise(clean, noise, t)
        taps = ["down_blocks.1.attentions.0", "mid_block", "up_blocks.1"]
        expected = hooked(pipeline.unet, taps, noisy, t, encoder_hidden_states=states, timestep_cond=scale)
        features = DiffusionFeatures.from_pretrained(
            str(folder), taps=taps, timesteps=[300], pool="none", device="cpu", condition="prompt", prompt="red cat"
        )
        assert features.fingerprint["conditioning"] == {"guidance_scale": 8.5}
        for (_, found), tap in zip(features(images, keys=list("abcde")).items(), taps, strict=True):
            torch.testing.assert_close(found, expected[tap], atol=1e-5, rtol=1e-5)
        unscaled = hooked(pipeline.unet, taps, noisy, t, encoder_hidden_states=states)
        assert float((unscaled["mid_block"] - expected["mid_block"]).abs().max()) > 1e-4

    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_replaced_weights_on_clean_input(
        self, kind: str, tiny_sd: Path, images: Tensor, tmp_path: Path, hooked: Callable[..., dict[str, Tensor]]
    ) -> None:
        from diffusers import StableDiffusionPipeline, UNet2DConditionModel

        other = sd_unet.tiny(tmp_path / "other", seed=1) / "unet"
        source = (
            other
            if kind == "folder"
            else shutil.copy(other / "diffusion_pytorch_model.safetensors", tmp_path / "clean.safetensors")
        )
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
        states, _ = pipeline.encode_prompt([""] * 5, "cpu", 1, False)
        with torch.no_grad():
            clean = pipeline.vae.encode(images * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
        unet = UNet2DConditionModel.from_pretrained(other)
        expected = hooked(unet, ["mid_block"], clean, torch.full((5,), 261), encoder_hidden_states=states)["mid_block"]
        settings = {"timesteps": (261,), "denoiser_weights": str(source), "clean_input": True, "seed": 7}
        (found,) = read(tiny_sd, images, **settings)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found, read(tiny_sd, images, timesteps=(261,))[0], atol=1e-3)


def read(folder: Path, images: Tensor, **settings: object) -> list[Tensor]:
    chosen = {"taps": ["mid_block"], "timesteps": (100, 900), "pool": "none", "device": "cpu", **settings}
    features = DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]
    return list(features(images, keys=list("abcde")).values())
