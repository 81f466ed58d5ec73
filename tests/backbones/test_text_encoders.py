import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from diffprobe.backbones.testing.tiny_transformer import tiny_t5
from diffprobe.backbones.text_encoders import ClipTextEncoder, PromptCache, load_clip_text, load_t5_text
from diffprobe.core.errors import RunFailed, WeightsMissing

Encode = Callable[[list[str]], torch.Tensor]


@pytest.fixture
def text(tiny_sd: Path) -> ClipTextEncoder:
    return load_clip_text(tiny_sd, dtype=torch.float32)


@pytest.fixture
def encoder(text: ClipTextEncoder) -> Encode:
    memory = PromptCache(lambda prompts: {"states": text(prompts)[0]})
    return lambda prompts: memory(prompts)["states"]


@pytest.fixture
def seen(text: ClipTextEncoder) -> list[int]:
    """Number of prompts in each call of the text encoder."""
    calls: list[int] = []
    text.encoder.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    return calls


def test_prompts_are_encoded_as_the_pipeline_does(encoder: Encode, tiny_sd: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    prompts = ["", "noto emoji, red cat"]
    expected, _ = pipeline.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(encoder(prompts), expected, atol=1e-5, rtol=0)


def test_a_prompt_is_encoded_once(encoder: Encode, seen: list[int]) -> None:
    first = encoder(["cat", "dog", "cat"])
    again = encoder(["dog", "cat", "sun"])
    assert seen == [2, 1]
    assert torch.equal(first[0], first[2]) and torch.equal(first[1], again[0])


def test_memory_is_bounded_and_the_oldest_goes_first(
    encoder: Encode, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffprobe.backbones.text_encoders._CACHE_BYTES", 2 * 24 * 32 * 4)  # two prompts
    encoder(["cat"])
    encoder(["dog"])
    encoder(["cat"])  # used again, so dog is now the older one
    encoder(["sun"])
    encoder(["cat"])
    assert seen == [1, 1, 1]
    encoder(["dog"])
    assert seen == [1, 1, 1, 1]


def test_what_is_too_long_is_cut_with_one_warning(encoder: Encode) -> None:
    with pytest.warns(UserWarning, match="tokens .* 24 "):
        long = encoder(["cat " * 40])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(long, encoder(["cat " * 41]))


def test_the_encoder_is_frozen(text: ClipTextEncoder) -> None:
    assert not text.encoder.training
    assert not any(p.requires_grad for p in text.encoder.parameters())


def test_a_sealed_memory_knows_what_it_knew_and_no_more(text: ClipTextEncoder) -> None:
    memory = PromptCache(lambda prompts: {"states": text(prompts)[0]})
    known = memory(["cat"])["states"]
    memory.seal()
    assert torch.equal(memory(["cat"])["states"], known)
    with pytest.raises(RunFailed, match="freed before 'dog'"):
        memory(["dog"])


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="text_encoder"):
        load_clip_text(tmp_path, dtype=torch.float32)


def test_without_a_vocabulary_nothing_is_made_up(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").symlink_to(tiny_sd / "text_encoder")
    with pytest.raises(WeightsMissing, match="no vocabulary"):
        load_clip_text(tmp_path, dtype=torch.float32)


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    """A pipeline folder that has a T5 alone."""
    _, encoder = tiny_t5(tmp_path / "tokenizer")
    encoder.save_pretrained(tmp_path / "text_encoder")
    return tmp_path


PARTS = {"encoder": "text_encoder", "tokenizer": "tokenizer"}


def test_a_t5_text_is_filled_to_its_length_and_padding_can_be_hidden(t5: Path) -> None:
    text = load_t5_text(t5, dtype=torch.float32, length=7, **PARTS)
    states, mask = text(["red cat", ""], masked=True)
    assert states.shape == (2, 7, 32) and mask.sum(1).tolist() == [3, 1]
    ids = text.tokenizer("red cat", return_tensors="pt").input_ids
    torch.testing.assert_close(states[:1, :3], text.encoder(ids)[0], atol=1e-5, rtol=0)
    seen, _ = text(["red cat", ""])
    assert float((seen[:1, :3] - states[:1, :3]).abs().max()) > 1e-3


def test_a_t5_has_the_asked_precision(t5: Path) -> None:
    assert load_t5_text(t5, dtype=torch.bfloat16, length=7, **PARTS)(["cat"])[0].dtype == torch.bfloat16


def test_the_only_variant_of_an_encoder_is_read(t5: Path) -> None:
    plain = load_t5_text(t5, dtype=torch.float32, length=7, **PARTS)
    (t5 / "text_encoder" / "model.safetensors").unlink()
    plain.encoder.half().save_pretrained(t5 / "text_encoder", variant="fp16")  # type: ignore[operator]
    assert [file.name for file in (t5 / "text_encoder").glob("*.safetensors")] == ["model.fp16.safetensors"]
    found = load_t5_text(t5, dtype=torch.float32, length=7, **PARTS)
    for name, value in found.encoder.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, plain.encoder.state_dict()[name].float())


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="with the package such a vocabulary can be read")
def test_a_vocabulary_that_cannot_be_read_is_refused(t5: Path) -> None:
    (t5 / "tokenizer" / "tokenizer.json").rename(t5 / "tokenizer" / "spiece.model")
    with pytest.raises(WeightsMissing, match="needs the package sentencepiece"):
        load_t5_text(t5, dtype=torch.float32, length=7, **PARTS)
