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
