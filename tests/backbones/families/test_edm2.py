import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import edm2
from diffprobe.backbones.loading import make_network
from diffprobe.backbones.noise import edm_sigmas
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import ConfigError, DiffprobeError, WeightsMismatch
from diffprobe.core.rng import noise_for
from diffprobe.scoring.denoising_error import DenoisingError
from tests.backbones.plans import plan_for

KEYS = list("abcde")
LABELS = [3, 0, 9, 1, 3]
T = 400
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
NAMES = ["latents", "pixels"]
TAPS = ["enc.{0}x{0}_conv", "enc.{0}x{0}_block0", "dec.{1}x{1}_in0", "dec.{0}x{0}_block1"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("edm2")

    def make(name: str) -> Path:
        return root / name if (root / name).is_dir() else edm2.tiny(root / name, pixels=name == "pixels")

    return make


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"timesteps": [T], "device": "cpu", "condition": "empty" if folder.name == "pixels" else "label"}
    return DiffusionFeatures.from_pretrained(str(folder), **{**chosen, **settings})  # type: ignore[arg-type]


@torch.no_grad()
def preconditioned(folder: Path, images: Tensor, sigma: float) -> tuple[torch.nn.Module, Tensor, Tensor, Tensor]:
    """Return the network, its input and noise level for data of EDM's own deviation, 0.5, and that data's noise."""
    config = json.loads((folder / "unet/config.json").read_text())
    network = make_network("Edm2UNet", config, torch.device("cpu"), where=folder)
    network.load_state_dict(load_file(folder / WEIGHTS))
    data = images * 2 - 1
    if folder.name == "latents":
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(folder / "vae")
        mean, std = (
            torch.tensor(x).reshape(1, -1, 1, 1) for x in ([5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28])
        )
        data = (vae.encode(images).latent_dist.mode() - mean) / std * 0.5
    noise = torch.stack([noise_for(0, key, 0, tuple(data.shape[1:])) for key in KEYS])
    return network, data, noise, (data + sigma * noise) / (sigma**2 + 0.25) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_features_equal_plain_hooks_on_edms_own_formulas(
    name: str, tiny: Callable, images: Tensor, plain_hooks: Callable
) -> None:
    folder = tiny(name)
    side = 16 if name == "latents" else 32
    taps = [tap.format(side, side // 2) for tap in TAPS]
    labels = torch.tensor(LABELS) if name == "latents" else None
    found = features(folder, taps=taps, pool="none")(images, keys=KEYS, labels=LABELS)
    sigma = float(edm_sigmas(1000)[T])
    network, _, _, x = preconditioned(folder, images, sigma)
    level = torch.tensor(sigma).log().expand(5) / 4
    expected = plain_hooks(network, taps, x, level, labels)
    for tap in taps:
        condition = "label" if name == "latents" else "empty"
        torch.testing.assert_close(found[f"{tap}@t{T}:{condition}:none"], expected[tap], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_predicted_image_is_that_of_the_preconditioned_network(name: str, tiny: Callable, images: Tensor) -> None:
    """D = c_skip x + c_out F (2206.00364, equation 7) is the image that follows from v, in units of its deviation."""
    folder = tiny(name)
    sigma = float(edm_sigmas(1000)[T])
    network, data, noise, x = preconditioned(folder, images, sigma)
    scale = (sigma**2 + 0.25) ** 0.5
    labels = torch.tensor(LABELS) if name == "latents" else None
    output = network(x, torch.tensor(sigma).log().expand(5) / 4, labels)
    image = 0.25 / scale**2 * (data + sigma * noise) + sigma * 0.5 / scale * output
    model = DenoisingError.from_pretrained(str(folder), device="cpu")
    clean = model.backbone.encode_images(images)
    torch.testing.assert_close(clean * 0.5, data, atol=1e-5, rtol=1e-5)
    times = torch.full((5,), T)
    x_t = model.spec.schedule.add(clean, noise, times)
    torch.testing.assert_close(x_t, x, atol=1e-5, rtol=1e-5)
    found = model.backbone.denoise(x_t, times, model.backbone.encode_conditions(LABELS))
    assert found.kind == model.spec.prediction == "v"
    signal, spread = (float(table[T]) for table in (model.spec.schedule.signal, model.spec.schedule.noise))
    torch.testing.assert_close((signal * x_t - spread * found.value) * 0.5, image, atol=1e-5, rtol=1e-5)


def test_the_grid_has_the_noise_levels_that_the_page_of_models_states() -> None:
    sigmas = edm_sigmas(1000)
    assert abs(float(sigmas[0]) - 0.002) < 1e-9 and abs(float(sigmas[-1]) - 80) < 1e-9
    assert int((sigmas.log() + 0.4).abs().argmin()) == 365  # P_mean of the published img512 models


def test_parts_of_an_attention_are_read(tiny: Callable, images: Tensor) -> None:
    taps = {tap.path: tap.size for tap in list_taps(str(tiny("latents")), inner=True)}
    assert [path for path in taps if path.endswith("/heads")] == [
        "enc.8x8_block0/heads", "dec.8x8_in0/heads", "dec.8x8_block0/heads", "dec.8x8_block1/heads",
    ]  # fmt: skip
    loaded = features(
        tiny("latents"), taps=["dec.8x8_in0/q", "dec.8x8_in0/heads", "dec.8x8_in0.attn_proj"], pool="none"
    )
    q, heads, mixed = loaded(images, keys=KEYS, labels=LABELS).values()
    block = loaded._backbone.denoiser.get_submodule("dec.8x8_in0")
    torch.testing.assert_close(block.get_submodule("attn_proj")(heads), mixed, atol=1e-5, rtol=0)
    size = q.unflatten(1, (2, 16)).square().mean(2)
    torch.testing.assert_close(size, torch.ones_like(size), atol=1e-2, rtol=0)  # each query has unit magnitude


def test_a_conditional_network_takes_classes_and_no_empty(tiny: Callable) -> None:
    folder = tiny("latents")
    loaded = features(folder, taps=["enc.16x16_block0"])
    assert loaded._backbone.encode_conditions([9, "0"])["class_labels"].tolist() == [9, 0]
    with pytest.raises(ConfigError, match=r"0\.\.9"):
        loaded._backbone.encode_conditions([10])
    with pytest.raises(ConfigError, match="label, prompt"):
        plan_for(str(folder), taps=["enc.16x16_block0"], timesteps=[0], condition="empty")
    assert plan_for(str(tiny("pixels")), taps=["enc.*"], timesteps=[0], condition="empty").spec.conditions == ("empty",)


def test_the_cut_model_lacks_the_later_blocks(tiny: Callable) -> None:
    names = set(features(tiny("pixels"), taps=["enc.32x32_block0"])._backbone.denoiser.state_dict())
    assert "emb_fourier.freqs" in names and not any(name.startswith(("dec", "enc.16x16", "out_conv")) for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_only_its_own_resolution_is_taken(name: str, tiny: Callable) -> None:
    settings = {"taps": ["dec.*"], "timesteps": [0], "condition": "label" if name == "latents" else "empty"}
    assert plan_for(str(tiny(name)), **settings).resolution == 32
    with pytest.raises(ConfigError, match="allowed: 32"):
        plan_for(str(tiny(name)), **settings, resolution=64)


def settings_of(folder: Path) -> dict[str, object]:
    config = json.loads((folder / "unet/config.json").read_text())
    return {name: value for name, value in config.items() if name != "_class_name"}


@pytest.fixture
def published(tiny: Callable, tmp_path: Path) -> Callable[[str], Path]:
    """Write tensors as `Precond` of EDM2's code names them, in float16 and with those of the loss's uncertainty."""

    def write(name: str) -> Path:
        tensors = {f"unet.{key}": value.half() for key, value in load_file(tiny(name) / WEIGHTS).items()}
        tensors |= {"logvar_linear.weight": torch.zeros(1, 128), "logvar_fourier.freqs": torch.zeros(128)}
        save_file(tensors, tmp_path / "published.safetensors")
        return tmp_path / "published.safetensors"

    return write


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_written_from_published_tensors(
    name: str, tiny: Callable, published: Callable, images: Tensor, tmp_path: Path
) -> None:
    made, vae = tiny(name), None
    if name == "latents":
        vae = Path(shutil.copytree(made / "vae", tmp_path / "vae"))
        config = json.loads((vae / "config.json").read_text())
        (vae / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKL"}))
    written = edm2.write_folder(published(name), tmp_path / name, vae=vae, **settings_of(made))
    kept = load_file(written / WEIGHTS)
    assert kept.keys() == load_file(made / WEIGHTS).keys()
    taps = ["dec.8x8_block1" if name == "latents" else "dec.16x16_block1"]
    ours, theirs = (features(folder, taps=taps)(images, keys=KEYS, labels=LABELS) for folder in (written, made))
    for cell, value in ours.items():
        torch.testing.assert_close(value, theirs[cell], atol=1e-2, rtol=0)
    with pytest.raises(ConfigError, match="exists already"):
        edm2.write_folder(published(name), written, vae=vae, **settings_of(made))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_dim": 11}, "of another shape"),
        ({"num_blocks": 2}, "missing .*block1"),
        ({"img_channels": 3}, "takes 3 channels"),
        ({"speed": 1}, "unknown speed"),
    ],
)
def test_tensors_of_other_settings_are_refused(
    changes: dict[str, object], message: str, tiny: Callable, published: Callable, tmp_path: Path
) -> None:
    made = tiny("latents")
    vae = Path(shutil.copytree(made / "vae", tmp_path / "vae"))
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKL"}))
    with pytest.raises(WeightsMismatch, match=message):
        edm2.write_folder(published("latents"), tmp_path / "out", vae=vae, **{**settings_of(made), **changes})
    assert not (tmp_path / "out").exists()


def test_latents_without_a_vae_are_refused(tiny: Callable, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("latents"), tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    del index["vae"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(DiffprobeError, match="no VAE"):
        plan_for(str(folder), taps=["dec.*"], timesteps=[0], condition="label")
