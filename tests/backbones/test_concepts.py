"""Concepts beside a pass against plain computations, on tiny pipelines of SD3, FLUX and Stable Diffusion."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.concepts import ConceptOutputs, concept_attentions, watch_concepts
from diffprobe.backbones.families import flux, sd3, sd_unet
from diffprobe.scoring.denoising_error import DenoisingError

PROMPTS, TIMES = ["red cat", "a blue dog"], torch.tensor([300, 700])


@pytest.fixture(scope="module", params=["sd3", "flux", "sd"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> DenoisingError:
    tiny: Callable[..., Path] = {"sd3": sd3.tiny, "flux": flux.tiny, "sd": sd_unet.tiny}[name]
    path = tiny(tmp_path_factory.mktemp("tiny") / name)
    return DenoisingError.from_pretrained(str(path), device="cpu", resolution=32)


@pytest.fixture(scope="module")
def noised(model: DenoisingError) -> Tensor:
    return torch.randn(2, *model.spec.latent_shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def concepts(model: DenoisingError) -> Tensor:
    width = model.encode_conditions(["cat"])["encoder_hidden_states"].shape[-1]
    return torch.randn(3, width, generator=torch.Generator().manual_seed(1))


def watched(
    model: DenoisingError, x: Tensor, concepts: Tensor, prompts: list[str] = PROMPTS, **options: Any
) -> tuple[dict[str, ConceptOutputs], Tensor]:
    found: dict[str, ConceptOutputs] = {}
    handles = watch_concepts(
        model.backbone.denoiser, model.spec.layout, concepts, lambda path, one: found.update({path: one}), **options
    )
    try:
        with torch.no_grad():
            value = model.backbone.denoise(x, TIMES[: len(x)], model.encode_conditions(prompts)).value
    finally:
        for handle in handles:
            handle.remove()
    return found, value


def plain(model: DenoisingError, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.backbone.denoise(x, TIMES, model.encode_conditions(PROMPTS)).value


def test_the_pass_stays_the_same_bit_for_bit(model: DenoisingError, noised: Tensor, concepts: Tensor) -> None:
    before = plain(model, noised)
    found, value = watched(model, noised, concepts)
    assert torch.equal(before, value) and torch.equal(before, plain(model, noised))
    assert set(found) == set(concept_attentions(model.backbone.denoiser, model.spec.layout)) and len(found) > 1


def test_concepts_in_place_of_the_prompt_give_what_the_network_computes(
    name: str, model: DenoisingError, noised: Tensor
) -> None:
    """The stream of concepts that are all the tokens of the prompt is the stream of the prompt."""
    if name == "sd":
        pytest.skip("a U-Net has no stream of text tokens")
    condition = model.encode_conditions(PROMPTS[:1])
    found, _ = watched(model, noised[:1], condition["encoder_hidden_states"][0], PROMPTS[:1])
    denoiser, text = model.backbone.denoiser, {}
    handles = []
    for path in found:
        attn: Any = denoiser.get_submodule(path)
        if getattr(attn, "to_add_out", None) is not None:
            keep = lambda _, args, path=path: text.__setitem__(path, args[0])  # noqa: E731
            handles.append(attn.to_add_out.register_forward_pre_hook(keep))
    with torch.no_grad():
        model.backbone.denoise(noised[:1], TIMES[:1], condition)
    for handle in handles:
        handle.remove()
    assert len(text) >= 2
    for path, expected in text.items():
        torch.testing.assert_close(found[path].concepts, expected, atol=1e-5, rtol=0)


def test_outputs_are_those_of_a_plain_computation(
    name: str, model: DenoisingError, noised: Tensor, concepts: Tensor
) -> None:
    """All of it written out: softmax by hand, blocks in a loop, and the image's outputs undone from the network's."""
    zero = name == "flux"
    found, _ = watched(model, noised, concepts, without_pooled=zero)
    denoiser: Any = model.backbone.denoiser
    seen: dict[str, dict[str, Any]] = {path: {} for path in found}
    handles: list[Any] = []
    for path in found:
        attn, own = denoiser.get_submodule(path), seen[path]

        def enter(_: Any, args: Any, kwargs: Any, own: dict[str, Any] = own) -> None:
            own["x"] = kwargs.get("hidden_states", args[0] if args else None)
            own["rotary"] = kwargs.get("image_rotary_emb")

        handles.append(attn.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(
            attn.to_out[0].register_forward_pre_hook(lambda _, args, own=own: own.__setitem__("out", args[0]))
        )
    times: list[tuple[Any, ...]] = []
    if name != "sd":
        handles.append(denoiser.time_text_embed.register_forward_hook(lambda _, args, out: times.append((args, out))))
    plain(model, noised)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        if name == "sd":
            for path, one in found.items():
                attn = denoiser.get_submodule(path)
                torch.testing.assert_close(one.image, seen[path]["out"], atol=1e-5, rtol=0)
                torch.testing.assert_close(one.concepts[1], concepts @ attn.to_v.weight.T, atol=1e-5, rtol=0)
                torch.testing.assert_close(one.keys[0], concepts @ attn.to_k.weight.T, atol=1e-5, rtol=0)
                torch.testing.assert_close(one.queries, seen[path]["x"] @ attn.to_q.weight.T, atol=1e-5, rtol=0)
            return
        (args, temb) = times[0]
        if zero:
            temb = denoiser.time_text_embed(*args[:-1], args[-1] * 0)
        c = torch.stack([denoiser.context_embedder(concepts)] * 2)
        for path, one in found.items():
            block = denoiser.get_submodule(path.removesuffix(".attn"))
            torch.testing.assert_close(one.image, seen[path]["out"], atol=1e-5, rtol=0)
            outputs, c = written(block, c, seen[path], temb)
            torch.testing.assert_close(one.concepts, outputs, atol=1e-5, rtol=0)


def written(block: Any, c: Tensor, seen: dict[str, Any], temb: Tensor) -> tuple[Tensor, Tensor]:
    from diffusers.models.embeddings import apply_rotary_emb

    attn, heads = block.attn, block.attn.heads
    silu = torch.nn.functional.silu(temb)
    context = block.norm1_context
    parts = context.linear(silu)[:, None].chunk(6 if hasattr(block.ff_context, "net") else 2, -1)
    normal = lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()  # noqa: E731
    shift, scale = (parts[0], parts[1]) if len(parts) == 6 else (parts[1], parts[0])
    n = normal(c) * (1 + scale) + shift
    split = lambda x: x.unflatten(-1, (heads, -1))  # noqa: E731
    q, k, v = split(attn.add_q_proj(n)), split(attn.add_k_proj(n)), split(attn.add_v_proj(n))
    q, k = attn.norm_added_q(q), attn.norm_added_k(k)
    image_k, image_v = attn.norm_k(split(attn.to_k(seen["x"]))), split(attn.to_v(seen["x"]))
    if seen["rotary"] is not None:
        n_text = len(seen["rotary"][0]) - image_k.shape[1]
        image_k = apply_rotary_emb(image_k, tuple(x[n_text:] for x in seen["rotary"]), sequence_dim=1)
    keys, values = torch.cat([image_k, k], 1), torch.cat([image_v, v], 1)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, keys) / q.shape[-1] ** 0.5
    out = torch.einsum("bhqk,bkhd->bqhd", logits.exp() / logits.exp().sum(-1, keepdim=True), values).flatten(2)
    if len(parts) == 2:
        return out, c
    c = c + parts[2] * attn.to_add_out(out)
    return out, c + parts[5] * block.ff_context(normal(c) * (1 + parts[4]) + parts[3])


def test_scores_are_dot_products_and_rows_are_apart(model: DenoisingError, noised: Tensor, concepts: Tensor) -> None:
    found, _ = watched(model, noised, concepts)
    alone, _ = watched(model, noised[:1], concepts, PROMPTS[:1])
    for path, one in found.items():
        expected = torch.einsum("bpw,bcw->bcp", one.image, one.concepts)
        torch.testing.assert_close(one.scores(), expected, atol=1e-5, rtol=1e-5)
        q, k = (x.unflatten(-1, (one.heads, -1)) for x in (one.queries, one.keys))
        expected = torch.einsum("bphd,bchd->bcp", q, k) / q.shape[-1] ** 0.5 / one.heads
        torch.testing.assert_close(one.scores("attention"), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone[path].scores(), one.scores()[:1], atol=1e-5, rtol=1e-5)


def test_order_of_concepts_does_not_matter(model: DenoisingError, noised: Tensor, concepts: Tensor) -> None:
    order = [2, 0, 1]
    found, turned = (watched(model, noised, x)[0] for x in (concepts, concepts[order]))
    for path, one in found.items():
        torch.testing.assert_close(turned[path].scores(), one.scores()[:, order], atol=1e-5, rtol=1e-5)


def test_only_some_are_given(model: DenoisingError, noised: Tensor, concepts: Tensor) -> None:
    all_of_them, _ = watched(model, noised, concepts)
    last = list(all_of_them)[-1]
    found, _ = watched(model, noised, concepts, only=[last])
    assert list(found) == [last] and torch.equal(found[last].concepts, all_of_them[last].concepts)
