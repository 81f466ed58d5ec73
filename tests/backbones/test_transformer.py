"""What all families with a transformer have in common."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffprobe.backbones.base import BackboneSpec
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import dit, pixart
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.locate import locate
from diffprobe.backbones.noise import load_schedule
from diffprobe.backbones.text_encoders import TEXT_CONDITIONS
from diffprobe.backbones.transformer import LatentGrid, find_latents, transformer_spec
from diffprobe.backbones.weights import read_config
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from tests.backbones.plans import plan_for

FILE = Path("transformer") / "diffusion_pytorch_model.safetensors"
KEYS = list("abcde")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    root = tmp_path_factory.mktemp("dit")
    return lambda seed: root / str(seed) if (root / str(seed)).is_dir() else dit.tiny(root / str(seed), seed=seed)


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["transformer_blocks.1"], "timesteps": [261], "device": "cpu", **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


def values(loaded: DiffusionFeatures, images: Tensor) -> Tensor:
    (found,) = loaded(images, keys=KEYS).values()
    return found


def test_other_weights_take_the_place_of_the_transformers(tiny: Callable, images: Tensor, tmp_path: Path) -> None:
    own, other = tiny(0), tiny(1)
    replaced = features(own, denoiser_weights=str(other / FILE))
    network, expected = replaced._backbone.denoiser, features(other)._backbone.denoiser
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in network.state_dict().items())
    digests = [x.fingerprint["weights"] for x in (features(own), replaced, features(other))]
    assert len({digest["denoiser"] for digest in digests}) == 3 and digests[0]["vae"] == digests[1]["vae"]
    folder = features(own, denoiser_weights=str(other / "transformer"))
    assert torch.equal(values(folder, images), values(replaced, images))


def test_weights_of_another_network_are_refused(tiny: Callable, tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "unet.safetensors")
    with pytest.raises(WeightsMismatch, match="do not fit"):
        features(tiny(0), denoiser_weights=str(tmp_path / "unet.safetensors"))


def test_weights_of_blocks_that_are_cut_need_not_exist(tiny: Callable, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny(0), tmp_path / "pipeline")
    kept = {k: v for k, v in load_file(folder / FILE).items() if not k.startswith(("transformer_blocks.2", "proj_out"))}
    save_file(kept, folder / FILE)
    features(folder)
    with pytest.raises(WeightsMismatch, match="missing"):
        features(folder, taps=["transformer_blocks.2"])


def test_a_stored_table_of_positions_is_no_foreign_weight(tiny: Callable, images: Tensor, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny(0), tmp_path / "pipeline")
    save_file({**load_file(folder / FILE), "pos_embed.pos_embed": torch.zeros(1, 64, 32)}, folder / FILE)
    assert torch.equal(values(features(folder), images), values(features(tiny(0)), images))


def test_random_weights_are_seeded_and_the_same_for_every_cut(tiny: Callable, images: Tensor) -> None:
    state = torch.get_rng_state()
    tap, both = ["transformer_blocks.1"], ["transformer_blocks.1", "transformer_blocks.2"]
    found = [
        features(tiny(0), random_weights=True, random_seed=seed, taps=taps)(images, keys=KEYS)[
            "transformer_blocks.1@t261:empty:mean"
        ]
        for seed, taps in ((1, tap), (1, both), (2, tap))
    ]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    assert float((found[0] - found[2]).abs().max()) > 1e-2
    assert torch.equal(torch.get_rng_state(), state)


def test_random_weights_need_no_trained_ones(tiny: Callable, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny(0), tmp_path / "pipeline")
    (folder / FILE).unlink()
    assert features(folder, random_weights=True).fingerprint["random_weights"] is True


def test_the_plan_is_left_whole_and_everything_loaded_is_frozen(tiny: Callable, images: Tensor) -> None:
    plan = plan_for(tiny(0), taps=["transformer_blocks.0"], timesteps=[0], device="cpu")
    first, second = (DiffusionFeatures.from_plan(plan) for _ in range(2))
    assert all(p.is_meta for p in plan.spec.denoiser.parameters())
    assert torch.equal(values(first, images), values(second, images))
    for module in first._backbone.components().values():
        assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_half_precision_keeps_the_table_of_positions_whole(tiny: Callable, images: Tensor) -> None:
    half, whole = features(tiny(0), dtype="bfloat16"), features(tiny(0))
    network: Any = half._backbone.denoiser
    assert network.pos_embed.proj.weight.dtype == torch.bfloat16
    assert network.pos_embed.pos_embed.dtype == torch.float32
    torch.testing.assert_close(values(half, images), values(whole, images), atol=0.1, rtol=0.1)


@pytest.mark.slow
def test_freed_text_encoders_leave_memory(images: Tensor, tmp_path: Path) -> None:
    loaded = features(pixart.tiny(tmp_path / "pixart"), condition="prompt", prompt="red cat")
    encoder = weakref.ref(loaded._backbone.components()["text_encoder"])
    first = values(loaded, images)
    gc.collect()
    assert encoder() is None
    assert torch.equal(values(loaded, images), first)


def test_text_encoders_have_the_asked_precision(tmp_path: Path) -> None:
    loaded = features(pixart.tiny(tmp_path / "pixart"), dtype="bfloat16")
    assert loaded._backbone.components()["text_encoder"].dtype == torch.bfloat16
    conditioning = loaded._backbone.encode_conditions(["cat", None, ""])
    assert conditioning["encoder_hidden_states"].dtype == torch.bfloat16
    assert torch.equal(conditioning["encoder_hidden_states"][1], conditioning["encoder_hidden_states"][2])


def test_every_part_counts_in_the_digest(tmp_path: Path) -> None:
    folder = pixart.tiny(tmp_path / "pixart")
    checkpoint = locate(str(folder))
    before = pixart.digests(checkpoint, True)
    assert set(before) == {"denoiser", "vae", "text_encoder", "tokenizer"}
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 64}))
    after = pixart.digests(checkpoint, True)
    assert {name for name in before if before[name] != after[name]} == {"tokenizer"}
    assert pixart.digests(checkpoint, False)["denoiser"] != before["denoiser"]


def test_latents_of_a_resolution(tiny: Callable) -> None:
    checkpoint, settings = locate(str(tiny(0))), {"own": 16, "patch": 2, "channels": 4}
    assert find_latents(checkpoint, None, **settings).shape == (4, 16, 16)
    assert find_latents(checkpoint, 64, **settings).shape == (4, 32, 32)
    for bad in (30, 2, 0, -4):
        with pytest.raises(ConfigError, match="resolution"):
            find_latents(checkpoint, bad, **settings)


def test_a_transformer_is_described_by_its_config_latents_and_scheduler(tiny: Callable, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny(0), tmp_path / "pipeline")
    network = nn.ModuleDict({"noisy": nn.ModuleList([nn.Identity()]), "blocks": nn.ModuleList([pair(), pair()])})
    checkpoint, layout = locate(str(folder)), OutputLayout(size=(8, 8))

    def described(side: int = 8, **settings: Any) -> BackboneSpec:
        latents = LatentGrid(resolution=2 * side, channels=4, side=side)
        chosen = {"run": nn.Identity(), "layout": layout, "blocks": ["noisy.*", "blocks.*.inner"], **settings}
        return transformer_spec("some", checkpoint, network, latents, **chosen)

    plain, config = described(), read_config(checkpoint, "transformer")
    assert (plain.family, plain.name, plain.denoiser, plain.layout) == ("some", str(folder), network, layout)
    assert (plain.resolution, plain.latent_shape) == (16, (4, 8, 8))
    assert plain.blocks == ("noisy.0", "blocks.0.inner", "blocks.1.inner")
    assert (plain.conditions, plain.conditioning) == (TEXT_CONDITIONS, {})
    assert plain.schedule.digest == load_schedule(folder / "scheduler").digest and plain.prediction == "epsilon"
    assert plain.signature == digest_json([config, 8])
    assert described(10, signature=[77]).signature == digest_json([config, 10, 77])
    labelled = described(conditions=("label",), conditioning={"text_tokens": 77})
    assert (labelled.conditions, labelled.conditioning) == (("label",), {"text_tokens": 77})

    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    assert described().prediction == "v"
    path.unlink()
    with pytest.raises(WeightsMissing, match="scheduler_config.json"):
        described()


def pair() -> nn.ModuleDict:
    return nn.ModuleDict({"inner": nn.Identity(), "outer": nn.Identity()})
