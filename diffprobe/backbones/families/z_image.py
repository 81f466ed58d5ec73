"""Z-Image: a transformer over one sequence of image and text tokens, with a text encoded by Qwen 3 (2511.22699).

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone). The transformer takes 1 - t/1000 and predicts the
opposite velocity, which is turned here, as in the pipeline. It is given a list of texts, each without its padding, and
fills each text and each image with a learned token up to a multiple of 32. The filling is attended to. Image tokens
come first, so a text begins at the same token in each row and ends at its own.

Text tokens of a row are counted here with their filling. That of the image, which images of 2^n x 2^n tokens have none
of from 8 x 8 on, is not read.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.chat_models import ChatEncoder, chat_layers, chat_width, digest_chat_tokenizer, load_chat_model
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout, RowTexts
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_chat_model import tiny_qwen3
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
from diffprobe.backbones.weights import config_file, read_config
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_KIND = "ZImageTransformer2DModel"
_OWN_SIDE = 128
"""Default latent side of the pipeline; the transformer's config has none."""
_PATCH = 2
"""Latent places per side of a token, the one that the pipeline takes."""
_LENGTH = 512
"""Tokens of the text at most, the pipeline's default."""
_MULTIPLE = 32
"""Tokens of a text and of an image are filled up to a multiple of this."""
_JOINT = r"(layers\.\d+|all_final_layer\.[\d-]+)(\..+)?"


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "ZImagePipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    zimage = describe_denoiser(checkpoint, _KIND)
    config = zimage.config
    _check_settings(checkpoint, config)
    latents = find_latents(checkpoint, resolution, own=_OWN_SIDE, patch=_PATCH, channels=config.in_channels)
    check_positions(checkpoint, latents, min(config.axes_lens[1:]) * _PATCH)
    read_config(checkpoint, "text_encoder")
    check_width(checkpoint, "the text encoder", chat_width(checkpoint.part("text_encoder")), config.cap_feat_dim)
    texts = RowTexts()

    def run(network: nn.Module) -> object:
        longest = [torch.empty(_LENGTH, config.cap_feat_dim, device="meta")]
        return _run(network, latents.empty(), torch.zeros(1, device="meta"), longest, texts)

    return transformer_spec(
        "z_image",
        checkpoint,
        zimage,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            n_text=_LENGTH,
            row_texts=texts,
            joint=_JOINT,
            filled=r"noise_refiner\.\d+(\..+)?",
            text_only=r"context_refiner(\..*)?",
            heads=r"(noise_refiner|layers)\.\d+\.attention\.norm_[qk]",
            heads_last=True,
            joint_attention=r"layers\.\d+\.attention",
        ),
        blocks=["noise_refiner.*", "layers.*"],
        signature=[_LENGTH],
        conditioning={"text_tokens": _LENGTH},
    )


def _check_settings(checkpoint: Checkpoint, config: Any) -> None:
    """Check that a transformer is one that ZImagePipeline runs. Raises: WeightsMismatch."""
    where = config_file(checkpoint, PART)
    patches = list(zip(config.all_patch_size, config.all_f_patch_size, strict=False))
    if (_PATCH, 1) not in patches:
        raise WeightsMismatch(f"'{where}' has patches of {patches}.", f"allowed: ({_PATCH}, 1) among them")
    if config.siglip_feat_dim is not None:
        raise WeightsMismatch(f"'{where}' has siglip_feat_dim, of a model that takes images as conditions.")
    if config.axes_lens[0] < _LENGTH + 2:
        raise WeightsMismatch(
            f"the transformer of '{checkpoint.name}' has {config.axes_lens[0]} positions for text and image.",
            f"allowed: at least {_LENGTH + 2}, since ZImagePipeline gives it up to {_LENGTH} tokens of text",
        )


def _filled(n: int) -> int:
    """Return the number of `n` tokens with their filling."""
    return -(-n // _MULTIPLE) * _MULTIPLE


def _run(network: nn.Module, x_t: Tensor, times: Tensor, states: Sequence[Tensor], texts: RowTexts) -> Any:
    """Run the transformer on latents, and state where the text of each row is; `times` is 1 at the clean image."""
    texts.lengths = [_filled(len(text)) for text in states]
    texts.n_image = (x_t.shape[2] // _PATCH) * (x_t.shape[3] // _PATCH)
    texts.start = _filled(texts.n_image)
    return network(list(x_t[:, :, None].unbind()), times, list(states), return_dict=False)


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    zimage: Any
    zimage, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=["text_encoder"])
    zimage.rope_embedder.freqs_cis = None  # tables made on the meta device are empty; a pass makes new ones
    last = chat_layers(checkpoint.part("text_encoder")) - 1
    text = load_chat_model(checkpoint.part("vae").parent, dtype=options.dtype, length=_LENGTH, layers=[last])
    text.tokenizer.padding_side = "right"
    assert spec.layout.row_texts is not None
    return ZImage(zimage, vae, text, row_texts=spec.layout.row_texts, prediction=spec.prediction)


class ZImage(TextBackbone):
    """A loaded Z-Image checkpoint.

    Args:
        row_texts: of the layout; set in every pass.
        prediction: what the transformer predicts.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: VaeEncoder,
        text: ChatEncoder,
        *,
        row_texts: RowTexts,
        prediction: PredictionKind,
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            settings = {"add_generation_prompt": True, "enable_thinking": True}
            texts = [text.render([{"role": "user", "content": prompt}], **settings) for prompt in prompts]
            tokens = text.tokens(texts)
            return {"states": text.hidden(tokens)[-1], "mask": tokens.attention_mask}

        super().__init__(denoiser, vae, {"text_encoder": text}, encode, prediction=prediction)
        self._row_texts = row_texts

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        lengths = condition["mask"].sum(1).tolist()
        states = [text[:n] for text, n in zip(condition["states"], lengths, strict=True)]
        output = _run(self.denoiser, x_t, (1000 - timesteps.float()) / 1000, states, self._row_texts)[0]
        return self.predicted(-torch.stack(output)[:, :, 0], x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    found = digest_parts(checkpoint, trained, ["text_encoder"])
    return {**found, "tokenizer": digest_chat_tokenizer(checkpoint.part("tokenizer"))}


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
        transformer: Any = diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=3,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=24,
            axes_dims=[4, 6, 6],
            axes_lens=[600, 64, 64],
        )
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            nn.init.normal_(token)  # they are zeros in a new network
        vae = tiny_vae(256, latent_channels=4, shift=0.1, flow=True)
        tokenizer, text_encoder = tiny_qwen3(width=24, layers=3)
    pipeline: Any = diffusers.ZImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
    )
    pipeline.save_pretrained(path)
    return path
