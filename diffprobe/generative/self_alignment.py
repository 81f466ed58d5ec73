"""Self-representation alignment (SRA): a flow transformer learns from its own averaged weights at less noise.

An earlier block of the trained network, at timestep t, predicts through a small head the output of a later block of the
averaged network at timestep t - u, with the same noise and u uniform in 0..`max_interval`. The loss is the mean smooth
L1 distance over the image tokens (Jiang et al., 2505.02831; distance, its beta, interval and noise from the released
code, vvvvvjdy/SRA).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError

BETA = 0.05
"""Distance below which the loss is quadratic; of the released code."""


@dataclass(frozen=True, kw_only=True)
class SelfAlignmentConfig:
    """Keys of `self_alignment` of experiment files of kind `train_denoiser` with a transformer."""

    student_block: int
    """Block whose output predicts, counted from 0. Published for 28 blocks: the 8th."""
    teacher_block: int
    """Block of the averaged network whose output is predicted, not before `student_block`. Published for 28 blocks: the
    20th."""
    weight: float = 0.2
    """Weight of the loss. Second hand: of a reimplementation."""
    max_interval: float = 0.2
    """Largest difference of noise levels, in 0..1."""

    def __post_init__(self) -> None:
        if not 0 <= self.student_block <= self.teacher_block:
            raise ConfigError(
                f"self_alignment.student_block={self.student_block} is not between 0 and"
                f" self_alignment.teacher_block={self.teacher_block}.",
                "an earlier block learns from a later one",
            )
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"self_alignment.weight={self.weight} is out of range: more than 0, finite.")
        if not 0 <= self.max_interval <= 1:
            raise ConfigError(f"self_alignment.max_interval={self.max_interval} is out of range: 0 to 1.")

    def require_blocks(self, n: int) -> None:
        """Check the blocks against the number of the network's. Raises: ConfigError."""
        if self.teacher_block >= n:
            raise ConfigError(
                f"self_alignment.teacher_block={self.teacher_block}: transformer.layers={n} has blocks 0 to {n - 1}."
            )

    def teacher_timesteps(
        self, timesteps: Int[Tensor, " batch"], n_timesteps: int, generator: torch.Generator
    ) -> Int[Tensor, " batch"]:
        """Draw the teacher's timesteps on the CPU: at most `max_interval` below, at least 0, rounded to the grid.

        Args:
            timesteps: of the student, 0 (clean) to n_timesteps (noise).
            n_timesteps: timestep of pure noise.
            generator: source of the differences.
        """
        less = torch.rand(len(timesteps), generator=generator) * self.max_interval * n_timesteps
        return (timesteps.cpu() - less).clamp(min=0).round().long()


def make_head(width: int, seed: int) -> nn.Module:
    """Build the head of the student, two linear layers of one width; it is not saved with the model. Its form is ours.

    Args:
        width: of a token.
        seed: of the weights; the global random state is unchanged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))


def alignment_loss(
    predicted: Float[Tensor, "batch token width"], target: Float[Tensor, "batch token width"]
) -> Float[Tensor, ""]:
    """Return the mean smooth L1 distance in float32: |d| - beta/2, and d^2 / (2 beta) where |d| < beta."""
    return nn.functional.smooth_l1_loss(predicted.float(), target.float(), beta=BETA)
