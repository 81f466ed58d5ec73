"""A LoRA beside a frozen network: what it changes, what it leaves, and its file."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffprobe.backbones.families import sd3
from diffprobe.backbones.lora import Lora, fuse
from diffprobe.backbones.lora_adapters import LoraAdapters
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.scoring.denoising_error import DenoisingError


def digest(network: nn.Module) -> str:
    """Digest all numbers of a network, with their names."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


@pytest.fixture
def score(tiny_sd: Path) -> DenoisingError:
    return DenoisingError.from_pretrained(str(tiny_sd), device="cpu")


def errors(score: DenoisingError) -> Tensor:
    latents = score.encode_images(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    conditions = {name: x.expand(2, *x.shape) for name, x in score.encode_conditions(["a cat", "a dog"]).items()}
    return score(latents, ["a", "b"], conditions, [100, 600])


def drawn(lora: LoraAdapters) -> None:
    """Give both factors numbers with an effect."""
    with torch.no_grad():
        for number, up in enumerate(lora.up):
            up.copy_(torch.randn(up.shape, generator=torch.Generator().manual_seed(number)))


def test_it_starts_without_effect_and_covers_self_and_cross_attention(score: DenoisingError) -> None:
    before = errors(score)
    lora = LoraAdapters(score.backbone.denoiser, rank=2)
    assert torch.equal(errors(score), before)
    ends = {path.partition("transformer_blocks.0.")[2] for path in lora.layers}
    assert ends == {f"attn{i}.{end}" for i in (1, 2) for end in ("to_q", "to_k", "to_v", "to_out.0")}


def test_the_network_stays_as_it_is(score: DenoisingError) -> None:
    network = score.backbone.denoiser
    before, names, plain = digest(network), list(network.state_dict()), errors(score)
    lora = LoraAdapters(network)
    drawn(lora)
    assert (errors(score) - plain).abs().max() > 1e-3
    assert digest(network) == before and list(network.state_dict()) == names
    assert not any(p.requires_grad for p in network.parameters()) and all(p.requires_grad for p in lora.parameters())
    with lora.disabled():
        assert torch.equal(errors(score), plain)
    lora.remove()
    assert torch.equal(errors(score), plain)


def test_its_file_added_to_the_weights_gives_the_same_network(score: DenoisingError, tmp_path: Path) -> None:
    network = score.backbone.denoiser
    lora = LoraAdapters(network, rank=3)
    drawn(lora)
    path, hooked = lora.save(tmp_path / "lora.safetensors"), errors(score)
    lora.remove()
    fuse(Lora(path), score.backbone.components(), score.spec.denoiser, name="tiny")
    torch.testing.assert_close(errors(score), hooked, atol=1e-5, rtol=1e-5)


def test_a_file_is_read_back_and_another_refused(score: DenoisingError, tmp_path: Path) -> None:
    lora = LoraAdapters(score.backbone.denoiser, rank=2)
    start = lora.digest
    drawn(lora)
    path, trained = lora.save(tmp_path / "lora.safetensors"), lora.digest
    lora.remove()
    again = LoraAdapters(score.backbone.denoiser, rank=2)
    assert again.digest == start != trained
    again.read(path)
    assert again.digest == trained
    with pytest.raises(WeightsMismatch, match="rank"):
        LoraAdapters(score.backbone.denoiser, rank=3).read(path)


def test_a_transformer_is_named_as_one_and_a_network_without_attention_refused(tmp_path: Path) -> None:
    score = DenoisingError.from_pretrained(str(sd3.tiny(tmp_path / "sd3")), device="cpu")
    path = LoraAdapters(score.backbone.denoiser).save(tmp_path / "lora.safetensors")
    fuse(Lora(path), score.backbone.components(), score.spec.denoiser, name="tiny")
    with pytest.raises(ConfigError, match="no attention"):
        LoraAdapters(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match="rank=0"):
        LoraAdapters(score.backbone.denoiser, rank=0)
