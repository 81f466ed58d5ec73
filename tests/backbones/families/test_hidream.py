import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.base import LoadOptions
from diffprobe.backbones.concepts import concept_attentions
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import hidream
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.locate import locate
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import UnknownTap, WeightsMismatch, WeightsMissing
from diffprobe.scoring.denoising_error import DenoisingError
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "", "a photo of the moon of the sun of the tree", "dog", "twemoji emoji, blue circle"]
DOUBLE, SINGLE = "double_stream_blocks.1.block", "single_stream_blocks.1.block"
IMAGE = ["x_embedder", f"{DOUBLE}.norm1_i", f"{DOUBLE}.ff_i", f"{DOUBLE}.attn1.to_k", "final_layer.linear"]
JOINT = [SINGLE, "single_stream_blocks.0", f"{SINGLE}.attn1", f"{SINGLE}.ff_i.shared_experts", f"{SINGLE}.norm3_i"]
T, N_IMAGE, N_TEXT = 261, 64, 384


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hidream.tiny(tmp_path_factory.mktemp("hidream") / "tiny")


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": [DOUBLE], "timesteps": [T], "device": "cpu", "resolution": 32, **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


def read(folder: Path, images: Tensor, taps: list[str]) -> dict[str, Tensor]:
    """Read taps for captions, by the tap alone."""
    found = features(folder, taps=taps, condition="caption", pool="none")(images, keys=KEYS, captions=CAPTIONS)
    return {cell.partition("@")[0]: value for cell, value in found.items()}


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Any:
    import diffusers

    return diffusers.HiDreamImagePipeline.from_pretrained(tiny)


@pytest.fixture
def reference(pipeline: Any, plain_hooks: Callable, noisy_latents: Callable) -> Callable[..., dict[str, Any]]:
    """Run the pipeline's transformer on the latents of images and its own texts, with plain hooks."""

    @torch.no_grad()
    def run(images: Tensor, taps: list[str]) -> dict[str, Any]:
        t5, _, llama, _, pooled, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
        found: dict[str, Any] = plain_hooks(
            pipeline.transformer,
            taps,
            hidden_states=noisy_latents(pipeline, images, KEYS, T),
            timesteps=torch.full((5,), float(T)),
            encoder_hidden_states_t5=t5,
            encoder_hidden_states_llama3=llama,
            pooled_embeds=pooled,
        )
        return found

    return run


def test_taps_equal_plain_hooks_on_the_untouched_model(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    """The image comes first; three texts of 128 tokens follow it in one stream."""
    found, plain = read(tiny, images, [*IMAGE, *JOINT, DOUBLE]), reference(images, [*IMAGE, *JOINT, DOUBLE])
    for tap in IMAGE:
        torch.testing.assert_close(found[tap], as_map(plain[tap]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[DOUBLE], as_map(plain[DOUBLE][0]), atol=1e-5, rtol=0)
    for tap in JOINT:
        assert plain[tap].shape[1] == N_IMAGE + N_TEXT
        torch.testing.assert_close(found[tap], as_map(plain[tap][:, :N_IMAGE]), atol=1e-5, rtol=0)


def test_texts_of_both_streams_are_those_of_the_blocks(tiny: Path, images: Tensor, reference: Callable) -> None:
    found, plain = read(tiny, images, [f"{DOUBLE}/text", f"{SINGLE}/text"]), reference(images, [DOUBLE, SINGLE])
    for tap, tokens in ((DOUBLE, plain[DOUBLE][1]), (SINGLE, plain[SINGLE][:, N_IMAGE:])):
        assert tokens.shape[1] == N_TEXT
        torch.testing.assert_close(found[f"{tap}/text"][..., 0], tokens.transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [DOUBLE, SINGLE])
def test_attention_equals_a_plain_computation(
    block: str, tiny: Path, images: Tensor, reference: Callable, pipeline: Any, as_map: Callable
) -> None:
    path = f"{block}.attn1"
    found = read(tiny, images, [f"{path}/{name}" for name in ("probs", "logits", "q", "k", "v", "heads")])
    turns: list[Tensor] = []
    handle = pipeline.transformer.pe_embedder.register_forward_hook(lambda module, args, out: turns.append(out))
    double = block == DOUBLE
    names = {"q": "q_rms_norm", "k": "k_rms_norm", "v": "to_v"}
    plain = reference(images, [f"{path}.{name}{end}" for name in names.values() for end in (["", "_t"][: 1 + double])])
    handle.remove()
    parts = {}
    for part, name in names.items():
        whole = torch.cat([plain[f"{path}.{name}{end}"] for end in (["", "_t"][: 1 + double])], dim=1).double()
        parts[part] = whole.unflatten(-1, (2, -1))
        if part != "v":
            pairs = parts[part].unflatten(-1, (-1, 2))
            parts[part] = torch.einsum("nihpab,nihpb->nihpa", turns[0].double().expand(-1, -1, 2, -1, -1, -1), pairs)
            parts[part] = parts[part].flatten(-2)
    q, k, v = parts["q"][:, :N_IMAGE], parts["k"], parts["v"]
    logits = torch.einsum("nihd,njhd->nhij", q, k) / 4
    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
    for readout, scores in (("logits", logits), ("probs", probs)):
        own = found[f"{path}/{readout}"].flatten(2)
        expected = scores.mean(1)[..., N_IMAGE:].transpose(1, 2).float()
        assert own.shape == (5, N_TEXT, N_IMAGE)
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=0)
    heads = torch.einsum("nhij,njhd->nihd", probs, v)
    for part, tokens in (("q", q), ("k", k[:, :N_IMAGE]), ("v", v[:, :N_IMAGE]), ("heads", heads)):
        torch.testing.assert_close(found[f"{path}/{part}"], as_map(tokens.flatten(2)).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("block", "n"), [(DOUBLE, 12), (SINGLE, 6)])
def test_modulated_taps_are_what_the_attention_reads(
    block: str, n: int, tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    found = read(tiny, images, [f"{block}/modulated"])[f"{block}/modulated"]
    plain = reference(images, [block, f"{block}.adaLN_modulation"])
    shift, scale = plain[f"{block}.adaLN_modulation"].chunk(n, dim=-1)[:2]
    x = (plain[block][0] if block == DOUBLE else plain[block])[:, :N_IMAGE]
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(found, as_map(x * (1 + scale[:, None]) + shift[:, None]), atol=1e-5, rtol=0)


def test_texts_are_those_of_the_pipeline(tiny: Path, pipeline: Any) -> None:
    model = DenoisingError.from_pretrained(str(tiny), device="cpu", resolution=32)
    with torch.no_grad():
        found = model.encode_conditions(CAPTIONS)
        t5, _, llama, _, pooled, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    for name, expected in (("t5", t5), ("llama", llama.transpose(0, 1)), ("pooled", pooled)):
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=0)
    names = model.backbone.components()
    assert {"text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"} < set(names)


def test_texts_change_features_and_other_rows_do_not(tiny: Path, images: Tensor) -> None:
    loaded = features(tiny, condition="caption")
    (mixed,) = loaded(images, keys=KEYS, captions=CAPTIONS).values()
    (alone,) = loaded(images[:1], keys=KEYS[:1], captions=CAPTIONS[:1]).values()
    (other,) = loaded(images[:1], keys=KEYS[:1], captions=["moon"]).values()
    torch.testing.assert_close(mixed[:1], alone, atol=1e-5, rtol=0)
    assert float((alone - other).abs().max()) > 1e-4
    names = set(loaded._backbone.denoiser.state_dict())
    assert any(name.startswith(f"{DOUBLE}.ff_i.experts.3") for name in names)  # whichever a place is given to
    assert not any(name.startswith(("single_stream_blocks", "final_layer")) for name in names)


def test_experts_have_gradients_and_give_what_the_network_gives(tiny: Path, pipeline: Any) -> None:
    """diffusers computes them without; the forward pass is the same."""
    checkpoint = locate(str(tiny))
    backbone = load_whole(checkpoint, hidream, hidream.spec(checkpoint, 32), LoadOptions())  # type: ignore[arg-type]
    mixture: Any = backbone.denoiser.get_submodule(f"{SINGLE}.ff_i")
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.transformer.get_submodule(f"{SINGLE}.ff_i")(x)
    torch.testing.assert_close(mixture(x), expected, atol=1e-6, rtol=0)
    mixture.experts.requires_grad_(True)
    mixture(x).square().sum().backward()
    assert any(expert.w2.weight.grad is not None for expert in mixture.experts)
    assert any(bool(expert.w2.weight.grad.any()) for expert in mixture.experts if expert.w2.weight.grad is not None)


@pytest.mark.parametrize("tap", ["caption_projection.0", f"{DOUBLE}.ff_t", f"{DOUBLE}.attn1.to_q_t"])
def test_modules_of_the_text_are_no_taps(tap: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny), taps=[tap], timesteps=[0], resolution=32)


@pytest.mark.parametrize(
    ("tap", "why"),
    [
        (f"{SINGLE}/probs", "is not an attention of the image to a text"),
        (f"{DOUBLE}.attn1/text", "does not output text and image"),
        ("final_layer/modulated", "is not a transformer block with AdaLN"),
    ],
)
def test_readouts_that_a_module_does_not_have_are_refused(tap: str, why: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=why):
        plan_for(str(tiny), taps=[tap], timesteps=[0], resolution=32)


def test_blocks_are_marked_and_concepts_are_not_followed(tiny: Path) -> None:
    taps = {tap.path: tap for tap in list_taps(str(tiny), resolution=32, inner=True)}
    assert all({"massive", "text"} == set(taps[block].warnings) for block in (DOUBLE, SINGLE))
    spec = hidream.spec(locate(str(tiny)), 32)
    assert concept_attentions(spec.denoiser, spec.layout) == ()
    plan = plan_for(str(tiny), taps=["*_stream_blocks.*.block"], timesteps=[0])
    assert plan.fingerprint["conditioning"] == {"text_tokens": 128} and plan.resolution == 256


def test_a_folder_without_llama_is_refused_with_what_to_do(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    shutil.rmtree(folder / "text_encoder_4")
    with pytest.raises(WeightsMissing, match="no text_encoder_4.* Llama 3.1") as caught:
        plan_for(str(folder), taps=["*"], timesteps=[0], resolution=32)
    assert "text_encoder_4=LLAMA" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, f"SD3Transformer2DModel.* {hidream._KIND}"),
        ("transformer", {"llama_layers": [0, 1, 2]}, "llama_layers has 3 layers"),
        ("transformer", {"llama_layers": [0, 1, 2, 3, 0]}, "layers from 0 to 3(?s:.*)from 0 to 2"),
        ("transformer", {"out_channels": 8}, "4 latent channels .* 8"),
        ("transformer", {"caption_channels": [48, 24]}, "T5 text encoder .* 32 .* 48"),
        ("transformer", {"text_emb_dim": 32}, "pooled text .* 24 .* 32"),
        ("text_encoder_4", {"hidden_size": 48}, "Llama text encoder .* 48 .* 24"),
        ("text_encoder_2", {"max_position_embeddings": 77}, "text_encoder_2 .* 77 positions"),
        ("vae", {"latent_channels": 8}, "4 latent channels.* 8"),
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
