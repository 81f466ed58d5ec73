"""Alignment of a denoiser with captions, as a second task of its training: DiffDis (Huang et al., 2308.09306).

A joint step minimises L_IG + lambda L_ITA. L_IG is the ordinary loss of the denoiser under captions, without a query.
L_ITA contrasts denoised queries: the encoder half of the U-Net (down and mid blocks) reads the clean latent under the
empty caption, so that no caption enters but through its own noised query, and the head of `probes/caption/diffdis.py`
predicts the vector of the caption from both. Gradients of both losses reach the U-Net.

In the paper the blocks that fuse query and image stand inside the U-Net's encoder; here they follow its mid block. The
paper's weights, optimiser and number of blocks are not verified, and those here are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.backbones.hooks import Capture
from diffprobe.backbones.layout import OutputLayout
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.caption import diffdis

FOLDER = "alignment"
"""Folder of the alignment head, beside the parts of the saved pipeline."""
TAP = "mid_block"
"""Where the encoder half of the U-Net ends."""


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """The second task of a denoiser's training (the `alignment` block of an experiment file)."""

    weight: float = 1.0
    """lambda: factor of the alignment loss. 0 trains for generation alone, as without this block."""
    generation: bool = True
    """Whether the denoiser is trained for generation too; false trains for alignment alone."""
    gamma: float = 1.0
    """Factor of the signal in the noised query, above 0, at most 1."""
    blocks: int = 2
    """M: blocks of joint attention of query and image tokens."""
    width: int = 128
    """Width of the blocks."""
    heads: int = 4
    """Attention heads; they divide the width."""
    p_dropout: float = 0.1
    """Share of samples whose image is replaced by a learned token, for guidance."""
    temperature: float = 0.07
    """Initial temperature; it is learned, down to 0.01."""

    def __post_init__(self) -> None:
        self.head(1)  # its checks
        if not 0 <= self.weight < float("inf"):
            raise ConfigError(f"alignment.weight={self.weight:g} is out of range: at least 0, and finite.")
        if self.trains_head:
            return
        if not self.generation:
            raise ConfigError(
                "alignment.weight=0 and alignment.generation=false leave nothing to train.",
                fix="alignment.weight=1, or alignment.generation=true",
            )
        default = AlignmentConfig()
        unused = [field.name for field in fields(self) if getattr(self, field.name) != getattr(default, field.name)]
        if unused != ["weight"]:
            names = ", ".join(f"alignment.{name}" for name in unused if name != "weight")
            raise ConfigError(f"{names}: no effect with alignment.weight=0.", fix="alignment=null")

    @property
    def trains_head(self) -> bool:
        """Whether there is an alignment loss."""
        return self.weight > 0

    def head(self, side: int) -> diffdis.Config:
        """Return the settings of the head for image tokens of `side` x `side` places. Raises: ConfigError."""
        return diffdis.Config(
            grid=side, width=self.width, heads=self.heads, blocks=self.blocks, gamma=self.gamma,
            p_dropout=self.p_dropout, temperature=self.temperature,
        )  # fmt: skip

    def check(
        self,
        *,
        batch_size: int,
        text_encoder: str | None,
        text_learning_rate: float,
        transformer: bool,
        regularizer: bool,
    ) -> None:
        """Refuse settings of the denoiser's training that alignment is not defined with.

        Args:
            batch_size: of the training.
            text_encoder: folder or name of a trained text encoder; None trains one from random weights.
            text_learning_rate: of the text encoder, as a multiple of the U-Net's.
            transformer: whether a transformer takes the place of the U-Net.
            regularizer: whether there is a class-contrast term.
        Raises: ConfigError.
        """
        if not self.trains_head:
            return
        if transformer:
            raise ConfigError(
                "alignment reads the encoder half of a U-Net, which a transformer does not have.",
                fix="alignment=null",
            )
        if regularizer:
            raise ConfigError("alignment is not offered with a class-contrast term.", fix="regularizer=null")
        if text_learning_rate or not text_encoder:
            raise ConfigError(
                "alignment denoises vectors of a frozen text encoder.",
                f"given: text_encoder={text_encoder or 'null'} text_learning_rate={text_learning_rate:g}",
                fix="text_encoder=scenes-sd text_learning_rate=0",
            )
        if batch_size < 2:
            raise ConfigError(
                f"data.batch_size={batch_size}: InfoNCE contrasts a caption with the others of its batch, and there "
                "are none.",
                fix="data.batch_size=64",
            )


def encoder_half(
    unet: nn.Module, clean: Float[Tensor, "batch c h w"], context: Float[Tensor, "batch token width"]
) -> Float[Tensor, "batch features"]:
    """Return the image tokens of clean latents: the output of the mid block, one channel after the other.

    The pass ends there. The timestep is 0.

    Args:
        unet: a UNet2DConditionModel.
        clean: scaled vae_latents.
        context: states of the empty caption, the same for each image.
    """
    layout = OutputLayout(size=(clean.shape[2], clean.shape[3]))
    capture = Capture(unet, [TAP], layout=layout, read=lambda found, _: found)
    timesteps = torch.zeros(len(clean), dtype=torch.long, device=clean.device)
    return capture(lambda: unet(clean, timesteps, context))[TAP].flatten(1)


def require_negatives(captions: Sequence[str], where: str) -> None:
    """Check that there are at least two different captions: without, InfoNCE is 0 and has no gradient.

    Args:
        captions: of the samples that are contrasted.
        where: what they are, for the error.
    Raises: EmptyClass.
    """
    if len(set(captions)) > 1:
        return
    found = f"'{captions[0]}'" if captions else "none"
    raise EmptyClass(
        f"{where} has one caption ({found}) for {len(captions)} samples: InfoNCE has no negatives.",
        fix="images with different captions, a larger data.batch_size, or alignment=null",
    )


def steps_of_equal_compute(joint_steps: int, flops: Mapping[str, float]) -> dict[str, int]:
    """Return the steps of single-task models that cost what a joint model costs, at one batch size.

    A joint step passes each sample once through the whole denoiser (`forward`), and once through its encoder half and
    the head (`alignment`). A step for one task has one of the two passes. The cost is counted in operations of the
    passes; backward passes are taken to be in proportion.

    Args:
        joint_steps: optimiser steps of the joint model.
        flops: operations per sample of `forward` and `alignment`.

    >>> steps_of_equal_compute(100, {"forward": 4.0, "alignment": 1.0})
    {'generation': 125, 'alignment': 500}
    """
    total = joint_steps * (flops["forward"] + flops["alignment"])
    return {"generation": round(total / flops["forward"]), "alignment": round(total / flops["alignment"])}
