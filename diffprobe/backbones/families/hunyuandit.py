"""HunyuanDiT: a transformer with long skip connections over VAE latents, with cross-attention to a text encoded by a
bilingual BERT and by a T5 (Li et al., 2405.08748).

Its forward process is variance-preserving and it predicts v; timestep t is on the training grid (0..999), larger is
noisier. Padding is hidden from both text encoders; in the network a learned token takes its place. Up to version 1.1
the transformer is also conditioned on image sizes and a style, which are the pipeline's defaults here.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_text import tiny_bert
from diffprobe.backbones.testing.tiny_transformer import tiny_t5, tiny_vae
from diffprobe.backbones.text_encoders import T5TextEncoder, TextEncoder, load_t5_text
from diffprobe.backbones.tokenizer_files import load_tokenizer, require_vocabulary
from diffprobe.backbones.transformer import (
    PART,
    check_width,
    describe_denoiser,
    digest_parts,
    find_latents,
    transformer_spec,
)
from diffprobe.backbones.transformers_model import load_transformer
from diffprobe.backbones.vae import VaeEncoder
from diffprobe.backbones.weight_files import require_files
from diffprobe.backbones.weights import read_config
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_KIND = "HunyuanDiT2DModel"
_BERT_LENGTH, _T5_LENGTH = 77, 256
"""Tokens of both texts, fixed in the pipeline."""
_VAE_FACTOR = 8
"""Pixels on a side of one latent place, by which the pipeline finds positions."""
_BASE_PIXELS = 512
"""Side of the image whose grid the positions of any other are scaled to."""
_ORIGINAL_SIZE = (1024, 1024)
"""Image size before cropping that the pipeline states by default."""
_POOLER = "time_extra_emb.pooler"
_POOLED = tuple(f"{_POOLER}.{name}" for name in ("q_proj", "k_proj", "v_proj", "c_proj"))
"""Layers whose weights are used without their being run."""
_BLOCK = r"blocks\.\d+"
_TEXT_ONLY = rf"text_embedder(\..*)?|{_BLOCK}\.attn2\.(to_k|to_v|norm_k)"
_ENCODERS = ("text_encoder", "text_encoder_2")


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "HunyuanDiTPipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    hunyuan = describe_denoiser(checkpoint, _KIND)
    config = hunyuan.config
    _check_transformer(checkpoint, config)
    latents = find_latents(
        checkpoint, resolution, own=config.sample_size, patch=config.patch_size, channels=config.in_channels
    )
    if latents.resolution != latents.side * _VAE_FACTOR:
        raise WeightsMismatch(
            f"the VAE of '{checkpoint.name}' reduces a side by {latents.resolution // latents.side}.",
            f"allowed: {_VAE_FACTOR}, for which HunyuanDiTPipeline computes the positions of the image",
        )
    bert, t5 = (read_config(checkpoint, name) for name in _ENCODERS)
    check_width(checkpoint, "the BERT text encoder", bert.get("hidden_size"), config.cross_attention_dim)
    check_width(checkpoint, "the T5 text encoder", t5.get("d_model"), config.cross_attention_dim_t5)

    def run(network: nn.Module) -> object:
        texts = {
            "": (_BERT_LENGTH, config.cross_attention_dim),
            "_t5": (_T5_LENGTH, config.cross_attention_dim_t5),
        }
        condition: Condition = {}
        for end, (length, width) in texts.items():
            condition[f"encoder_hidden_states{end}"] = torch.empty(1, length, width, device="meta")
            condition[f"text_embedding_mask{end}"] = torch.empty(1, length, dtype=torch.long, device="meta")
        return _run(network, latents.empty(), torch.zeros(1, device="meta"), condition, config)

    conditioning: dict[str, Any] = {"bert_tokens": _BERT_LENGTH, "t5_tokens": _T5_LENGTH}
    if config.use_style_cond_and_image_meta_size:
        conditioning.update(original_size=[*_ORIGINAL_SIZE], target_size=[latents.resolution] * 2, crop=[0, 0], style=0)
    return transformer_spec(
        "hunyuandit",
        checkpoint,
        hunyuan,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            text_only=_TEXT_ONLY,
            heads=rf"{_BLOCK}\.attn[12]\.norm_[qk]",
            cross_attention=rf"{_BLOCK}\.attn2",
        ),
        blocks=["blocks.*"],
        conditioning=conditioning,
    )


def _check_transformer(checkpoint: Checkpoint, config: Any) -> None:
    """Check that the pipeline can run the transformer. Raises: WeightsMismatch."""
    if not config.learn_sigma:
        raise WeightsMismatch(
            f"the transformer of '{checkpoint.name}' does not predict a variance, which HunyuanDiTPipeline cuts off.",
            "allowed: learn_sigma=true",
        )
    if (config.text_len, config.text_len_t5) != (_BERT_LENGTH, _T5_LENGTH):
        raise WeightsMismatch(
            f"the transformer of '{checkpoint.name}' takes texts of {config.text_len} and {config.text_len_t5} tokens.",
            f"allowed: {_BERT_LENGTH} and {_T5_LENGTH}, which HunyuanDiTPipeline gives it",
        )


def _positions(x: Tensor, config: Any) -> tuple[Float[Tensor, "tokens width"], Float[Tensor, "tokens width"]]:
    """Return the rotary embedding (cosine, sine) of the tokens of latents, their grid scaled to that of 512 pixels."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    grid = (x.shape[2] // config.patch_size, x.shape[3] // config.patch_size)
    crop = get_resize_crop_region_for_grid(grid, _BASE_PIXELS // _VAE_FACTOR // config.patch_size)
    return get_2d_rotary_pos_embed(  # type: ignore[no-any-return]
        config.attention_head_dim, crop, grid, device=x.device, output_type="pt"
    )


def _run(network: nn.Module, x_t: Tensor, timesteps: Tensor, condition: Condition, config: Any) -> Any:
    """Run the transformer on latents; `timesteps` are on the training grid."""
    n, (height, width) = len(x_t), x_t.shape[2:]
    sizes = [*_ORIGINAL_SIZE, height * _VAE_FACTOR, width * _VAE_FACTOR, 0, 0]
    return network(
        x_t,
        timestep=timesteps.to(x_t.dtype),
        **condition,
        image_meta_size=torch.tensor([sizes] * n, dtype=x_t.dtype, device=x_t.device),
        style=torch.zeros(n, dtype=torch.long, device=x_t.device),
        image_rotary_emb=_positions(x_t, config),
        return_dict=False,
    )


class BertTextEncoder(TextEncoder):
    """A frozen BERT."""

    def __call__(self, prompts: list[str]) -> tuple[Float[Tensor, "prompt length width"], Int[Tensor, "prompt length"]]:
        """Return the last states, and the mask of tokens other than padding, which is hidden from the encoder."""
        tokens = self.tokens(prompts)
        return self.encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0], tokens.attention_mask


def _load_bert(folder: Path, dtype: torch.dtype) -> BertTextEncoder:
    """Load the parts `text_encoder` and `tokenizer`. Raises: WeightsMissing, WeightsMismatch."""
    from transformers import BertModel, BertTokenizer

    require_files(folder / "text_encoder")
    require_vocabulary(folder, "tokenizer")
    model = load_transformer(BertModel, folder / "text_encoder", dtype=dtype)
    return BertTextEncoder(load_tokenizer(BertTokenizer, folder / "tokenizer"), model, _BERT_LENGTH)


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoders, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    needed = frozenset(needed) | (frozenset(_POOLED) if _POOLER in needed else frozenset())
    hunyuan, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=_ENCODERS)
    folder, dtype = checkpoint.part("vae").parent, options.dtype
    t5 = load_t5_text(folder, dtype=dtype, length=_T5_LENGTH, encoder="text_encoder_2", tokenizer="tokenizer_2")
    return HunyuanDit(hunyuan, vae, _load_bert(folder, dtype), t5, prediction=spec.prediction)


class HunyuanDit(TextBackbone):
    """A loaded HunyuanDiT checkpoint.

    Args:
        bert, t5: both text encoders.
        prediction: what the transformer predicts.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: VaeEncoder,
        bert: BertTextEncoder,
        t5: T5TextEncoder,
        *,
        prediction: PredictionKind,
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            (states, mask), (states_t5, mask_t5) = bert(prompts), t5(prompts, masked=True)
            return {
                "encoder_hidden_states": states,
                "text_embedding_mask": mask,
                "encoder_hidden_states_t5": states_t5,
                "text_embedding_mask_t5": mask_t5,
            }

        texts: dict[str, TextEncoder] = {"text_encoder": bert, "text_encoder_2": t5}
        super().__init__(denoiser, vae, texts, encode, prediction=prediction)

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        output = _run(self.denoiser, x_t, timesteps, condition, self.denoiser.config)[0]
        return self.predicted(output, x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, _ENCODERS, ["tokenizer", "tokenizer_2"])


def tiny(path: Path | str, *, seed: int = 0, sized: bool = True) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Its VAE reduces a side by 8, as the pipeline demands; its own resolution is 64.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        sized: make a transformer that takes image sizes and a style, as those up to version 1.1.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.HunyuanDiT2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=32,
            num_layers=4,
            cross_attention_dim=24,
            cross_attention_dim_t5=32,
            pooled_projection_dim=16,
            use_style_cond_and_image_meta_size=sized,
        )
        vae = tiny_vae(64, latent_channels=4, levels=4)
        tokenizer, text_encoder = tiny_bert(width=24, length=_BERT_LENGTH)
        tokenizer_2, text_encoder_2 = tiny_t5(path / "tokenizer_2")
    made: Any = diffusers.HunyuanDiTPipeline
    pipeline = made(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.03, beta_schedule="scaled_linear", prediction_type="v_prediction"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
    )
    pipeline.save_pretrained(path)
    return path
