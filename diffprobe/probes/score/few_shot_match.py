"""Few-shot Discffusion: a LoRA through the frozen model that ranks the right text first by a margin (2305.10722).

The recipe is that of the released code: rank 4 on all attention layers, AdamW with a linear warm-up, a clipped
gradient, one image and one random timestep per step, and a margin loss against the best wrong candidate. All candidates
of an image share the noise. The right candidate has no place of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.backbones.base import Condition, take_rows
from diffprobe.backbones.lora_adapters import LoraAdapters
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite
from diffprobe.core.rng import derive_seed, noise_for
from diffprobe.scoring.denoising_error import DenoisingError

_CLIP = 1.0
"""Largest norm of the gradient."""


@dataclass(frozen=True, kw_only=True)
class FewShotRule:
    """How the LoRA is trained."""

    images: int = 0
    """Images of the training split, each of another group while there are enough; 0 trains nothing (zero-shot)."""
    steps: int = 500
    """Training steps, each of one image with its candidates at one timestep."""
    rank: int = 4
    """Rank of the LoRA."""
    learning_rate: float = 1e-4
    """Step size after the warm-up."""
    warmup: int = 50
    """Steps in which the step size rises linearly."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    margin: float = 0.1
    """Distance between the right candidate and the best wrong one beyond which the loss is 0, in units of the score."""

    def __post_init__(self) -> None:
        if not self.images and any(getattr(self, field.name) != field.default for field in fields(self)):
            raise ConfigError("settings of dsd.few_shot have no effect with images=0.", fix="dsd.few_shot.images=32")
        if self.images < 0 or self.images == 1 or min(self.steps, self.rank) < 1 or self.warmup < 0:
            raise ConfigError(
                f"dsd.few_shot: images={self.images}, steps={self.steps}, rank={self.rank}, warmup={self.warmup}.",
                "allowed: 0 or at least 2 images, at least 1 step and rank, a warm-up of at least 0",
            )
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and 0 < self.margin < float("inf")):
            raise ConfigError(
                f"dsd.few_shot: learning_rate={self.learning_rate:g}, weight_decay={self.weight_decay:g}, "
                f"margin={self.margin:g}.",
                "allowed: a positive step size and margin, a weight decay of at least 0",
            )


def margin_loss(scores: Float[Tensor, " n"], right: int, margin: float) -> Float[Tensor, ""]:
    """Return max(0, right - best wrong + margin) of one image; smaller scores are better.

    >>> float(margin_loss(torch.tensor([0.5, 0.25, 0.75]), 0, 0.25))
    0.5
    >>> float(margin_loss(torch.tensor([0.5, 1.0]), 0, 0.25))
    0.0
    """
    wrong = torch.cat([scores[:right], scores[right + 1 :]])
    return (scores[right] - wrong.min() + margin).clamp_min(0)


@dataclass(frozen=True)
class FewShotImages:
    """What is trained on.

    Attributes:
        latents: of the images.
        keys: of the images.
        conditions: encoded texts.
        candidates: rows of `conditions` of each image.
        offered: where `candidates` has one.
        right: column of the right candidate.
    """

    latents: Float[Tensor, "sample c h w"]
    keys: Sequence[str]
    conditions: Condition
    candidates: Int[Tensor, "sample n"]
    offered: Bool[Tensor, "sample n"]
    right: Int[Tensor, " sample"]


def optimiser_of(adapters: LoraAdapters, rule: FewShotRule) -> torch.optim.AdamW:
    """Return the optimiser, which has the factors of the LoRA alone."""
    return torch.optim.AdamW(adapters.parameters(), lr=rule.learning_rate, weight_decay=rule.weight_decay)


def train_few_shot(
    score: DenoisingError,
    adapters: LoraAdapters,
    tasks: Sequence[FewShotImages],
    rule: FewShotRule,
    *,
    seed: int,
    on_step: Callable[[int], object] = lambda count: None,
) -> list[float]:
    """Train the LoRA and return the loss of each step. The frozen model is not changed.

    Images of all tasks follow each other in a random order, drawn anew when all have been seen.

    Args:
        score: with the network that the LoRA is attached to.
        tasks: for example one for each attribute in which candidates differ.
        seed: of the order, the timesteps and the noise.
    Raises: EmptyClass without an image that has a wrong candidate; NonFinite.
    """
    places = [(task, row) for task in tasks for row in range(len(task.keys)) if int(task.offered[row].sum()) > 1]
    if not places:
        raise EmptyClass("dsd.few_shot: no training image has a wrong candidate.", fix="dsd.few_shot.images larger")
    optimiser = optimiser_of(adapters, rule)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / max(1, rule.warmup)))
    generator = torch.Generator().manual_seed(derive_seed("few shot", seed))
    order: list[int] = []
    losses = []
    for step in range(rule.steps):
        order = order or torch.randperm(len(places), generator=generator).tolist()
        task, row = places[order.pop()]
        t = int(torch.randint(score.n_timesteps, (), generator=generator))
        loss = margin_loss(_scores(score, task, row, t, seed, step), _place(task, row), rule.margin)
        if not bool(loss.isfinite()):
            raise NonFinite(f"the loss of sample '{task.keys[row]}' at t={t}, step {step}, is {float(loss)}.")
        optimiser.zero_grad()
        if loss.requires_grad:
            loss.backward()
        torch.nn.utils.clip_grad_norm_(adapters.parameters(), _CLIP)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        on_step(1)
    return losses


def _place(task: FewShotImages, row: int) -> int:
    """Return the place of the right candidate among those that are offered."""
    return int(task.offered[row, : int(task.right[row])].sum())


def _scores(score: DenoisingError, task: FewShotImages, row: int, t: int, seed: int, step: int) -> Float[Tensor, " n"]:
    """Return the scores of an image's candidates at one timestep, with gradients."""
    device = next(score.backbone.denoiser.parameters()).device
    asked = task.candidates[row][task.offered[row]]
    condition = {name: value.to(device) for name, value in take_rows(task.conditions, asked).items()}
    clean = task.latents[row : row + 1].to(device).expand(len(asked), -1, -1, -1)
    noise = noise_for(derive_seed("few shot noise", seed), task.keys[row], step, tuple(clean.shape[1:]))
    steps = torch.full((len(asked),), t, device=device)
    with torch.enable_grad():
        return score.row_errors(clean, noise.to(device).expand_as(clean), steps, condition)
