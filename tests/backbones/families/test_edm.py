import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import edm
from diffprobe.backbones.loading import make_network
from diffprobe.backbones.noise import edm_sigmas
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.rng import noise_for
from diffprobe.scoring.denoising_error import DenoisingError
from tests.backbones.plans import plan_for

KEYS = list("abcde")
LABELS = [3, 0, 9, 1, 3]
T = 400
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
KINDS: dict[str, dict[str, Any]] = {"ddpmpp": {}, "adm": {"architecture": "adm", "label_dim": 10}}
TAPS = ["enc.32x32_conv", "enc.32x32_block0", "dec.16x16_in0", "dec.32x32_block1"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("edm")

    def make(name: str) -> Path:
        return root / name if (root / name).is_dir() else edm.tiny(root / name, **KINDS[name])

    return make


def condition_of(folder: Path) -> str:
    return "label" if folder.name == "adm" else "empty"


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"timesteps": [T], "device": "cpu", "condition": condition_of(folder)}
    return DiffusionFeatures.from_pretrained(str(folder), **{**chosen, **settings})  # type: ignore[arg-type]


@torch.no_grad()
def preconditioned(folder: Path, images: Tensor, sigma: float) -> tuple[torch.nn.Module, Tensor, Tensor, Tensor]:
    """Return the network, the data in [-1, 1], their noise, and the input c_in (data + sigma noise)."""
    config = json.loads((folder / "unet/config.json").read_text())
    network = make_network("EdmUNet", config, torch.device("cpu"), where=folder)
    network.load_state_dict(load_file(folder / WEIGHTS))
    data = images * 2 - 1
    noise = torch.stack([noise_for(0, key, 0, tuple(data.shape[1:])) for key in KEYS])
    return network, data, noise, (data + sigma * noise) / (sigma**2 + 0.25) ** 0.5


@pytest.mark.parametrize("name", list(KINDS))
@torch.no_grad()
def test_features_and_predictions_are_those_of_edms_own_formulas(
    name: str, tiny: Callable[[str], Path], images: Tensor, plain_hooks: Callable[..., dict[str, Tensor]]
) -> None:
    """Features by plain hooks; the image by D = c_skip x + c_out F (2206.00364, equation 7)."""
    folder, sigma = tiny(name), float(edm_sigmas(1000)[T])
    labels = torch.tensor(LABELS) if name == "adm" else None
    network, data, noise, x = preconditioned(folder, images, sigma)
    level = torch.tensor(sigma).log().expand(5) / 4
    found = features(folder, taps=TAPS, pool="none")(images, keys=KEYS, labels=LABELS)
    expected = plain_hooks(network, TAPS, x, level, labels)
    for tap in TAPS:
        torch.testing.assert_close(
            found[f"{tap}@t{T}:{condition_of(folder)}:none"], expected[tap], atol=1e-5, rtol=1e-5
        )
    scale = (sigma**2 + 0.25) ** 0.5
    image = 0.25 / scale**2 * (data + sigma * noise) + sigma * 0.5 / scale * network(x, level, labels)
    model = DenoisingError.from_pretrained(str(folder), device="cpu")
    times = torch.full((5,), T)
    x_t = model.spec.schedule.add(model.backbone.encode_images(images), noise, times)
    torch.testing.assert_close(x_t, x, atol=1e-5, rtol=1e-5)
    predicted = model.backbone.denoise(x_t, times, model.backbone.encode_conditions(LABELS))
    signal, spread = (float(table[T]) for table in (model.spec.schedule.signal, model.spec.schedule.noise))
    assert predicted.kind == model.spec.prediction == "v"
    torch.testing.assert_close((signal * x_t - spread * predicted.value) * 0.5, image, atol=1e-5, rtol=1e-5)


def test_parts_of_an_attention_are_read(tiny: Callable[[str], Path], images: Tensor) -> None:
    taps = [tap.path for tap in list_taps(str(tiny("ddpmpp")), inner=True)]
    assert [path for path in taps if path.endswith("/heads")] == [
        "enc.16x16_block0/heads", "dec.16x16_in0/heads", "dec.16x16_block1/heads"
    ]  # fmt: skip
    loaded = features(tiny("adm"), taps=["dec.16x16_in0/heads", "dec.16x16_in0.proj"], pool="none")
    heads, mixed = loaded(images, keys=KEYS, labels=LABELS).values()
    proj = loaded._backbone.denoiser.get_submodule("dec.16x16_in0.proj")
    torch.testing.assert_close(proj(heads), mixed, atol=1e-5, rtol=1e-5)


def test_a_conditional_network_takes_classes_and_no_empty(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="label, prompt"):
        plan_for(str(tiny("adm")), taps=["enc.*"], timesteps=[0], condition="empty")
    assert plan_for(str(tiny("ddpmpp")), taps=["enc.*"], timesteps=[0]).spec.conditions == ("empty",)
    with pytest.raises(ConfigError, match="allowed: 32"):
        plan_for(str(tiny("ddpmpp")), taps=["enc.*"], timesteps=[0], resolution=64)


@pytest.fixture
def published(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Write tensors as `EDMPrecond` of EDM's code names them, with those that are left out."""

    def write(name: str, **more: Tensor) -> Path:
        tensors = {f"model.{key}": value for key, value in load_file(tiny(name) / WEIGHTS).items()}
        box = torch.full((1, 1, 2, 2), 0.25)
        tensors |= {"model.enc.16x16_down.conv0.resample_filter": box, "model.enc.16x16_down.skip.resample_filter": box}
        tensors |= {"model.map_augment.weight": torch.zeros(16, 9), **more}
        save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "published.safetensors")
        return tmp_path / "published.safetensors"

    return write


def settings_of(folder: Path) -> dict[str, object]:
    config = json.loads((folder / "unet/config.json").read_text())
    return {name: value for name, value in config.items() if name != "_class_name"}


@pytest.mark.parametrize("name", list(KINDS))
def test_a_folder_is_written_from_published_tensors(
    name: str, tiny: Callable[[str], Path], published: Callable[..., Path], tmp_path: Path
) -> None:
    made = tiny(name)
    written = edm.write_folder(published(name), tmp_path / name, **settings_of(made))
    kept, expected = load_file(written / WEIGHTS), load_file(made / WEIGHTS)
    assert kept.keys() == expected.keys() and all(torch.equal(kept[key], expected[key]) for key in kept)
    assert (written / "model_index.json").read_bytes() == (made / "model_index.json").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        edm.write_folder(published(name), written, **settings_of(made))


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"num_blocks": 2}, {}, "missing .*block1"),
        ({"label_dim": 10}, {}, "missing .*map_label"),
        ({"speed": 1}, {}, "unknown speed"),
        ({}, {"model.enc.16x16_aux_residual.weight": torch.zeros(32, 16, 3, 3)}, "aux_residual"),  # of NCSN++
    ],
)
def test_tensors_of_other_settings_are_refused(
    changes: dict[str, object],
    more: dict[str, Tensor],
    message: str,
    tiny: Callable[[str], Path],
    published: Callable[..., Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(WeightsMismatch, match=message):
        edm.write_folder(published("ddpmpp", **more), tmp_path / "out", **{**settings_of(tiny("ddpmpp")), **changes})
    assert not (tmp_path / "out").exists()
