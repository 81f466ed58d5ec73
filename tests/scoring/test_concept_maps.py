"""Maps of concepts of whole backbones: shares, means over cells, and concepts that cannot be compared."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffprobe.backbones.families import dit, flux, sd3, sd_unet
from diffprobe.core.errors import ConfigError
from diffprobe.scoring.concept_maps import ConceptMaps
from diffprobe.scoring.denoising_error import DenoisingError

CONCEPTS, KEYS = ["cat", "a blue dog", "red"], ["a", "b"]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["sd", "flux", "sd3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DenoisingError:
    tiny: Callable[..., Path] = {"sd3": sd3.tiny, "flux": flux.tiny, "sd": sd_unet.tiny}[request.param]
    path = tiny(tmp_path_factory.mktemp("tiny") / request.param)
    return DenoisingError.from_pretrained(str(path), device="cpu", resolution=32)


def test_maps_are_shares_and_the_mean_of_the_cells(model: DenoisingError, images: torch.Tensor) -> None:
    maps = ConceptMaps(model, CONCEPTS)
    cells = maps.cells(images, KEYS, [100, 300], size=(8, 8))
    assert set(cells) == {(path, t) for path in maps.attentions for t in (100, 300)}
    mean = maps(images, KEYS, [100, 300], size=(8, 8))
    assert mean.shape == (2, 3, 8, 8)
    torch.testing.assert_close(mean, sum(cells.values()) / len(cells), atol=1e-6, rtol=0)
    torch.testing.assert_close(mean.sum(1), torch.ones(2, 8, 8), atol=1e-5, rtol=0)
    last = maps.attentions[-1]
    (alone,) = maps.cells(images[1:], KEYS[1:], [300], attentions=[last], size=(8, 8)).values()
    torch.testing.assert_close(alone[0], cells[last, 300][1], atol=1e-5, rtol=0)
    raw = ConceptMaps(model, CONCEPTS, space="attention")(images, KEYS, [100, 300], size=(8, 8))
    assert (raw - mean).abs().max() > 1e-4


def test_concepts_that_cannot_be_compared(model: DenoisingError, images: torch.Tensor) -> None:
    for concepts, fact in ((["cat"], "two"), (["cat", "cat"], "cat"), (["cat", " "], "empty")):
        with pytest.raises(ConfigError, match=fact):
            ConceptMaps(model, concepts)
    with pytest.raises(ConfigError, match=r"nowhere\.attn"):
        ConceptMaps(model, CONCEPTS)(images, KEYS, [100], attentions=["nowhere.attn"])
    with pytest.raises(ConfigError, match="timestep"):
        ConceptMaps(model, CONCEPTS)(images, KEYS, [])


def test_backbones_without_the_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="T5"):
        ConceptMaps.from_pretrained(str(sd3.tiny(tmp_path / "sd3", t5=False)), CONCEPTS, device="cpu", resolution=32)
    with pytest.raises(ConfigError, match="attention"):
        ConceptMaps.from_pretrained(str(dit.tiny(tmp_path / "dit")), CONCEPTS, device="cpu")


def test_attention_to_words_of_the_prompt_is_the_softmax_of_their_tokens(tmp_path: Path, images: torch.Tensor) -> None:
    path = str(sd_unet.tiny(tmp_path / "sd"))
    model = DenoisingError.from_pretrained(path, device="cpu", resolution=32)
    maps = ConceptMaps(model, ["cat", "red"], prompt="a red cat", space="probs")
    attention = maps.attentions[-1]
    module = model.backbone.denoiser.get_submodule(attention)
    seen: dict[str, torch.Tensor] = {}
    for name in ("to_q", "to_k"):
        module.get_submodule(name).register_forward_hook(lambda _, args, output, name=name: seen.update({name: output}))
    (found,) = maps.cells(images, KEYS, [100], attentions=[attention]).values()
    q, k = (seen[name].unflatten(-1, (module.heads, -1)).transpose(1, 2) for name in ("to_q", "to_k"))
    probs = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1).mean(1)  # [image, place, token]
    side = int(probs.shape[1] ** 0.5)
    probs = probs.transpose(1, 2).unflatten(2, (side, side))
    (text,) = model.backbone.texts.values()
    pieces = [len(text.tokenizer(word).input_ids) - 2 for word in ("a", "red", "cat")]
    first = 1 + pieces[0]
    red = probs[:, first : first + pieces[1]].mean(1)
    cat = probs[:, first + pieces[1] : first + pieces[1] + pieces[2]].mean(1)
    shares = torch.stack([cat, red], dim=1) / (cat + red)[:, None]
    expected = torch.nn.functional.interpolate(shares, size=found.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for prompt, concepts, fact in (("a red cat", ["cat", "dog"], "dog"), (None, ["cat", "word " * 40], "tokens")):
        with pytest.raises(ConfigError, match=fact):
            ConceptMaps(model, concepts, prompt=prompt, space="probs")


def test_attention_to_the_words_of_the_prompt_is_refused_in_joint_attention(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="space=probs"):
        ConceptMaps.from_pretrained(str(flux.tiny(tmp_path)), CONCEPTS, space="probs", device="cpu", resolution=32)
