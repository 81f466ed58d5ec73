"""Lumina-Image 2.0: a transformer over one sequence of text and image tokens, with a text encoded by a language model
(Qin et al., 2503.21758).

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone). The transformer takes 1 - t/1000 and predicts the
opposite velocity, which is turned here, as in the pipeline. The image follows a text of the row's own length: padding
is cut off before the joint blocks. As in the pipeline, an instruction stands before every text but the empty one,
which is that of the unconditional pass. A negative text that is not empty gets the instruction too, which the pipeline
leaves out.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.language_models import LanguageModelEncoder, load_gemma2
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout, RowTexts
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_language_model import tiny_gemma2
from diffprobe.backbones.testing.tiny_transformer import tiny_vae
from diffprobe.backbones.transformer import (
    PART,
    check_positions,
    check_width,
    describe_denoiser,
    digest_parts,
    find_latents,
    transformer_spec,
)
from diffprobe.backbones.vae import VaeEncoder
from diffprobe.backbones.weights import read_config
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_KIND = "Lumina2Transformer2DModel"
_PIPELINES = ("Lumina2Pipeline", "Lumina2Text2ImgPipeline")
"""The pipeline, and its name in checkpoints that are older than diffusers 0.33."""
_LENGTH = 256
"""Tokens of the text at most, the pipeline's default."""
_INSTRUCTION = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> "
)
"""What the pipeline puts before a text."""
_JOINT = r"(layers\.\d+|norm_out)(\..+)?"
_TEXT_ONLY = r"context_refiner(\..*)?|time_caption_embed(\.caption_embedder(\..*)?)?"


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") in _PIPELINES


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    lumina = describe_denoiser(checkpoint, _KIND)
    config = lumina.config
    latents = find_latents(
        checkpoint, resolution, own=config.sample_size, patch=config.patch_size, channels=config.in_channels
    )
    check_positions(checkpoint, latents, min(config.axes_lens[1:]) * config.patch_size)
    if config.axes_lens[0] <= _LENGTH:
        raise WeightsMismatch(
            f"the transformer of '{checkpoint.name}' has positions for {config.axes_lens[0]} tokens of text.",
            f"allowed: at least {_LENGTH + 1}, since Lumina2Pipeline gives it up to {_LENGTH}",
        )
    width = read_config(checkpoint, "text_encoder").get("hidden_size")
    check_width(checkpoint, "the text encoder", width, config.cap_feat_dim)
    texts = RowTexts()

    def run(network: nn.Module) -> object:
        condition = {
            "encoder_hidden_states": torch.empty(1, _LENGTH, config.cap_feat_dim, device="meta"),
            "encoder_attention_mask": torch.ones(1, _LENGTH, dtype=torch.long, device="meta"),
        }
        with _FullTexts():
            return _run(network, latents.empty(), torch.zeros(1, device="meta"), condition, texts)

    return transformer_spec(
        "lumina2",
        checkpoint,
        lumina,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            n_text=_LENGTH,
            row_texts=texts,
            joint=_JOINT,
            text_only=_TEXT_ONLY,
            heads=r"(noise_refiner|layers)\.\d+\.attn\.norm_[qk]",
            heads_last=True,
            joint_attention=r"layers\.\d+\.attn",
            text_keys_first=True,
        ),
        blocks=["noise_refiner.*", "layers.*"],
        signature=[_LENGTH],
        conditioning={"text_tokens": _LENGTH, "instruction": digest_json(_INSTRUCTION)},
    )


class _FullTexts(TorchFunctionMode):
    """Gives the lengths of texts on the meta device, which hold no numbers, as those of the longest."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, unless it reads numbers of the meta device."""
        if function is torch.Tensor.tolist and args[0].is_meta:
            return [_LENGTH] * len(args[0])
        return function(*args, **(kwargs or {}))


def _run(network: nn.Module, x_t: Tensor, timesteps: Tensor, condition: Condition, texts: RowTexts) -> Any:
    """Run the transformer on latents, and state where the text of each row ends; `timesteps` are in 0..1000."""
    config: Any = network.config
    texts.lengths = condition["encoder_attention_mask"].sum(1).tolist()
    texts.n_image = (x_t.shape[2] // config.patch_size) * (x_t.shape[3] // config.patch_size)
    return network(x_t, timestep=1 - timesteps.float() / 1000, **condition, return_dict=False)


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    lumina: Any
    lumina, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=["text_encoder"])
    rope = lumina.rope_embedder  # tables outside its buffers are empty after a load
    rope.freqs_cis = rope._precompute_freqs_cis(rope.axes_dim, rope.axes_lens, rope.theta)
    text = load_gemma2(checkpoint.part("vae").parent, dtype=options.dtype, length=_LENGTH)
    assert spec.layout.row_texts is not None
    return Lumina2(lumina, vae, text, row_texts=spec.layout.row_texts, prediction=spec.prediction)


class Lumina2(TextBackbone):
    """A loaded Lumina-Image 2.0 checkpoint.

    Args:
        row_texts: of the layout; set in every pass.
        prediction: what the transformer predicts.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: VaeEncoder,
        text: LanguageModelEncoder,
        *,
        row_texts: RowTexts,
        prediction: PredictionKind,
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            tokens = text.tokens([_INSTRUCTION + prompt if prompt else "" for prompt in prompts])
            output = text.encoder(tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True)
            return {
                "encoder_hidden_states": output.hidden_states[-2],
                "encoder_attention_mask": tokens.attention_mask,
            }

        super().__init__(denoiser, vae, {"text_encoder": text}, encode, prediction=prediction)
        self._row_texts = row_texts

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        output = _run(self.denoiser, x_t, timesteps, condition, self._row_texts)[0]
        return self.predicted(-output, x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, ["text_encoder"], ["tokenizer"])


def tiny(path: Path | str, *, seed: int = 0) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Its VAE reduces a side by 8, as the pipeline demands; its own resolution is 64.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=3,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(8, 4, 4),
            axes_lens=(300, 64, 64),
            cap_feat_dim=24,
        )
        vae = tiny_vae(64, latent_channels=4, shift=0.05, flow=True, levels=4)
        tokenizer, text_encoder = tiny_gemma2(width=24)
    pipeline: Any = diffusers.Lumina2Pipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
    )
    pipeline.save_pretrained(path)
    return path
