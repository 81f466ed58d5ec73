"""Kandinsky 5 for images: a transformer with cross-attention to a text of Qwen 2.5-VL and of CLIP (2511.14993).

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone), and is given to the network in float32, in which its
layers of time and modulation stay in every precision. The network is one for video that gets an image as its only
frame, with the channels last. Queries and keys of the image are rounded to bfloat16 by the network, in float32 too.

The pipeline pads the texts of a batch to the longest one and hides padding from nothing, so that there an image depends
on the other texts of its batch. Here each text is read as the pipeline reads it alone: all are padded to its limit, and
padding is hidden in the attentions by masks that the network itself does not have.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.chat_models import ChatEncoder, chat_width, load_chat_model
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_chat_model import tiny_qwen2_vl
from diffprobe.backbones.testing.tiny_text import tiny_clip_text, tiny_tokenizer
from diffprobe.backbones.testing.tiny_transformer import tiny_vae
from diffprobe.backbones.text_encoders import ClipTextEncoder, TextEncoder, clean_text, load_clip_text
from diffprobe.backbones.transformer import (
    PART,
    LatentGrid,
    check_positions,
    check_width,
    describe_denoiser,
    digest_parts,
    find_latents,
    transformer_spec,
)
from diffprobe.backbones.vae import VaeEncoder
from diffprobe.backbones.weights import config_file, read_config
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_KIND = "Kandinsky5Transformer3DModel"
_OWN_SIDE = 128
"""Default latent side of the pipeline; the transformer's config has none."""
_PATCH = 2
"""Latent places per side of a token, by which the pipeline counts positions."""
_VAE_FACTOR = 8
"""Pixels on a side of one latent place, fixed in the pipeline."""
_LENGTH, _CLIP_LENGTH = 512, 77
"""Tokens of both texts, the pipeline's default and what it always gives to the CLIP."""
_ENCODERS = ("text_encoder", "text_encoder_2")
_BLOCK = r"visual_transformer_blocks\.\d+"
_TEXT_ONLY = (
    r"(text_embeddings|text_rope_embeddings|text_transformer_blocks)(\..*)?"
    rf"|{_BLOCK}\.cross_attention\.(to_key|to_value|key_norm)"
)


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "Kandinsky5T2IPipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    kandinsky = describe_denoiser(checkpoint, _KIND)
    config = kandinsky.config
    _check_settings(checkpoint, config)
    latents = find_latents(
        checkpoint, resolution, own=_OWN_SIDE, patch=_PATCH, channels=config.in_visual_dim, vae="AutoencoderKL"
    )
    _check_grid(checkpoint, latents, _PATCH * min(kandinsky.visual_rope_embeddings.max_pos[1:]))
    clip = _check_texts(checkpoint, config)
    template, dropped = _template()

    def run(network: nn.Module) -> object:
        condition = {
            "states": torch.empty(1, _LENGTH, config.in_text_dim, device="meta"),
            "pooled": torch.empty(1, config.in_text_dim2, device="meta"),
        }
        return _run(network, latents.empty(), torch.zeros(1, device="meta"), condition)

    return transformer_spec(
        "kandinsky5",
        checkpoint,
        kandinsky,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            text_only=_TEXT_ONLY,
            heads=rf"{_BLOCK}\.(self|cross)_attention\.(query|key)_norm",
            heads_last=True,
            cross_attention=rf"{_BLOCK}\.cross_attention",
            channels_last=r"(visual_embeddings|out_layer)(\..+)?",
        ),
        blocks=["visual_transformer_blocks.*"],
        signature=[_LENGTH],
        conditioning={"text_tokens": _LENGTH, "clip_tokens": clip, "template": digest_json([template, dropped])},
    )


def _check_settings(checkpoint: Checkpoint, config: Any) -> None:
    """Check that a transformer is one of text to image. Raises: WeightsMismatch."""
    where = config_file(checkpoint, PART)
    if config.visual_cond:
        raise WeightsMismatch(f"'{where}' has visual_cond, of a model that takes images or frames as conditions.")
    if list(config.patch_size) != [1, _PATCH, _PATCH]:
        raise WeightsMismatch(f"'{where}': patch_size is {config.patch_size}.", f"allowed: [1, {_PATCH}, {_PATCH}]")
    if config.out_visual_dim != config.in_visual_dim:
        raise WeightsMismatch(
            f"'{where}' takes {config.in_visual_dim} latent channels and gives {config.out_visual_dim}."
        )


def _check_grid(checkpoint: Checkpoint, latents: LatentGrid, most: int) -> None:
    """Check the VAE's factor, and the `most` latent places a side. Raises: WeightsMismatch, ConfigError."""
    factor = latents.resolution // latents.side
    if factor != _VAE_FACTOR:
        raise WeightsMismatch(
            f"the VAE of '{checkpoint.name}' reduces a side by {factor}.",
            f"allowed: {_VAE_FACTOR}, for which Kandinsky5T2IPipeline makes latents",
        )
    check_positions(checkpoint, latents, most)


def _check_texts(checkpoint: Checkpoint, config: Any) -> int:
    """Check that both text encoders fit, and return the tokens of the CLIP. Raises: WeightsMissing, WeightsMismatch."""
    read_config(checkpoint, "text_encoder")
    width = chat_width(checkpoint.part("text_encoder"))
    check_width(checkpoint, "the text encoder", width, config.in_text_dim)
    clip = read_config(checkpoint, "text_encoder_2")
    check_width(checkpoint, "the CLIP text encoder", clip.get("hidden_size"), config.in_text_dim2)
    most = clip.get("max_position_embeddings", _CLIP_LENGTH)
    if not isinstance(most, int) or most < _CLIP_LENGTH:
        raise WeightsMismatch(
            f"the CLIP text encoder of '{checkpoint.name}' has {most} positions.",
            f"allowed: at least {_CLIP_LENGTH}, the tokens that Kandinsky5T2IPipeline gives it",
        )
    return _CLIP_LENGTH


def _template() -> tuple[str, int]:
    """Return what a text is put into, and how many tokens of it are dropped: the pipeline's own."""
    import diffusers

    parts = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    made: Any = diffusers.Kandinsky5T2IPipeline(**dict.fromkeys(parts))  # type: ignore[arg-type]
    return made.prompt_template, made.prompt_template_encode_start_idx


def _run(network: nn.Module, x_t: Tensor, times: Tensor, condition: Condition) -> Any:
    """Run the transformer on latents; `times` is in 0..1000."""
    grid = [1, x_t.shape[2] // _PATCH, x_t.shape[3] // _PATCH]
    return network(
        x_t.movedim(1, -1)[:, None].contiguous(),
        encoder_hidden_states=condition["states"],
        timestep=times,
        pooled_projections=condition["pooled"],
        visual_rope_pos=[torch.arange(n, device=x_t.device) for n in grid],
        text_rope_pos=torch.arange(condition["states"].shape[1], device=x_t.device),
        scale_factor=[1.0, 1.0, 1.0],
        return_dict=False,
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoders, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    kandinsky: Any
    kandinsky, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=_ENCODERS)
    time: Any = spec.denoiser.get_submodule("time_embeddings")
    kandinsky.time_embeddings.freqs = type(time)(time.model_dim, 2, time.max_period).freqs  # those on meta are empty
    template, dropped = _template()
    folder, dtype = checkpoint.part("vae").parent, options.dtype
    text = load_chat_model(folder, dtype=dtype, length=_LENGTH + dropped, template=False)
    text.tokenizer.padding_side = "right"
    clip = load_clip_text(folder, dtype=dtype, encoder="text_encoder_2", tokenizer="tokenizer_2")
    clip.length = spec.conditioning["clip_tokens"]
    return Kandinsky5(kandinsky, vae, text, clip, template=template, dropped=dropped, prediction=spec.prediction)


@dataclass
class _Texts:
    """Which tokens of the texts of a pass belong to a text, not to its padding; set before each pass."""

    there: Bool[Tensor, "rows 1 1 tokens"] | None = None


class _Masked:
    """Attention to a text whose padding is hidden, for a `Kandinsky5Attention`.

    Args:
        texts: of the pass.
    """

    def __init__(self, texts: _Texts) -> None:
        self._texts = texts

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        sparse_params: None = None,
    ) -> Tensor:
        """Attend; `rotary_emb` turns both queries and keys, [1, tokens, 1, width / 2, 2, 2]."""
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(x).unflatten(-1, (attn.num_heads, -1))
            for layer, x in ((attn.to_query, hidden_states), (attn.to_key, text), (attn.to_value, text))
        )
        q, k = attn.query_norm(q.float()).type_as(q), attn.key_norm(k.float()).type_as(k)
        if rotary_emb is not None:
            q, k = _turn(q, rotary_emb), _turn(k, rotary_emb)
        heads = nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=self._texts.there
        )
        found: Tensor = attn.out_layer(heads.transpose(1, 2).flatten(2))
        return found


def _turn(x: Tensor, matrices: Tensor) -> Tensor:
    """Turn pairs of channels, and round them to bfloat16, as the network does with those of the image."""
    pairs = x.float().unflatten(-1, (-1, 1, 2))
    return (matrices * pairs).sum(-1).flatten(-2).to(torch.bfloat16).type_as(x)


class Kandinsky5(TextBackbone):
    """A loaded Kandinsky 5 checkpoint.

    Args:
        text, clip: both text encoders.
        template: what a text is put into.
        dropped: tokens of it that the transformer does not get.
        prediction: what the transformer predicts.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: VaeEncoder,
        text: ChatEncoder,
        clip: ClipTextEncoder,
        *,
        template: str,
        dropped: int,
        prediction: PredictionKind,
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            cleaned = [clean_text(prompt) for prompt in prompts]
            tokens = text.tokens([template.format(prompt) for prompt in cleaned])
            states, mask = text.hidden(tokens)[-1][:, dropped:], tokens.attention_mask[:, dropped:]
            return {"states": states * mask[..., None], "mask": mask, "pooled": clip(cleaned).pooler_output}

        texts: dict[str, TextEncoder] = {"text_encoder": text, "text_encoder_2": clip}
        super().__init__(denoiser, vae, texts, encode, prediction=prediction)
        self._texts = _Texts()
        for path, module in denoiser.named_modules():
            if path.endswith(".cross_attention") or (path.startswith("text_") and path.endswith(".self_attention")):
                if hasattr(module, "set_processor"):  # a pruned one has none
                    module.set_processor(_Masked(self._texts))

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        self._texts.there = condition["mask"].bool()[:, None, None]
        output = _run(self.denoiser, x_t, timesteps.float(), condition)
        return self.predicted(output[:, 0].movedim(-1, 1), x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, _ENCODERS, ["tokenizer", "tokenizer_2"])


def tiny(path: Path | str, *, seed: int = 0) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Its VAE reduces a side by 8, as the pipeline demands. Its own resolution is 1024; use a smaller one: 64 makes 16
    tokens.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer: Any = diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=32,
            in_text_dim2=24,
            time_dim=16,
            model_dim=32,
            ff_dim=48,
            num_text_blocks=1,
            num_visual_blocks=3,
            axes_dims=(4, 6, 6),
        )
        for name, weight in transformer.named_parameters():
            if "modulation.out_layer" in name:
                nn.init.normal_(weight, std=0.3)  # it is zero in a new network: each block would add nothing
            if name.endswith(("self_attention.query_norm.weight", "self_attention.key_norm.weight")):
                nn.init.constant_(weight, 0.05)  # what is rounded to bfloat16 shall not decide what tests compare
        vae = tiny_vae(64, latent_channels=4, shift=0.1, flow=True, levels=4)
        tokenizer, text_encoder = tiny_qwen2_vl(width=32)
        tokenizer_2 = tiny_tokenizer(path / "tokenizer_2", length=_CLIP_LENGTH)
        text_encoder_2 = tiny_clip_text(tokenizer_2, width=24)
    pipeline: Any = diffusers.Kandinsky5T2IPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.save_pretrained(path)
    return path
