"""Qwen-Image: a transformer over image and text tokens in two streams, conditioned on Qwen 2.5-VL (2508.02324).

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone); the transformer takes t/1000, in the precision of
the pass. Latents are those of a video autoencoder that gets one frame, normalised by channel; noise is drawn on them,
and they are then packed two by two into tokens. A text is read inside the pipeline's template, whose first tokens are
dropped. The pipeline pads the texts of a batch to the longest one; here all are padded to its limit, so that a text
has the same shape in every batch. Padding is hidden from both networks, so the image is the same.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.chat_models import ChatEncoder, chat_width, load_chat_model
from diffprobe.backbones.families.flux import pack, unpack
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_chat_model import tiny_qwen2_vl
from diffprobe.backbones.testing.tiny_transformer import tiny_qwen_vae
from diffprobe.backbones.transformer import (
    PART,
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

_KIND = "QwenImageTransformer2DModel"
_VAE = "AutoencoderKLQwenImage"
_OWN_SIDE = 128
"""Default latent side of the pipeline; the transformer's config has none."""
_PACK = 2
"""Latent places per side of a token."""
_LENGTH = 512
"""Tokens of the text, the pipeline's default."""
_EDITING = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
"""Settings of transformers that QwenImagePipeline does not run, or that belong to other pipelines."""
_BLOCK = r"transformer_blocks\.\d+"
_TEXT_ONLY = (
    rf"txt_norm|txt_in|{_BLOCK}\.(txt_norm1|txt_norm2|txt_mlp)(\..*)?"
    rf"|{_BLOCK}\.attn\.(add_[qkv]_proj|norm_added_[qk]|to_add_out)"
)


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "QwenImagePipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    qwen = describe_denoiser(checkpoint, _KIND)
    config = qwen.config
    _check_settings(checkpoint, config)
    latents = find_latents(
        checkpoint, resolution, own=_OWN_SIDE, patch=_PACK, channels=config.in_channels // _PACK**2, vae=_VAE
    )
    read_config(checkpoint, "text_encoder")
    width = chat_width(checkpoint.part("text_encoder"))
    check_width(checkpoint, "the text encoder", width, config.joint_attention_dim)
    template, dropped = _template()

    def run(network: nn.Module) -> object:
        condition = {
            "encoder_hidden_states": torch.empty(1, _LENGTH, config.joint_attention_dim, device="meta"),
            "encoder_hidden_states_mask": torch.empty(1, _LENGTH, device="meta"),
        }
        return _run(network, latents.empty(), torch.zeros(1, device="meta"), condition)

    return transformer_spec(
        "qwen_image",
        checkpoint,
        qwen,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            n_text=_LENGTH,
            image_second=_BLOCK,
            text_only=_TEXT_ONLY,
            heads=rf"{_BLOCK}\.attn\.norm_[qk]",
            heads_last=True,
            joint_attention=rf"{_BLOCK}\.attn",
            text_keys_first=True,
        ),
        blocks=["transformer_blocks.*"],
        signature=[_LENGTH],
        conditioning={"text_tokens": _LENGTH, "template": digest_json([template, dropped])},
    )


def _check_settings(checkpoint: Checkpoint, config: Any) -> None:
    """Check that a transformer is one of text to image. Raises: WeightsMismatch."""
    where = config_file(checkpoint, PART)
    given = [name for name in _EDITING if config.get(name)]
    if given:
        raise WeightsMismatch(
            f"'{where}' has {', '.join(given)}, which QwenImagePipeline does not run.", "allowed: text to image"
        )
    if config.patch_size != _PACK or config.in_channels % _PACK**2:
        raise WeightsMismatch(
            f"'{where}' has patch_size {config.patch_size} and {config.in_channels} channels per token.",
            f"allowed: patch_size {_PACK}, and a multiple of {_PACK**2} channels",
        )


def _template() -> tuple[str, int]:
    """Return what a text is put into, and how many tokens of it are dropped: the pipeline's own."""
    import diffusers

    made: Any = diffusers.QwenImagePipeline(
        scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=None
    )
    return made.prompt_template_encode, made.prompt_template_encode_start_idx


def _run(network: nn.Module, x_t: Tensor, times: Tensor, condition: Condition) -> Any:
    """Run the transformer on latents; `times` is in 0..1."""
    rows, _, height, width = x_t.shape
    return network(
        pack(x_t),
        timestep=times,
        img_shapes=[[(1, height // _PACK, width // _PACK)]] * rows,
        **condition,
        return_dict=False,
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    qwen: Any
    qwen, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=["text_encoder"])
    pos = spec.denoiser.get_submodule("pos_embed")
    settings: Any = {name: getattr(pos, name) for name in ("theta", "axes_dim", "scale_rope")}
    qwen.pos_embed = type(pos)(**settings)  # tables on the meta device are empty, and not stored
    template, dropped = _template()
    text = load_chat_model(checkpoint.part("vae").parent, dtype=options.dtype, length=_LENGTH + dropped, template=False)
    text.tokenizer.padding_side = "right"
    return QwenImage(qwen, vae, text, template=template, dropped=dropped, prediction=spec.prediction)


class QwenImage(TextBackbone):
    """A loaded Qwen-Image checkpoint.

    Args:
        template: what a text is put into.
        dropped: tokens of it that the transformer does not get.
        prediction: what the transformer predicts.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: VaeEncoder,
        text: ChatEncoder,
        *,
        template: str,
        dropped: int,
        prediction: PredictionKind,
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            tokens = text.tokens([template.format(prompt) for prompt in prompts])
            states, mask = text.hidden(tokens)[-1][:, dropped:], tokens.attention_mask[:, dropped:]
            return {"encoder_hidden_states": states * mask[..., None], "encoder_hidden_states_mask": mask}

        super().__init__(denoiser, vae, {"text_encoder": text}, encode, prediction=prediction)

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        output = _run(self.denoiser, x_t, timesteps.to(x_t.dtype) / 1000, condition)[0]
        return self.predicted(unpack(output, x_t.shape[2], x_t.shape[3]), x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, ["text_encoder"], ["tokenizer"])


def tiny(path: Path | str, *, seed: int = 0) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Its own resolution is 256; use a smaller one: 32 makes 64 tokens.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=3,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        )
        vae = tiny_qwen_vae()
        tokenizer, text_encoder = tiny_qwen2_vl(width=32)
    pipeline: Any = diffusers.QwenImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
    )
    pipeline.save_pretrained(path)
    return path
