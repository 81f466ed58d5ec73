"""Discffusion's score against a plain loop over diffusers' own network, and the faults of its released code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.attended import Attended
from diffprobe.backbones.families import flux, pixart, sd3, unet2d
from diffprobe.core.errors import ConfigError, UnknownTap
from diffprobe.core.rng import noise_for
from diffprobe.probes.score.candidate_ranks import is_chosen, ranks
from diffprobe.scoring.attention_match import (
    AttentionMatch,
    AttentionMatchRule,
    cross_attentions,
    text_attention,
)
from diffprobe.scoring.denoising_error import DenoisingError

CAPTIONS = ["noto emoji, red circle", "twemoji emoji, blue square", "a green dog", ""]
KEYS, TIMESTEPS = ["a", "b", "c"], [50, 700]


@pytest.fixture(scope="module")
def plain(tiny_sd: Path) -> DenoisingError:
    return DenoisingError.from_pretrained(str(tiny_sd), device="cpu", seed=3)


@pytest.fixture(scope="module")
def latents(plain: DenoisingError) -> Tensor:
    return plain.encode_images(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def scores(score: DenoisingError, latents: Tensor, captions: list[str], keys: list[str] = KEYS) -> Tensor:
    rows = score.encode_conditions(captions)
    conditions = {name: x.expand(len(latents), *x.shape) for name, x in rows.items()}
    return score(latents, keys, conditions, TIMESTEPS)


class Recorder:
    """An attention processor of diffusers, written out, that keeps q k / sqrt(d) of a cross-attention."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Any:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)))
        logits = torch.einsum("bqd,bkd->bqk", q, k) / q.shape[-1] ** 0.5
        if encoder_hidden_states is not None:
            self.seen.append(logits.unflatten(0, (len(hidden_states), attn.heads)))
        return attn.to_out[0](attn.batch_to_head_dim(logits.softmax(-1) @ v))


def test_it_is_a_plain_loop_with_an_attention_processor_of_its_own(
    tiny_sd: Path, plain: DenoisingError, latents: Tensor
) -> None:
    from diffusers import StableDiffusionPipeline

    rule = AttentionMatchRule(attention_weight=0.3, error_weight=2.0, error="norm", heads=(0,))
    score = AttentionMatch.of(plain, rule)
    found = scores(score, latents, CAPTIONS)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    unet, recorders = pipeline.unet, {path: Recorder() for path in score.paths}
    for path, recorder in recorders.items():
        unet.get_submodule(path).set_processor(recorder)
    differences = torch.zeros_like(found)
    with torch.no_grad():
        for row, key in enumerate(KEYS):
            for column, t in enumerate(TIMESTEPS):
                noise = noise_for(3, key, t, tuple(latents.shape[1:]))[None]
                noised = pipeline.scheduler.add_noise(latents[row : row + 1], noise, torch.tensor([t]))
                norms, attention = [], []
                for caption in CAPTIONS:
                    states, _ = pipeline.encode_prompt(caption, "cpu", 1, do_classifier_free_guidance=False)
                    norms.append(float((unet(noised, t, states).sample - noise).double().norm()))
                    each = [recorder.seen.pop()[0, 0].exp().sum(-1).log().mean() for recorder in recorders.values()]
                    attention.append(float(sum(each) / len(each)))
                for candidate in range(len(CAPTIONS)):
                    expected = 2.0 * norms[candidate] - 0.3 * attention[candidate]
                    assert float(found[row, candidate, column]) == pytest.approx(expected, rel=1e-5)
                    # as published: the error under the empty text minus that under the candidate, larger is better
                    published = 0.3 * attention[candidate] + 2.0 * (norms[-1] - norms[candidate])
                    differences[row, candidate, column] = found[row, candidate, column] + published
    constant = differences - differences.mean(1, keepdim=True)
    assert constant.abs().max() < 1e-4 * found.abs().max()  # the same for all candidates: it cancels


def test_attention_by_hand() -> None:
    q = torch.tensor([[[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0]]])  # two places, two heads of width 2
    k = torch.tensor([[[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]])
    root = 2**-0.5
    first = [torch.tensor([root, 0.0]).logsumexp(0), torch.tensor([0.0, root]).logsumexp(0)]
    second = [torch.tensor([2 * root, 0.0]).logsumexp(0), torch.tensor([0.0, 0.0]).logsumexp(0)]
    both = torch.stack([*first, *second]).mean()
    torch.testing.assert_close(text_attention(Attended(q, k, None), n_heads=2), both[None], atol=1e-6, rtol=0)
    only = text_attention(Attended(q, k, None), n_heads=2, heads=[1])
    torch.testing.assert_close(only, torch.stack(second).mean()[None], atol=1e-6, rtol=0)
    hidden = text_attention(Attended(q, k, torch.tensor([[[True, False]]])), n_heads=2, heads=[0])
    torch.testing.assert_close(hidden, torch.tensor([root / 2]), atol=1e-6, rtol=0)


def test_zero_attention_weight_is_the_diffusion_classifier_bit_for_bit(plain: DenoisingError, latents: Tensor) -> None:
    score = AttentionMatch.of(plain, AttentionMatchRule(attention_weight=0.0))
    found, expected = scores(score, latents, CAPTIONS), scores(plain, latents, CAPTIONS)
    assert torch.equal(found, expected)
    right = torch.tensor([2, 0, 1])
    weighted = AttentionMatch.of(plain, AttentionMatchRule(attention_weight=0.0, error_weight=0.37))
    assert torch.equal(ranks(scores(weighted, latents, CAPTIONS).mean(2), right), ranks(expected.mean(2), right))


def test_attention_changes_the_score_and_nothing_of_the_pass(plain: DenoisingError, latents: Tensor) -> None:
    both, error, attention = (
        scores(AttentionMatch.of(plain, AttentionMatchRule(**weights)), latents, CAPTIONS)
        for weights in ({}, {"attention_weight": 0.0}, {"error_weight": 0.0})
    )
    torch.testing.assert_close(both, error + attention, atol=1e-9, rtol=0)
    assert attention.std(1).min() > 0 and (attention < 0).all()


@pytest.mark.slow
def test_an_image_has_the_same_scores_alone_and_in_a_batch(plain: DenoisingError, latents: Tensor) -> None:
    """The released code averages the attention over the batch, which makes it equal for all candidates."""
    rule = AttentionMatchRule(error_weight=0.0)
    together = scores(AttentionMatch.of(plain, rule), latents, CAPTIONS)
    alone = torch.cat(
        [scores(AttentionMatch.of(plain, rule), latents[i : i + 1], CAPTIONS, [KEYS[i]]) for i in range(3)]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    small = DenoisingError(plain.backbone, plain.spec, seed=3, rows=1)
    torch.testing.assert_close(
        scores(AttentionMatch.of(small, rule), latents, CAPTIONS), together, atol=1e-5, rtol=1e-5
    )
    assert together.std((0, 1)).min() > 1e-4


def test_candidates_change_places_with_their_scores(plain: DenoisingError, latents: Tensor) -> None:
    """A score reads its own text: neither its position, nor the others, the right one among them, have an effect."""
    score, order = AttentionMatch.of(plain, AttentionMatchRule()), [2, 0, 3, 1]
    found = scores(score, latents, CAPTIONS)
    moved = scores(score, latents, [CAPTIONS[place] for place in order])
    torch.testing.assert_close(moved, found[:, order], atol=1e-5, rtol=1e-5)
    without = scores(score, latents, CAPTIONS[1:])
    torch.testing.assert_close(without, found[:, 1:], atol=1e-5, rtol=1e-5)


def test_equal_scores_choose_nothing(plain: DenoisingError, latents: Tensor) -> None:
    """The released code takes the first of equal candidates, which is always the right one."""
    found = scores(AttentionMatch.of(plain, AttentionMatchRule()), latents, ["a dog"] * 3).mean(2)
    assert (found - found[:, :1]).abs().max() < 1e-6
    equal = found[:, :1].expand(-1, 3)
    assert not any(is_chosen(equal, torch.full((3,), place)).any() for place in range(3))


def test_the_last_cross_attention_of_each_group_of_blocks_is_read(plain: DenoisingError) -> None:
    every = cross_attentions(plain.spec, ["*.*.attentions.*.transformer_blocks.*.attn2", "mid_block.*.*.*.*.attn2"])
    chosen = cross_attentions(plain.spec)
    groups = [path.partition(".")[0] for path in chosen]
    assert groups == ["down_blocks", "mid_block", "up_blocks"] and set(chosen) <= set(every)
    for path in chosen:
        assert [other for other in every if other.partition(".")[0] == path.partition(".")[0]][-1] == path
    assert cross_attentions(plain.spec, [f"{chosen[0]}/logits"]) == cross_attentions(plain.spec, [chosen[0]])


def test_padding_that_the_network_does_not_see_is_not_counted(tmp_path: Path) -> None:
    plain = DenoisingError.from_pretrained(str(pixart.tiny(tmp_path / "pixart")), device="cpu")
    latents = plain.encode_images(torch.rand(1, 3, *(2 * [plain.spec.resolution])))
    score = AttentionMatch.of(plain, AttentionMatchRule(error_weight=0.0))
    rows = score.encode_conditions(["a dog"])
    changed = {name: x.clone() for name, x in rows.items()}
    padded = changed["encoder_attention_mask"][0] == 0
    assert padded.any()
    changed["encoder_hidden_states"][0, padded] += 5.0
    one, other = (score(latents, ["a"], {n: x[None] for n, x in given.items()}, [500]) for given in (rows, changed))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_family_without_a_text_is_refused(tmp_path: Path) -> None:
    plain = DenoisingError.from_pretrained(str(unet2d.tiny(tmp_path / "tiny")), device="cpu")
    with pytest.raises(ConfigError, match="no attention from the image to a text"):
        AttentionMatch.of(plain, AttentionMatchRule())
    AttentionMatch.of(plain, AttentionMatchRule(attention_weight=0.0))


@pytest.mark.slow
@pytest.mark.parametrize("family", [sd3, flux])
def test_joint_attention_scores_a_text_as_cross_attention_does(family: Any, tmp_path: Path) -> None:
    plain = DenoisingError.from_pretrained(str(family.tiny(tmp_path / "tiny")), device="cpu", seed=3, resolution=32)
    latents = plain.encode_images(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    both, error, attention = (
        scores(AttentionMatch.of(plain, AttentionMatchRule(**weights)), latents, CAPTIONS)
        for weights in ({}, {"attention_weight": 0.0}, {"error_weight": 0.0})
    )
    assert torch.equal(error, scores(plain, latents, CAPTIONS))  # ranks as Diffusion Classifier
    torch.testing.assert_close(both, error + attention, atol=1e-6, rtol=0)
    assert attention.std(1).min() > 0
    order = [2, 0, 3, 1]
    rule = AttentionMatchRule(error_weight=0.0)
    moved = scores(AttentionMatch.of(plain, rule), latents, [CAPTIONS[place] for place in order])
    torch.testing.assert_close(moved, attention[:, order], atol=1e-5, rtol=1e-5)
    alone = scores(AttentionMatch.of(plain, rule), latents[:1], CAPTIONS, KEYS[:1])
    torch.testing.assert_close(alone, attention[:1], atol=1e-5, rtol=1e-5)
    groups = [path.partition(".")[0] for path in cross_attentions(plain.spec)]
    expected = {sd3: ["transformer_blocks"], flux: ["transformer_blocks", "single_transformer_blocks"]}
    assert groups == expected[family]


def test_wrong_heads_and_taps_are_named(plain: DenoisingError) -> None:
    with pytest.raises(ConfigError, match="99"):
        AttentionMatch.of(plain, AttentionMatchRule(heads=(0, 99)))
    with pytest.raises(UnknownTap, match="attn1"):
        AttentionMatch.of(plain, AttentionMatchRule(taps=("mid_block.attentions.0.transformer_blocks.0.attn1",)))


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"attention_weight": -1.0}, "attention_weight"),
        ({"error_weight": float("nan")}, "error_weight"),
        ({"attention_weight": 0.0, "error_weight": 0.0}, "both"),
        ({"attention_weight": 0.0, "heads": (1,)}, "heads"),
        ({"error_weight": 0.0, "error": "norm"}, "norm"),
        ({"heads": (1, 1)}, "heads"),
    ],
)
def test_settings_without_effect_or_out_of_range_are_refused(given: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        AttentionMatchRule(**given)
