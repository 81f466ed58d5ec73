"""Edited text embeddings: the difference of two texts is added to a third one."""

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.scoring.edits.text import EditedText, encode_texts
from diffprobe.scoring.intervention_network import InterventionNetwork
from diffprobe.scoring.sampling import PromptSampler, sampling_timesteps
from tests.backbones.plans import plan_for

TABLE = {"a": 1.0, "b": 10.0, "c": 100.0}


def encode(inputs):
    rows = torch.tensor([[TABLE[one]] * 2 for one in inputs])
    return {"states": rows, "pooled": rows[:, 0] * 2, "mask": torch.tensor([len(one) for one in inputs])}


def test_the_difference_of_two_texts_is_added_times_the_strength():
    inputs = [
        "b",
        EditedText(text="a", towards="c", away="b", strength=-0.5),
        EditedText(text="a", towards="c", away="b", strength=0),
    ]
    found = encode_texts(encode, inputs)
    moved = 1 - 0.5 * (100 - 10)
    assert torch.equal(found["states"], torch.tensor([[10.0] * 2, [moved] * 2, [1.0] * 2]))
    assert torch.equal(found["pooled"], 2 * found["states"][:, 0])
    assert torch.equal(found["mask"], torch.tensor([1, 1, 1]))


def test_without_an_embedding_it_is_refused():
    with pytest.raises(ConfigError, match="no text embedding"):
        encode_texts(lambda inputs: {"class": torch.zeros(len(inputs), dtype=torch.int64)},
                     [EditedText(text="a", towards="b", away="c")])  # fmt: skip


@pytest.mark.slow
def test_images_of_an_edited_text_are_those_of_the_text_that_the_edit_amounts_to(tiny_sd):
    network = InterventionNetwork(plan_for(str(tiny_sd), taps=["mid_block"], timesteps=[500]), device="cpu", rows=2)

    def latents(*inputs):
        keys = [f"key {row}" for row in range(len(inputs))]
        return PromptSampler(network, list(inputs), keys, sampling_timesteps(3, 1000), 3.0, 7).untouched[-1]

    own = latents("red cat", "blue dog", "red dog")
    same = latents(
        *(EditedText(text=one, towards="blue dog", away="blue dog") for one in ("red cat", "blue dog", "red dog"))
    )
    assert torch.equal(own, same)
    swapped = latents("red cat", EditedText(text="blue dog", towards="red dog", away="blue dog"), "red dog")
    expected = latents("red cat", "red dog", "red dog")
    torch.testing.assert_close(swapped, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(swapped[1], own[1], atol=1e-3)
