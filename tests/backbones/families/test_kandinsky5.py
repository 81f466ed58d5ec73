import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import kandinsky5
from diffprobe.backbones.offload import offload_of
from diffprobe.backbones.taps import list_taps
from diffprobe.backbones.vae import VaeDecoder
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch
from diffprobe.core.rng import noise_for
from diffprobe.scoring.denoising_error import DenoisingError
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "", "a photo of the {moon} &amp;  the sun", "dog", "twemoji emoji, blue circle"]
BLOCK = "visual_transformer_blocks.1"
IMAGE = [BLOCK, f"{BLOCK}.self_attention", f"{BLOCK}.cross_attention.to_query", f"{BLOCK}.feed_forward"]
FRAME = ["visual_embeddings", "out_layer.norm", "out_layer"]
T, LENGTH, SIDE = 261, 512, 64


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kandinsky5.tiny(tmp_path_factory.mktemp("kandinsky5") / "tiny")


@pytest.fixture
def images(images: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear")


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": [BLOCK], "timesteps": [T], "device": "cpu", "resolution": SIDE, **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


def read(folder: Path, images: Tensor, taps: list[str], **settings: object) -> dict[str, Tensor]:
    """Read taps for captions, by the tap alone."""
    chosen = {"taps": taps, "condition": "caption", "pool": "none", **settings}
    found = features(folder, **chosen)(images, keys=KEYS, captions=CAPTIONS)
    return {cell.partition("@")[0]: value for cell, value in found.items()}


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Any:
    import diffusers

    return diffusers.Kandinsky5T2IPipeline.from_pretrained(tiny)


@pytest.fixture
def reference(pipeline: Any, plain_hooks: Callable) -> Callable[..., list[dict[str, Any]]]:
    """Run the pipeline's transformer on the latents of each image with its own text alone, with plain hooks."""

    @torch.no_grad()
    def run(images: Tensor, taps: list[str]) -> list[dict[str, Any]]:
        clean = pipeline.vae.encode(images * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
        noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in KEYS])
        x_t = ((1 - T / 1000) * clean + T / 1000 * noise).permute(0, 2, 3, 1)[:, None]
        found = []
        for x, caption in zip(x_t, CAPTIONS, strict=True):
            states, pooled, ends = pipeline.encode_prompt(caption)
            found.append(
                plain_hooks(
                    pipeline.transformer,
                    taps,
                    hidden_states=x[None],
                    encoder_hidden_states=states,
                    timestep=torch.tensor([float(T)]),
                    pooled_projections=pooled,
                    visual_rope_pos=[torch.arange(n) for n in (1, SIDE // 16, SIDE // 16)],
                    text_rope_pos=torch.arange(int(ends.diff().max())),
                )
            )
        return found

    return run


def rows_of(found: list[dict[str, Any]], tap: str) -> Tensor:
    return torch.cat([row[tap] for row in found])


def test_taps_equal_those_of_each_text_alone_in_the_untouched_pipeline(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    """Texts differ in length; the pipeline itself would let an image attend to the padding of its batch."""
    found, plain = read(tiny, images, [*IMAGE, *FRAME]), reference(images, [*IMAGE, *FRAME])
    for tap in IMAGE:
        torch.testing.assert_close(found[tap], as_map(rows_of(plain, tap)), atol=1e-5, rtol=0)
    for tap in FRAME:
        frame = rows_of(plain, tap)
        assert frame.ndim == 5 and found[tap].shape[2] == (8 if tap == "out_layer" else 4)
        torch.testing.assert_close(found[tap], frame[:, 0].permute(0, 3, 1, 2), atol=1e-5, rtol=0)


def test_cross_attention_equals_a_plain_computation_and_hides_padding(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    path = f"{BLOCK}.cross_attention"
    found = read(tiny, images, [f"{path}/{name}" for name in ("probs", "logits", "q", "k", "v", "heads")])
    plain = reference(images, [f"{path}.query_norm", f"{path}.key_norm", f"{path}.to_value"])
    assert len({row[f"{path}.key_norm"].shape[1] for row in plain}) > 2
    for i, row in enumerate(plain):
        q, k = (row[f"{path}.{name}_norm"][0].double() for name in ("query", "key"))
        v = row[f"{path}.to_value"][0].double().unflatten(-1, (2, -1))
        n, logits = len(k), torch.einsum("ihd,jhd->hij", q, k) / 4
        probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
        for readout, scores in (("logits", logits), ("probs", probs)):
            own = found[f"{path}/{readout}"][i].flatten(1)
            assert own.shape == (LENGTH, 16)
            torch.testing.assert_close(own[:n], scores.mean(0).T.float(), atol=1e-5, rtol=0)
        assert not found[f"{path}/probs"][i, n:].any()
        for part, tokens in (("k", k), ("v", v)):
            own = found[f"{path}/{part}"][i, :, :n, 0].T
            torch.testing.assert_close(own, tokens.flatten(1).float(), atol=1e-5, rtol=0)
        for part, tokens in (("q", q), ("heads", torch.einsum("hij,jhd->ihd", probs, v))):
            expected = as_map(tokens.flatten(1)[None])[0].float()
            torch.testing.assert_close(found[f"{path}/{part}"][i], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_padding_our_attention_is_that_of_the_network() -> None:
    """Bit for bit: queries and keys of a text are rounded to bfloat16 too."""
    from diffusers.models.transformers.transformer_kandinsky import Kandinsky5Attention

    torch.manual_seed(0)
    attention: Any = Kandinsky5Attention(32, 16)
    x, text, turns = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(1, 5, 1, 8, 2, 2)
    expected = attention(x, rotary_emb=turns), attention(x, encoder_hidden_states=text)
    attention.set_processor(kandinsky5._Masked(kandinsky5._Texts(torch.ones(2, 1, 1, 5).bool())))
    torch.testing.assert_close(attention(x, rotary_emb=turns), expected[0], atol=1e-6, rtol=0)
    attention.set_processor(kandinsky5._Masked(kandinsky5._Texts()))
    assert torch.equal(attention(x, rotary_emb=turns), expected[0])
    assert torch.equal(attention(x, encoder_hidden_states=text), expected[1])


def test_self_attention_parts_are_turned_and_rounded_by_the_network(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable, pipeline: Any
) -> None:
    path = f"{BLOCK}.self_attention"
    found = read(tiny, images, [f"{path}/{name}" for name in ("q", "k", "heads")])
    turns: list[Tensor] = []
    block = pipeline.transformer.get_submodule(BLOCK)
    handle = block.register_forward_pre_hook(lambda module, args: turns.append(args[3]))
    plain = reference(images, [f"{path}.query_norm", f"{path}.key_norm", f"{path}.to_value", path])
    handle.remove()
    parts = {}
    for name, norm in (("q", "query_norm"), ("k", "key_norm")):
        pairs = rows_of(plain, f"{path}.{norm}").unflatten(-1, (-1, 2))
        parts[name] = torch.einsum("zihpab,nihpb->nihpa", turns[0].expand(-1, -1, 2, -1, -1, -1), pairs).flatten(-2)
        expected = as_map(parts[name].flatten(2))
        torch.testing.assert_close(found[f"{path}/{name}"], expected, atol=1e-5, rtol=2**-8)  # bfloat16
    v = rows_of(plain, f"{path}.to_value").unflatten(-1, (2, -1))
    q, k = (parts[name].bfloat16().float() for name in "qk")
    heads = torch.einsum("bhij,bjhd->bihd", (torch.einsum("bihd,bjhd->bhij", q, k) / 4).softmax(-1), v)
    torch.testing.assert_close(found[f"{path}/heads"], as_map(heads.flatten(2)), atol=1e-5, rtol=0)


def test_modulated_taps_are_what_the_attention_reads(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable, pipeline: Any
) -> None:
    found = read(tiny, images, [f"{BLOCK}/modulated"])[f"{BLOCK}/modulated"]
    plain = reference(images, [BLOCK, f"{BLOCK}.visual_modulation"])
    shift, scale = rows_of(plain, f"{BLOCK}.visual_modulation").chunk(9, dim=-1)[:2]
    x = rows_of(plain, BLOCK)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(found, as_map(x * (1 + scale[:, None]) + shift[:, None]), atol=1e-5, rtol=0)


def test_texts_are_cleaned_and_encoded_as_in_the_pipeline(tiny: Path, pipeline: Any) -> None:
    model = DenoisingError.from_pretrained(str(tiny), device="cpu", resolution=SIDE)
    with torch.no_grad():
        found = model.encode_conditions(CAPTIONS)
        for i, caption in enumerate(CAPTIONS):
            states, pooled, ends = pipeline.encode_prompt(caption)
            n = int(found["mask"][i].sum())
            assert n == int(ends.diff()[0]) and not found["states"][i, n:].any()
            torch.testing.assert_close(found["states"][i, :n], states[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(found["pooled"][i], pooled[0], atol=1e-5, rtol=0)


def test_texts_change_features_and_other_rows_do_not(tiny: Path, images: Tensor) -> None:
    loaded = features(tiny, condition="caption")
    (mixed,) = loaded(images, keys=KEYS, captions=CAPTIONS).values()
    (alone,) = loaded(images[:1], keys=KEYS[:1], captions=CAPTIONS[:1]).values()
    (other,) = loaded(images[:1], keys=KEYS[:1], captions=["moon"]).values()
    torch.testing.assert_close(mixed[:1], alone, atol=1e-5, rtol=0)
    assert float((alone - other).abs().max()) > 1e-3
    names = set(loaded._backbone.denoiser.state_dict())
    assert any(name.startswith("text_transformer_blocks.0") for name in names)
    assert not any(name.startswith(("visual_transformer_blocks.2", "out_layer")) for name in names)


def test_latents_have_no_shift_whatever_the_autoencoder_states(tiny: Path, images: Tensor, pipeline: Any) -> None:
    assert pipeline.vae.config.shift_factor == 0.1
    decoder = VaeDecoder.from_folder(tiny / "vae")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(decoder(latents), (plain / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"random_weights": True}], ids=["trained", "random"])
def test_layers_of_time_and_modulation_stay_in_float32(settings: dict[str, Any], tiny: Path, images: Tensor) -> None:
    """As diffusers loads them; blocks in files too, which give the same bit for bit."""
    whole = features(tiny, dtype="bfloat16", **settings)
    network = whole._backbone.denoiser
    kept = {name for name, value in network.named_parameters() if value.dtype == torch.float32}
    stated = {"time_embeddings", "visual_modulation", "text_modulation"}
    assert kept == {name for name, _ in network.named_parameters() if stated & set(name.split("."))}
    if not settings:
        exact = kandinsky_weights(tiny)
        assert all(torch.equal(value, exact[name]) for name, value in network.named_parameters() if name in kept)
    parts = features(tiny, dtype="bfloat16", offload="blocks", **settings)
    assert offload_of(parts._backbone.denoiser) is not None
    for _ in range(2):
        (found,), (expected,) = parts(images, keys=KEYS).values(), whole(images, keys=KEYS).values()
        assert torch.equal(found, expected)


def test_random_blocks_add_nothing_to_the_embedded_image(tiny: Path, images: Tensor) -> None:
    """Modulation starts at zero; the page of models states it."""
    found = read(tiny, images, ["visual_embeddings", BLOCK], random_weights=True)
    torch.testing.assert_close(found[BLOCK], found["visual_embeddings"], atol=1e-6, rtol=0)


def kandinsky_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("tap", ["text_embeddings", "text_transformer_blocks.0", f"{BLOCK}.cross_attention.to_key"])
def test_modules_of_the_text_are_no_taps(tap: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny), taps=[tap], timesteps=[0], resolution=32)


@pytest.mark.parametrize(
    ("tap", "why"),
    [
        (f"{BLOCK}/text", "does not output text and image; kandinsky5 has no /text anywhere"),
        (f"{BLOCK}.self_attention/probs", "is not an attention of the image to a text"),
        ("out_layer/modulated", "is not a transformer block with AdaLN"),
    ],
)
def test_readouts_that_it_does_not_have_are_refused(tap: str, why: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=why):
        plan_for(str(tiny), taps=[tap], timesteps=[0], resolution=SIDE)


def test_blocks_are_marked_and_the_conditioning_is_in_the_fingerprint(tiny: Path) -> None:
    taps = {tap.path: tap for tap in list_taps(str(tiny), resolution=SIDE, inner=True)}
    assert "massive" in taps[BLOCK].warnings and "text" not in taps[BLOCK].warnings
    assert taps[f"{BLOCK}.cross_attention/probs"].channels == LENGTH
    plan = plan_for(str(tiny), taps=["*"], timesteps=[0])
    found = plan.fingerprint["conditioning"]
    assert (found["text_tokens"], found["clip_tokens"]) == (LENGTH, 77) and len(found["template"]) > 8
    assert plan.resolution == 1024


def test_a_resolution_beyond_the_positions_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="resolution 2064") as caught:
        plan_for(str(tiny), taps=["*"], timesteps=[0], resolution=2064)
    assert "allowed: at most 2048" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, f"SD3Transformer2DModel.* {kandinsky5._KIND}"),
        ("transformer", {"visual_cond": True}, "visual_cond"),
        ("transformer", {"patch_size": [1, 4, 4]}, "patch_size"),
        ("transformer", {"out_visual_dim": 8}, "4 latent channels .* 8"),
        ("transformer", {"in_text_dim": 48}, "text encoder .* 32 .* 48"),
        ("text_encoder_2", {"hidden_size": 48}, "CLIP text encoder .* 48 .* 24"),
        ("text_encoder_2", {"max_position_embeddings": 24}, "24 positions"),
        ("vae", {"latent_channels": 8}, "4 latent channels.* 8"),
        ("vae", {"block_out_channels": [16, 32]}, "reduces a side by 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["*"], timesteps=[0], resolution=32)
