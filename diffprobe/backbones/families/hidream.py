"""HiDream-I1: a transformer with a mixture of experts over image and text tokens, in two streams, then in one
(2505.22705).

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone), and is what the transformer takes. It predicts the
opposite velocity, which is turned here, as in the pipeline. A text is read by two CLIPs, a T5 and a Llama 3.1, all with
128 tokens. Of the CLIPs the pooled text is part of the modulation. The tokens of T5 and of the last of the layers of
Llama that are read pass through all blocks behind the image; those of a layer of Llama of the block's own follow them,
and are dropped at its end. Padding is hidden from T5 and Llama, and not from the transformer.

Each place goes to the experts that its gate chooses. A pass on the meta device, which has no values to choose by, gives
equal shares of the places to all.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.chat_models import ChatEncoder, chat_layers, chat_width, load_chat_model
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_chat_model import tiny_llama
from diffprobe.backbones.testing.tiny_text import tiny_clip_text, tiny_tokenizer
from diffprobe.backbones.testing.tiny_transformer import tiny_t5, tiny_vae
from diffprobe.backbones.text_encoders import (
    ClipTextEncoder,
    T5TextEncoder,
    TextEncoder,
    load_clip_text,
    load_t5_text,
    t5_tokenizer,
)
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
from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.core.shapes import FeatureMap

_KIND = "HiDreamImageTransformer2DModel"
_OWN_SIDE = 128
"""Default latent side of the pipeline; the transformer's config has none."""
_LENGTH = 128
"""Tokens of the text for each encoder, the pipeline's default."""
_N_TEXT = 3 * _LENGTH
"""Tokens of text in a block: of T5, of the last layer that is read of Llama, and of the block's own layer."""
_CLIPS, _T5, _LLAMA = ("text_encoder", "text_encoder_2"), "text_encoder_3", "text_encoder_4"
_ENCODERS = (*_CLIPS, _T5, _LLAMA)
_TOKENIZERS = tuple(name.replace("text_encoder", "tokenizer") for name in _ENCODERS)
_DOUBLE, _SINGLE = r"double_stream_blocks\.\d+", r"single_stream_blocks\.\d+"
_TEXT_ONLY = (
    rf"(caption_projection|{_DOUBLE}\.block\.(norm1_t|norm3_t|ff_t))(\..*)?"
    rf"|{_DOUBLE}\.block\.attn1\.(to_[qkv]_t|to_out_t|[qk]_rms_norm_t)"
)


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "HiDreamImagePipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    hidream = describe_denoiser(checkpoint, _KIND)
    config = hidream.config
    latents = find_latents(checkpoint, resolution, own=_OWN_SIDE, patch=config.patch_size, channels=config.in_channels)
    _check_texts(checkpoint, config)
    layers = _check_layers(checkpoint, config)

    def run(network: nn.Module) -> object:
        condition = {
            "t5": torch.empty(1, _LENGTH, config.caption_channels[0], device="meta"),
            "llama": torch.empty(1, layers, _LENGTH, config.caption_channels[1], device="meta"),
            "pooled": torch.empty(1, config.text_emb_dim, device="meta"),
        }
        with _without_values(network):
            return _run(network, latents.empty(), torch.zeros(1, device="meta"), condition)

    return transformer_spec(
        "hidream",
        checkpoint,
        hidream,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            n_text=_N_TEXT,
            joint=rf"{_SINGLE}(\..+)?",
            image_first=True,
            text_second=rf"{_DOUBLE}(\.block)?",
            text_only=_TEXT_ONLY,
            joint_attention=rf"({_DOUBLE}|{_SINGLE})\.block\.attn1",
        ),
        blocks=["double_stream_blocks.*.block", "single_stream_blocks.*.block"],
        signature=[_LENGTH],
        conditioning={"text_tokens": _LENGTH},
    )


def _check_texts(checkpoint: Checkpoint, config: Any) -> None:
    """Check that the text encoders fit the transformer. Raises: WeightsMissing, WeightsMismatch."""
    if not checkpoint.part(_LLAMA).is_dir():
        raise WeightsMissing(
            f"checkpoint '{checkpoint.name}' has no {_LLAMA}; HiDream-I1 is used with a Llama 3.1 8B Instruct.",
            fix="save it with one: HiDreamImagePipeline.from_pretrained(..., text_encoder_4=LLAMA, "
            "tokenizer_4=TOKENIZER).save_pretrained(FOLDER), and backbone.path=FOLDER",
        )
    clips = [read_config(checkpoint, name) for name in _CLIPS]
    for name, clip in zip(_CLIPS, clips, strict=True):
        most = clip.get("max_position_embeddings", 77)
        if not isinstance(most, int) or most < _LENGTH:
            raise WeightsMismatch(
                f"the CLIP in {name} of '{checkpoint.name}' has {most} positions.",
                f"allowed: at least {_LENGTH}, the tokens that HiDreamImagePipeline gives it",
            )
    pooled = [clip.get("projection_dim", 512) for clip in clips]
    check_width(checkpoint, "the pooled text of both CLIPs", sum(map(int, pooled)), config.text_emb_dim)
    t5, llama = config.caption_channels
    check_width(checkpoint, "the T5 text encoder", read_config(checkpoint, _T5).get("d_model"), t5)
    read_config(checkpoint, _LLAMA)
    check_width(checkpoint, "the Llama text encoder", chat_width(checkpoint.part(_LLAMA)), llama)


def _check_layers(checkpoint: Checkpoint, config: Any) -> int:
    """Check which layers of Llama the blocks read, and return how many it has. Raises: WeightsMismatch."""
    where = config_file(checkpoint, PART)
    if config.out_channels not in (None, config.in_channels):
        raise WeightsMismatch(f"'{where}' takes {config.in_channels} latent channels and gives {config.out_channels}.")
    blocks, layers = config.num_layers + config.num_single_layers, chat_layers(checkpoint.part(_LLAMA))
    read = config.llama_layers
    if len(read) != blocks or not all(0 <= layer < layers for layer in read):
        raise WeightsMismatch(
            f"'{where}': llama_layers has {len(read)} layers from {min(read)} to {max(read)}.",
            f"allowed: {blocks} layers, one per block, from 0 to {layers - 1}",
        )
    return layers


@contextmanager
def _without_values(network: Any) -> Iterator[None]:
    """Run passes on the meta device inside: experts get equal shares of the places, and sizes are plain numbers."""
    patchify = network.patchify

    def in_numbers(x: Tensor) -> Any:
        tokens, masks, _, ids = patchify(x)
        return tokens, masks, [tuple(n // network.config.patch_size for n in x.shape[2:])] * len(x), ids

    mixtures: list[Any] = [module for module in network.modules() if hasattr(module, "moe_infer")]
    network.patchify = in_numbers
    for mixture in mixtures:
        mixture.moe_infer = partial(_share, mixture)
    try:
        yield
    finally:
        del network.patchify
        for mixture in mixtures:
            del mixture.moe_infer


def _share(
    mixture: Any, x: Float[Tensor, "places width"], chosen: Tensor, weights: Tensor
) -> Float[Tensor, "places width"]:
    n = -(-len(chosen) // len(mixture.experts))
    for expert in mixture.experts:
        expert(x[:n])
    return torch.zeros_like(x)


def _mix(mixture: Any, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of what the chosen experts make of each place.

    Shapes are not checked here, since the blocks that call it are compiled.

    Args:
        x: [places, width].
        chosen: numbers of experts, some for each place in turn, [pairs].
        weights: of each, [pairs, 1].
    """
    found, n = torch.zeros_like(x), mixture.num_activated_experts
    for i, expert in enumerate(mixture.experts):
        pairs = (chosen == i).nonzero()[:, 0]
        if len(pairs):
            found = found.index_add(0, pairs // n, expert(x[pairs // n]) * weights[pairs])
    return found


def _run(network: nn.Module, x_t: Tensor, times: Tensor, condition: Condition) -> Any:
    """Run the transformer on latents; `times` is in 0..1000."""
    return network(
        x_t,
        timesteps=times,
        encoder_hidden_states_t5=condition["t5"],
        encoder_hidden_states_llama3=condition["llama"].transpose(0, 1),
        pooled_embeds=condition["pooled"],
        return_dict=False,
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoders, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    hidream, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=_ENCODERS)
    mixtures: list[Any] = [module for module in hidream.modules() if hasattr(module, "moe_infer")]
    for mixture in mixtures:
        mixture.moe_infer = partial(_mix, mixture)  # that of diffusers has no gradients
    folder, dtype = checkpoint.part("vae").parent, options.dtype
    clips = [
        load_clip_text(folder, dtype=dtype, encoder=name, tokenizer=words)
        for name, words in zip(_CLIPS, _TOKENIZERS, strict=False)
    ]
    for clip in clips:
        clip.length = _LENGTH
    words = t5_tokenizer(checkpoint.index, _TOKENIZERS[2])
    t5 = load_t5_text(folder, dtype=dtype, length=_LENGTH, encoder=_T5, tokenizer=_TOKENIZERS[2], words=words)
    llama = load_chat_model(
        folder, dtype=dtype, length=_LENGTH, template=False, encoder=_LLAMA, tokenizer=_TOKENIZERS[3]
    )
    llama.tokenizer.pad_token = llama.tokenizer.eos_token
    return HiDream(hidream, vae, clips, t5, llama, prediction=spec.prediction)


class HiDream(TextBackbone):
    """A loaded HiDream-I1 checkpoint.

    Args:
        clips, t5, llama: the text encoders.
        prediction: what the transformer predicts, once its sign is turned.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: VaeEncoder,
        clips: list[ClipTextEncoder],
        t5: T5TextEncoder,
        llama: ChatEncoder,
        *,
        prediction: PredictionKind,
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            states = llama.hidden(llama.tokens(prompts))[1:]
            return {
                "t5": t5(prompts, masked=True)[0],
                "llama": torch.stack(states, dim=1),
                "pooled": torch.cat([clip(prompts)[0] for clip in clips], dim=-1),
            }

        texts: dict[str, TextEncoder] = dict(zip(_ENCODERS, (*clips, t5, llama), strict=True))
        super().__init__(denoiser, vae, texts, encode, prediction=prediction)

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        output = _run(self.denoiser, x_t, timesteps.float(), condition)[0]
        return self.predicted(-output, x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, _ENCODERS, _TOKENIZERS)


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
        transformer = diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[32, 24],
            text_emb_dim=24,
            axes_dims_rope=(8, 4, 4),  # type: ignore[arg-type]  # three, as in the published config
            max_resolution=(16, 16),
            llama_layers=[0, 1, 0, 2, 2],
        )
        vae = tiny_vae(256, latent_channels=4, shift=0.1, flow=True)
        parts: dict[str, Any] = {}
        for name, words, width in zip(_CLIPS, _TOKENIZERS, (16, 8), strict=False):
            parts[words] = tiny_tokenizer(path / words, length=_LENGTH)
            parts[name] = tiny_clip_text(parts[words], width=16, projection=width)
        parts[_TOKENIZERS[2]], parts[_T5] = tiny_t5(path / _TOKENIZERS[2])
        parts[_TOKENIZERS[3]], parts[_LLAMA] = tiny_llama(width=24, layers=3)
    pipeline: Any = diffusers.HiDreamImagePipeline(
        transformer=transformer, vae=vae, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), **parts
    )
    pipeline.save_pretrained(path)
    return path
