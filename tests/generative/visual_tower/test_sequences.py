"""Token sequences of captions: where the image goes, what counts for the loss, and what is refused."""

import pytest

from diffprobe.core.errors import ConfigError, SampleError
from diffprobe.generative.tokenizer import train_tokenizer
from diffprobe.generative.visual_tower.sequences import IGNORED, CaptionSequences

PLACE, N = 9999, 4


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red cat", "a blue dog on a mat"], vocab_size=540, max_tokens=1000)


def make(tokenizer, *, prompt="a <image> dog", max_length=64) -> CaptionSequences:
    return CaptionSequences(tokenizer, image_token_id=PLACE, n_visual=N, prompt=prompt, max_length=max_length)


def test_a_sequence_is_start_prompt_with_image_caption_and_end(tokenizer) -> None:
    def ids(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    batch = make(tokenizer)(["a red cat"])
    prompt = [tokenizer.bos_token_id, *ids("a"), *[PLACE] * N, *ids("dog")]
    assert batch.input_ids.tolist() == [[*prompt, *ids("a red cat"), tokenizer.eos_token_id]]
    assert batch.labels.tolist() == [[*[IGNORED] * len(prompt), *ids("a red cat"), tokenizer.eos_token_id]]
    text = make(tokenizer)(["a red cat"], image=False)
    assert (
        PLACE not in text.input_ids
        and text.labels[text.labels != IGNORED].tolist() == batch.labels[0, len(prompt) :].tolist()
    )


def test_padding_has_neither_attention_nor_loss(tokenizer) -> None:
    sequences = make(tokenizer)
    both, alone = sequences(["a", "a blue dog on a mat"]), sequences(["a"])
    n = alone.input_ids.shape[1]
    assert both.input_ids[0, :n].tolist() == alone.input_ids[0].tolist()
    assert both.attention_mask[0].tolist() == [1] * n + [0] * (both.input_ids.shape[1] - n)
    assert both.labels[0, :n].tolist() == alone.labels[0].tolist() and (both.labels[0, n:] == IGNORED).all()
    assert both.attention_mask[1].all() and sequences.length("a") == n


@pytest.mark.parametrize("prompt", ["", "describe it", "<image> and <image>"])
def test_a_prompt_needs_the_image_once(tokenizer, prompt) -> None:
    with pytest.raises(ConfigError, match=f"{prompt.count('<image>')} times"):
        make(tokenizer, prompt=prompt)


def test_captions_that_are_too_long_are_named_with_their_lengths(tokenizer) -> None:
    sequences = make(tokenizer, max_length=10)
    sequences.require_fitting({"short": "a cat"})
    long = "a red cat " * 5
    with pytest.raises(SampleError, match="1 of 2 captions are longer than max_length=10") as raised:
        sequences.require_fitting({"short": "a cat", "k/7": long})
    assert f"'k/7': {sequences.length(long)} tokens" in str(raised.value)
    assert raised.value.fix is not None and f"max_length={sequences.length(long)}" in raised.value.fix


def test_a_tokenizer_without_an_end_is_refused() -> None:
    class Endless:
        eos_token_id = None

    with pytest.raises(ConfigError, match="eos_token"):
        make(Endless())
