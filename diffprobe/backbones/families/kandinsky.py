"""Kandinsky 2.2 decoders: a U-Net over the latents of a VQ autoencoder (`movq`), conditioned on a CLIP image
embedding.

Images become latents as in the image-to-image pipeline: encoded, neither quantised nor scaled. The embedding is made
from a text by another pipeline, the prior, which is not part of a decoder's checkpoint. Therefore the only condition is
`empty`, with an embedding of zeros. (The pipeline's own unconditional branch is the prior's embedding of a black image,
which is not in the checkpoint either.)
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diffprobe.backbones.base import (
    Backbone,
    BackboneSpec,
    Checkpoint,
    Condition,
    ConditionInput,
    LoadOptions,
    Prediction,
)
from diffprobe.backbones.loading import load_denoiser, require_parts
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.unet import (
    check_latents,
    image_side,
    make_unet,
    read_unet_config,
    unet_spec,
)
from diffprobe.backbones.vae import MovqEncoder, latent_geometry, load_movq_encoder
from diffprobe.backbones.weights import digest_denoiser, digest_part, read_config
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap, Images

_PIPELINES = ("KandinskyV22Pipeline", "KandinskyV22Img2ImgPipeline")
_KIND = "UNet2DConditionModel"


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") in _PIPELINES


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    config = read_unet_config(checkpoint, _KIND)
    read_config(checkpoint, "movq")
    channels, factor = latent_geometry(checkpoint.part("movq"), "VQModel")
    check_latents(checkpoint, config, channels)
    width = _embedding_width(checkpoint, config)
    unet = make_unet(checkpoint, config)
    # up blocks double the side, so an odd side on the way down would not match its skip connection
    multiple = factor * 2 ** (len(unet.down_blocks) - 1)
    side = image_side(checkpoint, config, resolution, multiple=multiple, factor=factor)
    size = side // factor

    def run(network: nn.Module) -> object:
        return network(
            torch.empty(1, channels, size, size, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": torch.empty(1, width, device="meta")},
            return_dict=False,
        )

    return unet_spec(
        "kandinsky",
        checkpoint,
        unet,
        run=run,
        signature=[config, size],
        side=side,
        latent_shape=(channels, size, size),
        conditions=("empty",),
        conditioning={"image_embeds": "zeros"},
    )


def _embedding_width(checkpoint: Checkpoint, config: dict[str, Any]) -> int:
    """Return the width of the image embedding. Raises: WeightsMismatch for U-Nets with another conditioning."""
    kinds = {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj"}
    wrong = [f"{name}: {config.get(name)}; allowed: {kind}" for name, kind in kinds.items() if config.get(name) != kind]
    if wrong:
        raise WeightsMismatch(
            f"the U-Net of '{checkpoint.name}' is not conditioned on an image embedding alone, as in Kandinsky 2.2.",
            *wrong,
        )
    width: int = config["encoder_hid_dim"]
    return width


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load the encoder of the autoencoder, and of the U-Net only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    require_parts(checkpoint, "unet", ("movq",), trained=options.random_seed is None)
    unet = load_denoiser(checkpoint, spec, needed, options, part="unet")
    movq = load_movq_encoder(checkpoint.part("movq"), dtype=options.dtype, images=options.images)
    width = _embedding_width(checkpoint, read_unet_config(checkpoint, _KIND))
    return Kandinsky(unet, movq, width=width, prediction=spec.prediction)


class Kandinsky(Backbone):
    """A loaded Kandinsky 2.2 decoder.

    Args:
        unet: the network.
        movq: encodes images.
        width: of the image embedding.
        prediction: what the U-Net predicts.
    """

    def __init__(self, unet: nn.Module, movq: MovqEncoder, *, width: int, prediction: PredictionKind) -> None:
        self.denoiser, self._movq, self._width, self.prediction = unet, movq, width, prediction

    def encode_images(self, images: Images) -> FeatureMap:
        """See `MovqEncoder`."""
        return self._movq(images)

    def encode_conditions(self, values: Sequence[ConditionInput]) -> Condition:
        """Return an embedding of zeros for every sample."""
        like = next(self.denoiser.parameters())
        return {"image_embeds": torch.zeros(len(values), self._width, device=like.device, dtype=like.dtype)}

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the U-Net once."""
        output = self.denoiser(
            x_t, timesteps, encoder_hidden_states=None, added_cond_kwargs=dict(condition), return_dict=False
        )
        return self.predicted(output[0], x_t)

    def components(self) -> dict[str, nn.Module]:
        """Name the loaded networks."""
        return {"denoiser": self.denoiser, "movq": self._movq.vae}


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    require_parts(checkpoint, "unet", ("movq",), trained=trained)
    return {
        "denoiser": digest_denoiser(checkpoint, "unet", weights=trained),
        "movq": digest_part(checkpoint.part("movq")),
    }


def tiny(path: Path | str, *, seed: int = 0, resolution: int = 32) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        resolution: image side in pixels; the autoencoder halves it.
    Returns: `path`.
    """
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=resolution // 2,
            in_channels=4,
            out_channels=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=8,
            cross_attention_dim=24,
            addition_embed_type="image",
            encoder_hid_dim_type="image_proj",
            encoder_hid_dim=20,
            resnet_time_scale_shift="scale_shift",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        )
        movq = diffusers.VQModel(
            sample_size=resolution,
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            norm_type="spatial",
            latent_channels=4,
            vq_embed_dim=4,
            num_vq_embeddings=12,
        )
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear")
    pipeline: Any = diffusers.KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=movq)
    pipeline.save_pretrained(path)
    return Path(path)
