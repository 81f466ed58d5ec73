"""Dictionaries trained for an equal time on the same rows: ours, and those of other libraries, each by its own step.

The clock counts the processor time of the training steps alone, on one thread, so that waiting for other work on the
machine does not count; by shared caches and memory such work still makes steps slower. All have the same batches, the
same initial weights, and the same step size as a function of the time that has passed: it rises over the first 5 % and
falls to 0 over the last 20 %. The rest are the defaults of each library, its loss, clipping, and auxiliary loss among
them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.registry import probes
from diffprobe.metrics.dead_latents import DeadLatents
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.convert import UnscaledSAE, unfold
from diffprobe.probes.sae.topk import TopK
from diffprobe.probes.sae.transcoder import Transcoder

OURS = ("topk", "batch_topk", "matryoshka", "jumprelu", "transcoder")
"""Variants of this library that are trained."""
PAIRED = "transcoder"
"""The variant that reconstructs the features of another tap."""
FIRST_MOMENT = 0.9
"""Adam's decay of gradients; that of their squares, and epsilon, are those of the config of a variant."""
RISE, FALL = 0.05, 0.2
"""Shares of the time over which the step size rises and falls."""
_CHECKED = 256
"""Rows on which a converted dictionary is compared with the one that was trained."""
_TOLERANCE = 1e-3
"""Largest difference of both reconstructions, as a share of the norm of the features."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings that all dictionaries share."""

    seconds: float = 6.0
    """Processor time of the training steps."""
    k: int = 16
    """Active latents per row."""
    expansion: int = 8
    """Latents as a multiple of the width."""
    batch: int = 1024
    """Rows per step."""
    learning_rate: float = 3e-3
    """Largest step size."""

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.learning_rate > 0 and min(self.k, self.expansion, self.batch) > 0):
            raise ConfigError(f"{self}: all settings have to be positive.")


class TargetRows(NamedTuple):
    """Features of another tap, which a transcoder reconstructs."""

    tap: str
    rows: Float[Tensor, "n d_out"]
    """One for each row of the input: of the same image and place."""


class Trained(NamedTuple):
    """A dictionary after its time."""

    sae: KSAE
    steps: int
    seconds: float
    """Processor time of the steps."""


class Training(NamedTuple):
    """A dictionary of another library in training, on features with our scale."""

    step: Callable[[Tensor], object]
    """One training step: forward, backward, optimiser, normalisation."""
    optimiser: torch.optim.Optimizer
    """Its optimiser, whose step size is set before each step."""
    weights: Callable[[], UnscaledSAE]
    """Returns the weights so far, as a TopK without scale."""
    reconstruct: Callable[[Tensor], Tensor]
    """Reconstructs scaled features, by the code of the library."""


class MakeTraining(Protocol):
    """Makes the dictionary of another library."""

    def __call__(self, sae: TopK, batch: int, seed: int) -> Training:
        """Return it with the weights of ours. `batch` is the number of rows of a step."""


def plain_step(
    sae: KSAE,
    optimiser: torch.optim.Optimizer,
    dead: DeadLatents,
    x: Float[Tensor, "batch d"],
    target: Float[Tensor, "batch d_out"] | None = None,
) -> None:
    """Take one training step of an autoencoder of this library: forward, AuxK, backward, optimiser, unit norm.

    Args:
        dead: activity of the latents so far; AuxK acts once its window is full.
        x: features, each a row.
        target: of a transcoder, what it reconstructs, in the order of `x`.
    """
    optimiser.zero_grad()
    sae.begin_step()
    mask = dead.mask if dead.is_full else None
    out = sae.step(x, target=target, dead=mask) if isinstance(sae, Transcoder) else sae.step(x, dead=mask)
    dead.update(*out.code)
    out.loss.backward()
    sae.remove_parallel_gradient()
    optimiser.step()
    sae.end_step()


def train_ours(
    variant: str,
    rows: Float[Tensor, "n d"],
    settings: TrainingSettings,
    *,
    seed: int,
    target: TargetRows | None = None,
) -> Trained:
    """Train a variant of this library with its default settings for AuxK, Adam and initialisation.

    Args:
        variant: one of `OURS`, or another variant of `probes/sae` that trains on rows alone.
        rows: features, each a row.
        settings: what all dictionaries share.
        seed: of the initial weights and of the batches.
        target: of a transcoder, what it reconstructs.

    Raises: UnknownName for an unknown variant; ConfigError for constant features, fewer rows than a batch, a transcoder
        without a target, or a target without a row for each of the input or for another variant.
    """
    if (variant == PAIRED) != (target is not None):
        found = "no target was given" if target is None else f"the target '{target.tap}' was given"
        raise ConfigError(f"variant '{variant}': {found}; a transcoder needs one, and the others have none.")
    sae = _start(variant, rows, settings, seed=seed, target=target)
    dead_latents = DeadLatents(sae.n_latents, sae.config.dead_window)
    optimiser = torch.optim.Adam(
        sae.parameters(), lr=settings.learning_rate, betas=(FIRST_MOMENT, sae.config.adam_beta2),
        eps=sae.config.adam_eps, fused=rows.device.type == "cpu",
    )  # fmt: skip

    def step(x: Tensor, y: Tensor | None = None) -> None:
        plain_step(sae, optimiser, dead_latents, x, y)

    others = () if target is None else (target.rows,)
    steps, seconds = train_for(step, optimiser, rows, settings, seed=seed, others=others)
    return Trained(sae.eval(), steps, seconds)


def optimiser_of(variant: str) -> str:
    """Return with which optimiser `train_ours` trains a variant. Raises: UnknownName for an unknown variant.

    >>> optimiser_of("topk")
    'Adam, betas 0.9 and 0.95, epsilon 6.25e-10'
    """
    own = {one.name: one.default for one in fields(probes("sae").load(variant).Config)}
    return f"Adam, betas {FIRST_MOMENT:g} and {own['adam_beta2']:g}, epsilon {own['adam_eps']:g}"


def train_peer(make: MakeTraining, rows: Float[Tensor, "n d"], settings: TrainingSettings, *, seed: int) -> Trained:
    """Train the dictionary of another library, and convert it.

    Args: as `train_ours`.

    Raises: RunFailed if the converted dictionary does not reconstruct as the original does.
    """
    start = _start("topk", rows, settings, seed=seed)
    if not isinstance(start, TopK):
        raise TypeError(f"variant topk is {type(start).__name__}")
    scale = start.scale.clone()
    training = make(start, settings.batch, seed)
    steps, seconds = train_for(lambda x: training.step(x * scale), training.optimiser, rows, settings, seed=seed)
    scaled = training.weights()
    sae = unfold(scaled._replace(b_enc=scaled.b_enc / scale, b_dec=scaled.b_dec / scale), "topk")
    check_conversion(sae, lambda x: training.reconstruct(x * scale) / scale, rows[:_CHECKED])
    return Trained(sae.eval(), steps, seconds)


@torch.no_grad()
def check_conversion(sae: KSAE, reconstruct: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    """Check that a converted dictionary is the original. Raises: RunFailed."""
    difference = float((sae(rows)[0] - reconstruct(rows)).norm() / rows.norm())
    if not difference <= _TOLERANCE:
        raise RunFailed(
            f"the converted dictionary does not reconstruct as the trained one: they differ by {difference:.1e} of the "
            "norm of the features.",
            f"allowed: {_TOLERANCE:g}",
        )


def train_for(
    step: Callable[..., object],
    optimiser: torch.optim.Optimizer,
    rows: Float[Tensor, "n d"],
    settings: TrainingSettings,
    *,
    seed: int,
    others: Sequence[Tensor] = (),
    clock: Callable[[], float] = time.process_time,
) -> tuple[int, float]:
    """Run training steps until their time is over.

    Args:
        step: takes a batch, and then the same rows of each of `others`.
        optimiser: whose step size is set before each step.
        rows: features; batches go through them in a new order each time.
        settings: time, batch and step size.
        seed: of the order.
        others: more tensors with a row for each of `rows`.
        clock: returns seconds; the time between two batches is not counted.

    Returns: number of steps, and their time.
    Raises: ConfigError for fewer rows than a batch, and for others with another number of rows.
    """
    for other in others:
        if len(other) != len(rows):
            raise ConfigError(f"{len(other)} rows of a target do not pair with {len(rows)} rows.")
    if len(rows) < settings.batch:
        raise ConfigError(f"{len(rows)} rows are fewer than a batch of {settings.batch}.", fix="more images")
    generator = torch.Generator().manual_seed(seed)
    order, used, steps = torch.randperm(len(rows), generator=generator), 0, 0
    spent = 0.0
    while spent < settings.seconds:
        if used + settings.batch > len(rows):
            order, used = torch.randperm(len(rows), generator=generator), 0
        numbers = order[used : used + settings.batch]
        batch = [part[numbers] for part in (rows, *others)]
        used += settings.batch
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * step_size(spent / settings.seconds)
        start = clock()
        step(*batch)
        spent += clock() - start
        steps += 1
    return steps, spent


def step_size(share: float) -> float:
    """Return the step size as a share of the largest one, after a share of the time, 0..1.

    >>> [round(step_size(share), 2) for share in (0, 0.025, 0.05, 0.5, 0.8, 0.9, 1)]
    [0.01, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0]
    """
    return max(0.0, min(1.0, max(share / RISE, 0.01), (1 - share) / FALL))


def _start(
    variant: str, rows: Tensor, settings: TrainingSettings, *, seed: int, target: TargetRows | None = None
) -> KSAE:
    module, d = probes("sae").load(variant), rows.shape[1]
    given = {"k": settings.k, "expansion": settings.expansion, "learning_rate": settings.learning_rate}
    if target is None:
        sae: KSAE = module.make(module.Config(**given), d, seed=seed)
    else:
        sae = module.make(module.Config(**given, target_tap=target.tap), d, seed=seed, d_out=target.rows.shape[1])
    some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: sae.config.init_samples]
    sae.initialise(rows.mean(0), rows.var(0, correction=0), rows[some])
    if target is not None and isinstance(sae, Transcoder):
        sae.set_target(target.rows.mean(0), target.rows.var(0, correction=0))
    return sae
