import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffprobe.backbones.base import LoadOptions
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import sit
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.locate import locate
from diffprobe.core.errors import ConfigError, DiffprobeError, WeightsMismatch
from diffprobe.core.rng import noise_for
from tests.backbones.plans import plan_for
from tests.backbones.test_sit_network import plain

KEYS = list("abcde")
LABELS = [3, 0, 9, 1, 3]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
NAMES = ["sit", "repa"]
REPA: dict[str, Any] = {
    "convention": "repa",
    "learn_sigma": False,
    "z_dims": [12],
    "projector_dim": 16,
    "encoder_depth": 2,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("sit")

    def make(name: str) -> Path:
        return root / name if (root / name).is_dir() else sit.tiny(root / name, **(REPA if name == "repa" else {}))

    return make


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["blocks.0"], "timesteps": [261], "device": "cpu", **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


def noisy(folder: Path, images: Tensor, s: float) -> tuple[Tensor, Tensor, Tensor]:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        clean = vae.encode(images * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
    noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in KEYS[: len(images)]])
    return (1 - s) * clean + s * noise, clean, noise


@pytest.mark.parametrize("name", NAMES)
def test_features_equal_a_plain_computation_in_the_checkpoints_own_time(
    name: str, tiny: Callable, images: Tensor, as_map: Callable
) -> None:
    folder = tiny(name)
    blocks = [f"blocks.{i}" for i in range(3)]
    found = features(folder, taps=blocks, condition="label", pool="none")(images, keys=KEYS, labels=LABELS)
    x_t, _, _ = noisy(folder, images, 0.261)
    times = torch.full((5,), 1 - 0.261 if name == "sit" else 0.261)
    expected = plain(load_file(folder / WEIGHTS), x_t, times, torch.tensor(LABELS), heads=2, patch=2)
    for block, tokens in zip(blocks, expected[:-1], strict=True):
        torch.testing.assert_close(found[f"{block}@t261:label:none"], as_map(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_prediction_is_noise_less_image_in_both_conventions(name: str, tiny: Callable, images: Tensor) -> None:
    folder = tiny(name)
    checkpoint = locate(str(folder))
    spec = sit.spec(checkpoint, None)
    backbone = load_whole(checkpoint, sit, spec, LoadOptions())  # type: ignore[arg-type]
    x_t, _, _ = noisy(folder, images[:2], 0.4)
    condition = backbone.encode_conditions([3, None])
    with torch.no_grad():
        found = backbone.denoise(x_t, torch.tensor([400, 400]), condition)
    times = torch.full((2,), 0.6 if name == "sit" else 0.4)
    own = plain(load_file(folder / WEIGHTS), x_t, times, torch.tensor([3, 10]), heads=2, patch=2)[-1]
    expected = -own[:, :4] if name == "sit" else own
    assert found.kind == spec.prediction == "flow"
    torch.testing.assert_close(found.value, expected, atol=1e-5, rtol=0)


def test_a_projector_of_repa_is_a_tap(tiny: Callable, images: Tensor) -> None:
    found = features(tiny("repa"), taps=["projectors.0"], pool="none")(images, keys=KEYS)
    assert [value.shape for value in found.values()] == [(5, 12, 8, 8)]


def test_the_null_class_is_the_empty_condition(tiny: Callable) -> None:
    loaded = features(tiny("sit"))._backbone
    assert loaded.encode_conditions([None, "", 9, "0"])["class_labels"].tolist() == [10, 10, 9, 0]
    with pytest.raises(ConfigError, match=r"0\.\.9"):
        loaded.encode_conditions([10])


def test_without_a_null_class_there_is_no_empty_condition(tmp_path: Path) -> None:
    folder = sit.tiny(tmp_path / "model", class_dropout=False)
    assert plan_for(str(folder), taps=["*"], timesteps=[0], condition="label").spec.conditions == ("label", "prompt")
    with pytest.raises(ConfigError, match="empty"):
        plan_for(str(folder), taps=["*"], timesteps=[0], condition="empty")


def test_the_direction_of_time_is_in_the_fingerprint(tiny: Callable) -> None:
    found = [plan_for(str(tiny(name)), taps=["*"], timesteps=[0]).fingerprint["conditioning"] for name in NAMES]
    assert found == [{"convention": "sit"}, {"convention": "repa"}]


def test_only_its_own_resolution_is_taken(tiny: Callable) -> None:
    assert plan_for(str(tiny("sit")), taps=["*"], timesteps=[0]).resolution == 32
    with pytest.raises(ConfigError, match="positions of .* are fixed"):
        plan_for(str(tiny("sit")), taps=["*"], timesteps=[0], resolution=64)


def settings_of(folder: Path) -> dict[str, object]:
    config = json.loads((folder / "transformer/config.json").read_text())
    return {name: value for name, value in config.items() if name != "_class_name"}


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_written_from_tensors_and_a_vae(name: str, tiny: Callable, images: Tensor, tmp_path: Path) -> None:
    made = tiny(name)
    weights = shutil.copy(made / WEIGHTS, tmp_path / "published.safetensors")
    written = sit.write_folder(weights, made / "vae", tmp_path / "model", **settings_of(made))
    ours, theirs = (features(folder)(images, keys=KEYS) for folder in (written, made))
    for cell, value in ours.items():
        assert torch.equal(value, theirs[cell])
    with pytest.raises(ConfigError, match="exists already"):
        sit.write_folder(weights, made / "vae", written, **settings_of(made))


@pytest.mark.parametrize("way", ["write", "load"])
def test_other_tensors_are_refused_by_their_names(way: str, tiny: Callable, tmp_path: Path) -> None:
    """Those of REPA's first release, for example, whose later blocks are `decoder_blocks`."""
    made = Path(shutil.copytree(tiny("sit"), tmp_path / "made"))
    tensors = load_file(made / WEIGHTS)
    tensors["decoder_blocks.0.mlp.fc1.bias"] = tensors.pop("blocks.2.mlp.fc1.bias")
    save_file(tensors, made / WEIGHTS)
    with pytest.raises(WeightsMismatch) as caught:
        if way == "write":
            sit.write_folder(made / WEIGHTS, made / "vae", tmp_path / "model", **settings_of(made))
        else:
            features(made, taps=["blocks.2"])
    assert "missing 1: blocks.2.mlp.fc1.bias" in str(caught.value)
    assert "of another network 1: decoder_blocks.0.mlp.fc1.bias" in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_tensors_of_another_size_are_refused(tiny: Callable, tmp_path: Path) -> None:
    made = tiny("sit")
    with pytest.raises(WeightsMismatch, match="of another shape"):
        sit.write_folder(made / WEIGHTS, made / "vae", tmp_path / "m", **{**settings_of(made), "num_classes": 11})


@pytest.mark.parametrize("changes", [{"in_channels": 8}, {"speed": 1}, {"convention": "other"}])
def test_a_config_that_does_not_fit_is_refused(changes: dict[str, object], tiny: Callable, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("sit"), tmp_path / "model"))
    path = folder / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DiffprobeError):
        features(folder)


def test_the_cut_model_lacks_the_later_blocks(tiny: Callable) -> None:
    names = set(features(tiny("sit"))._backbone.denoiser.state_dict())
    assert "pos_embed" in names and not any(name.startswith(("blocks.1", "final_layer")) for name in names)


def test_blocks_can_be_read_modulated(tiny: Callable, images: Tensor) -> None:
    loaded = features(tiny("sit"), taps=["blocks.1/modulated"], pool="none")
    (found,) = loaded(images, keys=KEYS).values()
    assert found.shape == (5, 32, 8, 8)
