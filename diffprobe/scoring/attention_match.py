"""Discffusion (DSD): how well a text fits an image by cross-attention and denoising error (He et al., 2305.10722).

A pass gives each row two numbers. The attention is the log-sum-exp over text tokens of q k / sqrt(d), averaged over the
places of the image, the chosen heads and the chosen attentions. In a joint attention (SD3, FLUX) the queries of the
image are compared with the keys of the text alone, as published for cross-attention. The error is that of Diffusion
Classifier. The score of a row is a weighted difference, smaller for a better fit, so that it is used like any other
error:

    error_weight * error - attention_weight * attention

All averages are within one row: rows of a pass do not affect each other. The published score also adds the error under
the empty text. It is the same for all candidates of an image, and from text to image the mean of an image is
subtracted, so it cancels in every choice and no pass is spent on it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.attended import Attended
from diffprobe.backbones.base import Backbone, BackboneSpec, Condition
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.readouts import split_tap, watch_attention
from diffprobe.backbones.taps import resolve, tap_infos, trace_spec
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.scoring.denoising_error import DenoisingError

_READOUT = "logits"


@dataclass(frozen=True, kw_only=True)
class AttentionMatchRule:
    """How attention and error make a score."""

    attention_weight: float = 1.0
    """Weight of the attention; 0 ranks as Diffusion Classifier."""
    error_weight: float = 1.0
    """Weight of the denoising error."""
    error: Literal["squared", "norm"] = "squared"
    """`squared`: mean square, as Diffusion Classifier has it. `norm`: Euclidean norm over the latent, as published."""
    taps: tuple[str, ...] = ()
    """Attentions to a text, as module paths with `*`; empty for the last one of each of down, mid and up blocks."""
    heads: tuple[int, ...] = ()
    """Heads of each attention, from 0; empty for all."""

    def __post_init__(self) -> None:
        weights = {"attention_weight": self.attention_weight, "error_weight": self.error_weight}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"dsd.{name}={weight:g} is out of range: finite, at least 0.")
        if not any(weights.values()):
            raise ConfigError("dsd: both weights are 0, so that all candidates are equal.", fix="dsd.error_weight=1")
        if not self.attention_weight and (self.taps or self.heads):
            raise ConfigError("dsd.taps and dsd.heads have no effect with dsd.attention_weight=0.", fix="remove them")
        if not self.error_weight and self.error != type(self).error:
            raise ConfigError(f"dsd.error={self.error} has no effect with dsd.error_weight=0.", fix="remove it")
        if len(set(self.heads)) != len(self.heads) or any(head < 0 for head in self.heads):
            raise ConfigError(f"dsd.heads={list(self.heads)}: different numbers from 0 are needed.")


def text_attention(found: Attended, *, n_heads: int, heads: Sequence[int] = ()) -> Float[Tensor, " rows"]:
    """Return the attention of each row: log-sum-exp over the tokens of the text, then the mean over places and heads.

    Args:
        found: queries and keys, and the mask of the network; tokens that it hides do not count.
        n_heads: number of heads.
        heads: the chosen ones; empty for all.
    Returns: float32.
    """
    chosen, total = list(heads) or list(range(n_heads)), torch.zeros(len(found.q), device=found.q.device)
    for head in chosen:  # one at a time, to bound memory
        total = total + found.scores(head, n_heads, masked=True, keys=found.text).logsumexp(-1).mean(1)
    return total / len(chosen)


def cross_attentions(spec: BackboneSpec, taps: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the paths of the cross-attentions that are read, in the order in which they run.

    Args:
        taps: paths with `*`, with or without `/logits`; empty for the last one of each group of blocks (for a U-Net the
            down blocks, the mid block and the up blocks; for FLUX the blocks of two streams and of one).
    Raises: ConfigError for a backbone without attention to a text; UnknownTap for names that match nothing.
    """
    infos = [
        info
        for info in tap_infos(spec, trace_spec(spec, count=False), counted=False)
        if split_tap(info.path)[1] == _READOUT
    ]
    if not infos:
        raise ConfigError(
            f"backbone '{spec.name}' (family {spec.family}) has no attention from the image to a text.",
            "needed: cross-attention to a text, or joint attention of image and text",
            fix="method=diffusion_classifier, or a model of SD, SDXL, PixArt, Sana, SD3, FLUX, Qwen-Image, AuraFlow",
        )
    if taps:
        named = [tap if tap.endswith(f"/{_READOUT}") else f"{tap}/{_READOUT}" for tap in taps]
        return tuple(split_tap(tap)[0] for tap in resolve(named, infos, spec))
    last = {info.path.partition(".")[0]: split_tap(info.path)[0] for info in infos}
    return tuple(last.values())


@contextmanager
def reading_attention(
    network: nn.Module, layout: OutputLayout, paths: Sequence[str], heads: Sequence[int]
) -> Iterator[list[Tensor]]:
    """Hook attentions to a text; a pass adds to the list one tensor [rows] for each of them, see `text_attention`.

    Raises: ConfigError for a head that one of them does not have.
    """
    found: list[Tensor] = []
    handles: list[Any] = []
    modules: dict[str, Any] = {path: network.get_submodule(path) for path in paths}
    for path, module in modules.items():
        if heads and max(heads) >= module.heads:
            raise ConfigError(f"dsd.heads={list(heads)}: '{path}' has the heads 0 to {module.heads - 1}.")

    def reader(n_heads: int) -> Any:
        return lambda attended: found.append(text_attention(attended, n_heads=n_heads, heads=heads))

    try:
        for path, module in modules.items():
            handles += watch_attention(module, path, layout, reader(module.heads))
        yield found
    finally:
        for handle in handles:
            handle.remove()


class AttentionMatch(DenoisingError):
    """Scores (image, text) pairs by cross-attention and denoising error; used like `DenoisingError`.

    Args:
        backbone, spec, seed, rows: see `DenoisingError`.
        rule: weights, cross-attentions and heads.
    Raises: ConfigError for a backbone without attention to a text, or without one of the heads; UnknownTap.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: BackboneSpec,
        *,
        rule: AttentionMatchRule,
        seed: int = 0,
        rows: int | None = None,
    ) -> None:
        super().__init__(backbone, spec, seed=seed, rows=rows)
        self.rule = rule
        self.paths = cross_attentions(spec, rule.taps) if rule.attention_weight else ()
        with reading_attention(backbone.denoiser, spec.layout, self.paths, rule.heads):
            pass  # refuses heads before anything is scored

    @classmethod
    def of(cls, score: DenoisingError, rule: AttentionMatchRule) -> Self:
        """Return the score with the model, noise and rows per pass of another one."""
        return cls(score.backbone, score.spec, rule=rule, seed=score.seed, rows=score.rows)

    def row_errors(
        self,
        clean: Float[Tensor, "rows channels height width"],
        noise: Float[Tensor, "rows channels height width"],
        timesteps: Int[Tensor, " rows"],
        condition: Condition,
    ) -> Float[Tensor, " rows"]:
        """Return weighted error minus weighted attention of each row, see `DenoisingError.row_errors`."""
        denoiser, layout = self.backbone.denoiser, self.spec.layout
        reading = reading_attention(denoiser, layout, self.paths, self.rule.heads) if self.paths else None
        with reading or nullcontext([]) as attention:
            errors = super().row_errors(clean, noise, timesteps, condition)
        if self.rule.error == "norm":
            errors = (errors * clean[0].numel()).sqrt()
        errors = self.rule.error_weight * errors
        if not self.paths:
            return errors
        if len(attention) != len(self.paths):
            raise RunFailed(
                f"{len(attention)} of {len(self.paths)} cross-attentions of '{self.spec.name}' ran in a pass.",
                "this is a bug in diffprobe: the trace found all of them",
            )
        return errors - self.rule.attention_weight * torch.stack(attention).mean(0).double()
