import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import sd_unet
from diffprobe.config.schema import BackboneConfig, FeaturesConfig
from diffprobe.core.errors import ConfigError

Load = Callable[..., DiffusionFeatures]
Reference = Callable[..., dict[str, Tensor]]
KEYS = ["a/0", "a/1", "b.2", "b.3", "c"]
TAPS = ["down_blocks.0", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"]
PROMPTS = ["noto emoji", "red cat", "", "blue dog", "red cat"]


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


class TestEqualsPlainHooks:
    """Every feature is what a plain forward hook reads on the untouched diffusers model."""

    def test_all_blocks_at_several_timesteps_uncut(self, load: Load, reference: Reference, images: Tensor) -> None:
        found = load(taps=[*TAPS, "conv_out"], timesteps=[0, 100, 999], pool="none")(images, keys=KEYS)
        for t in (0, 100, 999):
            for tap, expected in reference(images, KEYS, TAPS, t).items():
                close(found[f"{tap}@t{t}:empty:none"], expected)

    @pytest.mark.parametrize("tap", [*TAPS, "up_blocks.1.resnets.0", "mid_block.attentions.0"])
    def test_each_tap_of_a_network_cut_behind_it(
        self, tap: str, load: Load, reference: Reference, images: Tensor
    ) -> None:
        (found,) = load(taps=[tap], timesteps=[261], pool="none")(images, keys=KEYS).values()
        close(found, reference(images, KEYS, [tap], 261)[tap])

    @pytest.mark.parametrize("inner", ["", ".attn1", ".attn2"], ids=["block", "self-attention", "cross-attention"])
    def test_tokens_are_laid_out_on_their_grid(
        self, inner: str, load: Load, reference: Reference, images: Tensor
    ) -> None:
        tap = f"up_blocks.1.attentions.0.transformer_blocks.0{inner}"
        (found,) = load(taps=[tap], pool="none")(images, keys=KEYS).values()
        tokens = reference(images, KEYS, [tap], 100)[tap]
        close(found, tokens.transpose(1, 2).reshape(5, 32, 8, 8))

    def test_poolings(self, load: Load, reference: Reference, images: Tensor) -> None:
        expected = reference(images, KEYS, ["up_blocks.2"], 100)["up_blocks.2"]
        for pool, value in (("mean", expected.mean((2, 3))), ("max", expected.amax((2, 3)))):
            close(load(taps=["up_ft2"], pool=pool)(images, keys=KEYS)[f"up_blocks.2@t100:empty:{pool}"], value)

    @pytest.mark.parametrize(
        "sampler", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"]
    )
    def test_the_shipped_sampler_does_not_matter(
        self, sampler: str, tmp_path: Path, load: Load, reference: Reference, images: Tensor
    ) -> None:
        other = sd_unet.tiny(tmp_path, scheduler=sampler)
        features = DiffusionFeatures.from_pretrained(str(other), taps=["mid_block"], timesteps=[261], device="cpu")
        expected = reference(images, KEYS, ["mid_block"], 261)["mid_block"].mean((2, 3))
        close(features(images, keys=KEYS)["mid_block@t261:empty:mean"], expected)

    def test_captions_and_prompts(self, load: Load, reference: Reference, images: Tensor) -> None:
        found = {
            "empty": load()(images, keys=KEYS, captions=PROMPTS),
            "caption": load(condition="caption")(images, keys=KEYS, captions=PROMPTS),
            "prompt": load(condition="prompt", prompt="red cat")(images, keys=KEYS),
        }
        conditioning = {"empty": [""] * 5, "caption": PROMPTS, "prompt": ["red cat"] * 5}
        values = {name: features[f"mid_block@t100:{name}:mean"] for name, features in found.items()}
        for name, value in values.items():
            close(
                value, reference(images, KEYS, ["mid_block"], 100, prompts=conditioning[name])["mid_block"].mean((2, 3))
            )
        apart = (values["empty"] - values["caption"]).abs().amax(1)
        assert float(apart[2]) < 1e-5 < 1e-4 < float(apart[[0, 1, 3, 4]].min())  # the third caption is empty
        assert float((values["empty"] - values["prompt"]).abs().amax(1).min()) > 1e-4


class TestNoiseOfASample:
    """A feature depends on the sample's key, the seed and the draw; on nothing else in the batch."""

    def test_batch_size_and_order_do_not_matter(self, load: Load, images: Tensor) -> None:
        features = load(taps=TAPS, timesteps=[0, 500], draws=2)
        whole = features(images, keys=KEYS)
        order = [3, 0, 4, 2, 1]
        shuffled = features(images[order], keys=[KEYS[i] for i in order])
        alone = [features(images[i : i + 1], keys=[KEYS[i]]) for i in range(5)]
        for cell, value in whole.items():
            close(shuffled[cell], value[order])
            close(torch.cat([one[cell] for one in alone]), value)

    def test_key_and_seed_change_it_and_repeating_does_not(self, load: Load, images: Tensor) -> None:
        cell, same = "mid_block@t100:empty:mean", images[:1].expand(2, -1, -1, -1)
        features = load()
        first = features(same, keys=["a", "b"])[cell]
        assert torch.equal(first, features(same, keys=["a", "b"])[cell])
        assert float((first[0] - first[1]).abs().max()) > 1e-3
        assert float((first - load(seed=1)(same, keys=["a", "b"])[cell]).abs().max()) > 1e-3


class TestWorkDone:
    """Counted on the networks themselves."""

    @staticmethod
    def count(module: nn.Module) -> list[int]:
        calls: list[int] = []
        module.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        return calls

    def test_an_image_is_encoded_once_for_all_timesteps_and_draws(self, load: Load, images: Tensor) -> None:
        features = load(timesteps=[0, 100, 500], draws=4)
        parts = features._backbone.components()
        vae, unet = self.count(parts["vae"].encoder), self.count(parts["denoiser"])
        features(images, keys=KEYS)
        assert vae == [5]
        assert unet == [5 * 3 * 4]

    def test_a_prompt_is_encoded_once_for_all_batches(self, load: Load, images: Tensor) -> None:
        for settings, expected in (({}, [1]), ({"condition": "caption"}, [4])):
            features = load(**settings)
            calls = self.count(features._backbone.components()["text_encoder"].get_submodule("encoder.layers.0"))
            for _ in range(3):
                features(images, keys=KEYS, captions=PROMPTS)
            assert calls == expected  # four distinct captions

    def test_nothing_behind_the_deepest_tap_runs(self, load: Load, images: Tensor) -> None:
        features = load(taps=["down_blocks.1", "mid_block"])
        seen: list[str] = []
        for name, module in features._backbone.denoiser.named_modules():
            module.register_forward_pre_hook(lambda module, args, name=name: seen.append(name))
        features(images, keys=KEYS)
        assert "mid_block" in seen and not [name for name in seen if name.startswith(("up_blocks", "conv_out"))]


class TestPrecision:
    def test_weights_stored_as_fp16_run_as_fp32(
        self, tiny_sd: Path, tmp_path: Path, load: Load, images: Tensor
    ) -> None:
        folder = shutil.copytree(tiny_sd, tmp_path / "sd")
        for path in folder.rglob("*.safetensors"):
            save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
        half = DiffusionFeatures.from_pretrained(str(folder), taps=["mid_block"], timesteps=[100], device="cpu")
        for module in half._backbone.components().values():
            assert {p.dtype for p in module.parameters()} == {torch.float32}
        (found,), (expected,) = half(images, keys=KEYS).values(), load()(images, keys=KEYS).values()
        close(found, expected, atol=5e-3)
        assert half.fingerprint["weights"] != load().fingerprint["weights"]

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_low_precision_runs_and_gives_float32(self, dtype: str, load: Load, images: Tensor) -> None:
        (found,), (expected,) = load(dtype=dtype)(images, keys=KEYS).values(), load()(images, keys=KEYS).values()
        assert found.dtype == torch.float32
        assert 0 < float((found - expected).abs().max()) < 0.05

    def test_a_surrounding_autocast_does_not_lower_it(self, load: Load, images: Tensor) -> None:
        features = load()
        (plain,) = features(images, keys=KEYS).values()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (inside,) = features(images, keys=KEYS).values()
        assert torch.equal(plain, inside)

    def test_features_carry_no_graph_and_can_be_trained_on(self, load: Load, images: Tensor) -> None:
        (found,) = load()(images.requires_grad_(), keys=KEYS).values()
        assert not found.requires_grad
        weight = torch.zeros(32, requires_grad=True)
        (found @ weight).sum().backward()  # an inference tensor could not be saved for this
        assert weight.grad is not None


class TestDoor:
    def test_it_is_no_module_and_hides_none(self, load: Load) -> None:
        features = load()
        assert not isinstance(features, nn.Module)
        holder = nn.Module()
        holder.features = features
        assert not list(holder.parameters()) and not holder.state_dict()

    def test_its_attributes_describe_its_output(self, load: Load, images: Tensor) -> None:
        features = load(taps=["up_ft2", "bottleneck"], timesteps=[200, 0])
        found = features(images, keys=KEYS)
        assert list(found) == [cell.name for cell in features.cells] == list(features.widths)
        assert {cell: value.shape[1] for cell, value in found.items()} == features.widths
        assert "mid_block, up_blocks.2; t=[0, 200]" in repr(features)
        assert features.fingerprint == features.plan.fingerprint

    def test_pil_images_and_tensors_give_the_same(self, load: Load) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        a, b = (load()(x, keys=["a", "b"]) for x in ([Image.fromarray(p) for p in pixels], tensor))
        for cell in a:
            close(a[cell], b[cell])

    def test_another_resolution_than_the_checkpoints_own(
        self, load: Load, reference: Reference, images: Tensor
    ) -> None:
        large = nn.functional.interpolate(images, scale_factor=2)
        (found,) = load(resolution=64, taps=["up_ft0"])(large, keys=KEYS).values()
        close(found, reference(large, KEYS, ["up_blocks.0"], 100)["up_blocks.0"].mean((2, 3)))

    def test_configs_load_the_same(self, tiny_sd: Path, load: Load, images: Tensor) -> None:
        backbone = BackboneConfig(path=str(tiny_sd), device="cpu")
        features = FeaturesConfig(taps=("mid_block",), timesteps=(100,))
        (found,) = DiffusionFeatures.from_config(backbone, features)(images, keys=KEYS).values()
        (expected,) = load()(images, keys=KEYS).values()
        assert torch.equal(found, expected)

    @pytest.mark.parametrize(
        ("settings", "call", "message"),
        [
            ({}, {"keys": ["a"]}, "5 images need 5 keys; got 1"),
            ({}, {"keys": "abcde"}, "got one text"),
            ({"condition": "caption"}, {"keys": KEYS}, "got none"),
            ({"condition": "caption"}, {"keys": KEYS, "captions": ["x"]}, "got 1"),
            (
                {"condition": "caption"},
                {"keys": KEYS, "captions": ["x", None, "y", None, "z"]},
                "2 of 5 .*\n.*a/1, b.3",
            ),
        ],
    )
    def test_calls_that_do_not_add_up_are_refused(
        self, settings: dict, call: dict, message: str, load: Load, images: Tensor
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            load(**settings)(images, **call)

    @pytest.mark.usefixtures("no_shape_checks")
    @pytest.mark.parametrize(
        ("settings", "call", "message"),
        [
            ({}, {"keys": None}, "got a NoneType"),
            ({}, {"keys": iter(KEYS)}, "got a tuple_iterator|got a list_iterator"),
            ({}, {"images": Image.new("RGB", (32, 32)), "keys": ["a"]}, r"\[image\]"),
            ({}, {"images": np.zeros((1, 32, 32, 3), np.uint8), "keys": ["a"]}, "fromarray"),
            ({"condition": "caption"}, {"keys": KEYS, "captions": "five!"}, "one text"),
            ({"condition": "caption"}, {"keys": KEYS, "captions": [["cat"]] * 5}, "a/0: a list"),
            ({"condition": "template", "prompt": "{x}"}, {"keys": KEYS, "columns": ["x"] * 5}, "columns must map"),
        ],
    )
    def test_what_notebooks_pass_is_named(
        self, settings: dict, call: dict, message: str, load: Load, images: Tensor
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            load(**settings)(**{"images": images, **call})

    @pytest.mark.usefixtures("no_shape_checks")
    @pytest.mark.parametrize("latents", [None, [1], np.zeros((1, 4, 16, 16), np.float32)])
    def test_latents_are_tensors(self, latents: object, load: Load) -> None:
        with pytest.raises(ConfigError, match="latents must be a float32 tensor"):
            load().from_latents(latents, keys=["a"])

    def test_numbers_of_numpy_and_torch_are_settings(self, load: Load) -> None:
        for timesteps in (np.array([100, 5]), torch.tensor([100, 5]), range(5, 101, 95)):
            features = load(timesteps=timesteps, seed=np.int64(3), resolution=np.int32(32))
            assert features.plan.timesteps == (5, 100) and features.plan.seed == 3

    def test_an_unknown_compiler_is_refused(self, load: Load) -> None:
        with pytest.raises(ConfigError, match="'nonsense' is not a backend.*\n.*inductor"):
            load(compile="nonsense")

    def test_an_empty_batch_is_refused(self, load: Load) -> None:
        with pytest.raises(ConfigError, match="without images"):
            load()(torch.zeros(0, 3, 32, 32), keys=[])

    @pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
    def test_a_device_that_is_not_there_is_refused(self, load: Load) -> None:
        with pytest.raises(ConfigError, match="no CUDA device"):
            load(device="cuda")
