"""DiT: a class-conditional transformer over VAE latents.

Its forward process is variance-preserving; timestep t is on the training grid (0..999), larger is noisier. The id
after the last class is the null class, of the unconditional model.
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
from diffprobe.backbones.latent_backbone import LatentBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_transformer import tiny_vae
from diffprobe.backbones.transformer import PART, describe_denoiser, digest_parts, find_latents, transformer_spec
from diffprobe.backbones.vae import VaeEncoder
from diffprobe.backbones.weights import read_config
from diffprobe.core.errors import ConfigError
from diffprobe.core.shapes import FeatureMap

_KIND = "DiTTransformer2DModel"


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "DiTPipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    dit = describe_denoiser(checkpoint, _KIND)
    latents = find_latents(
        checkpoint,
        resolution,
        own=dit.config.sample_size,
        patch=dit.config.patch_size,
        channels=dit.config.in_channels,
        only_own=True,
    )

    def run(network: nn.Module) -> object:
        one = torch.zeros(1, dtype=torch.long, device="meta")
        return network(latents.empty(), timestep=one, class_labels=one, return_dict=False)

    return transformer_spec(
        "dit",
        checkpoint,
        dit,
        latents,
        run=run,
        layout=OutputLayout(size=latents.shape[1:]),
        blocks=["transformer_blocks.*"],
        conditions=("empty", "label", "prompt"),
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load the VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    dit, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART)
    n_classes = read_config(checkpoint, "transformer").get("num_embeds_ada_norm", 1000)
    return Dit(dit, vae, n_classes=n_classes, name=checkpoint.name, prediction=spec.prediction)


class Dit(LatentBackbone):
    """A loaded DiT checkpoint.

    Args:
        n_classes: number of classes, which is also the id of the null class.
        name: of the checkpoint, for messages.
    """

    def __init__(
        self, denoiser: nn.Module, vae: VaeEncoder, *, n_classes: int, name: str, prediction: PredictionKind
    ) -> None:
        super().__init__(denoiser, vae, prediction=prediction)
        self._n_classes, self._name = n_classes, name

    def encode_conditions(self, values: Sequence[ConditionInput]) -> Condition:
        """Return class ids. A class is a number or its text; None and the empty text are the null class.

        Raises: ConfigError for anything else.
        """
        ids = [self._class_id(value) for value in values]
        bad = [value for value, i in zip(values, ids, strict=True) if i is None]
        if bad:
            raise ConfigError(
                f"{', '.join(repr(value) for value in bad[:5])}: not among the classes of backbone '{self._name}'.",
                f"allowed: 0..{self._n_classes - 1}; condition=empty gives the null class",
            )
        return {"class_labels": torch.tensor(ids, device=next(self.denoiser.parameters()).device)}

    def _class_id(self, value: ConditionInput) -> int | None:
        text = "" if value is None else str(value).strip()
        if not text:
            return self._n_classes
        return int(text) if text.isdecimal() and int(text) < self._n_classes else None

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        output = self.denoiser(x_t, timestep=timesteps, **condition, return_dict=False)[0]
        return self.predicted(output, x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained)


def tiny(path: Path | str, *, seed: int = 0, n_classes: int = 10, resolution: int = 32, layers: int = 3) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        n_classes: number of classes.
        resolution: image side in pixels; the VAE halves it.
        layers: number of transformer blocks.
    Returns: `path`.
    """
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.DiTTransformer2DModel(
            sample_size=resolution // 2,
            num_layers=layers,
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=n_classes,
        )
        vae = tiny_vae(resolution, latent_channels=4)
    scheduler = diffusers.DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    pipeline: Any = diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler)
    pipeline.save_pretrained(path)
    return Path(path)
