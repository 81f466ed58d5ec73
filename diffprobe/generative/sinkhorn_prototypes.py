"""Prototypes that cluster features online: a projection head, balanced assignments by Sinkhorn, and their loss.

Source: SGFM (2312.08825) and its public code, whose head, temperatures and iterations these are; the assignment is that
of SwAV (Caron et al., 2006.09882, section 3.1).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from diffprobe.core.errors import ConfigError

TEMPERATURE = 0.1
"""Divides the cosines of features and prototypes in the predicted probabilities."""
EPSILON = 0.05
"""Divides them in the assignment: the weight of its entropy."""
ITERATIONS = 3
"""Normalisations of an assignment over prototypes and samples."""
_USAGE_DECAY = 0.98


@dataclass(frozen=True, kw_only=True)
class PrototypeSettings:
    """The prototypes of a self-guided denoiser (the `prototypes` block of an experiment file)."""

    n: int = 48
    """Prototypes; at most so many clusters."""
    form: Literal["released", "described"] = "released"
    """`released`: features are detached, so the denoiser is trained as without prototypes, as in the public code.
    `described`: the gradient reaches the denoiser, as the abstract of the paper describes it."""
    random_network: bool = False
    """Keep the random weights of the denoiser and train the prototypes alone, as a control."""
    timesteps: tuple[int, int] = (100, 200)
    """First timestep, and the one after the last, of the samples that count in the loss."""
    hidden: int = 128
    """Width of the projection head."""
    width: int = 64
    """Width of its output, in which cosines are taken."""
    queue: int = 512
    """Earlier features that are assigned together with those of a batch, since few samples of a small batch count; 0
    assigns the batch alone, as the public code does."""
    weight: float = 1.0
    """Weight of the loss after the warm-up."""
    warmup: float = 1.0
    """Share of the training over which the weight rises linearly from 0."""
    least_effective: float = 2.0
    """Effective number of prototypes (the exponential of the entropy of their use) below which the clusters count as
    collapsed."""

    def __post_init__(self) -> None:
        for name, least in (("n", 2), ("hidden", 1), ("width", 1), ("queue", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"prototypes.{name}={getattr(self, name)} is out of range: at least {least}.")
        first, last = self.timesteps
        if not 0 <= first < last:
            raise ConfigError(
                f"prototypes.timesteps={list(self.timesteps)} is not a window: 0 <= first < last.",
                fix="prototypes.timesteps=[100,200]",
            )
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"prototypes.weight={self.weight} is out of range: more than 0, finite.")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"prototypes.warmup={self.warmup} is out of range: 0 to 1.")
        if not 1 <= self.least_effective <= self.n:
            raise ConfigError(
                f"prototypes.least_effective={self.least_effective} is out of range: 1 to prototypes.n={self.n}."
            )
        if self.random_network and self.form == "described":
            raise ConfigError(
                "prototypes.form=described has no effect with prototypes.random_network: no gradient changes the "
                "denoiser.",
                fix="prototypes.form=released",
            )

    @property
    def timestep(self) -> int:
        """Timestep at which images are assigned to clusters: the middle of the window."""
        return sum(self.timesteps) // 2

    def weight_at(self, step: int, total: int) -> float:
        """Return the weight of the loss at an optimiser step of `total`.

        >>> PrototypeSettings(weight=2.0, warmup=0.5).weight_at(25, 100)
        1.0
        """
        rise = self.warmup * total
        return self.weight * (min(1.0, step / rise) if rise > 0 else 1.0)


def sinkhorn(
    scores: Float[Tensor, "sample prototype"], *, epsilon: float = EPSILON, iterations: int = ITERATIONS
) -> Float[Tensor, "sample prototype"]:
    """Return soft assignments that use all prototypes alike: rows sum to 1, columns nearly to samples / prototypes.

    With several processes the sums are over all of them, each of which may have another number of samples: the result
    is that of one process on the samples of all.

    Args:
        scores: cosines of samples and prototypes; no gradient passes.
        epsilon: divides the scores; larger values assign more softly.
        iterations: normalisations of columns, then rows.
    """
    logits = scores.detach().double() / epsilon
    # a constant over all samples cancels in the first sum over columns, and keeps the exponential finite
    top = logits.max() if logits.numel() else torch.tensor(-math.inf, dtype=torch.float64, device=logits.device)
    q = torch.exp(logits - _over_processes(top, "max"))
    n = float(_over_processes(torch.tensor(float(len(q)), dtype=torch.float64, device=q.device), "sum"))
    n_prototypes = q.shape[1]
    for _ in range(iterations):
        columns = _over_processes(q.sum(0), "sum").clamp_min(torch.finfo(q.dtype).tiny)
        q = q / columns / n_prototypes
        q = q / q.sum(1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny) / n
    return (q * n).to(scores.dtype)


def _over_processes(value: Tensor, how: Literal["sum", "max"]) -> Tensor:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        value = value.clone()
        distributed.all_reduce(value, distributed.ReduceOp.SUM if how == "sum" else distributed.ReduceOp.MAX)
    return value


def assignment_loss(
    assigned: Float[Tensor, "sample prototype"], scores: Float[Tensor, "sample prototype"]
) -> Float[Tensor, " sample"]:
    """Return the cross-entropy of each sample between its assignment and softmax(scores / 0.1)."""
    return -(assigned * (scores / TEMPERATURE).log_softmax(1)).sum(1)


def entropy(shares: Float[Tensor, " prototype"]) -> float:
    """Return the entropy of shares that sum to 1, in nats.

    >>> round(entropy(torch.tensor([0.5, 0.5, 0.0])), 4)
    0.6931
    """
    kept = shares[shares > 0].double()
    return max(0.0, float(-(kept * kept.log()).sum()))


class Prototypes(nn.Module):
    """Projection head (Linear, BatchNorm, ReLU, Linear, unit length) and prototypes without bias.

    Attributes:
        usage: share of each prototype among the nearest prototypes of recent counted samples.
    """

    usage: Tensor
    stored: Tensor
    n_stored: Tensor

    def __init__(self, d_in: int, settings: PrototypeSettings, *, seed: int) -> None:
        super().__init__()
        self.settings, self.d_in = settings, d_in
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Sequential(
                nn.Linear(d_in, settings.hidden),
                nn.BatchNorm1d(settings.hidden),
                nn.ReLU(),
                nn.Linear(settings.hidden, settings.width),
            )
            self.prototypes = nn.Linear(settings.width, settings.n, bias=False)
        self.normalise()
        self.register_buffer("usage", torch.full((settings.n,), 1 / settings.n))
        self.register_buffer("stored", torch.zeros(settings.queue, settings.width))
        self.register_buffer("n_stored", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def normalise(self) -> None:
        """Scale all prototypes to unit length; done before every step."""
        self.prototypes.weight.copy_(normalize(self.prototypes.weight, dim=1))

    def project(self, features: Float[Tensor, "sample d_in"]) -> Float[Tensor, "sample width"]:
        """Return the projected features at unit length; in training mode BatchNorm needs two samples."""
        return normalize(self.head(features), dim=1)

    def scores(self, projected: Float[Tensor, "sample width"]) -> Float[Tensor, "sample prototype"]:
        """Return the cosine of each projected feature and each prototype."""
        return projected @ normalize(self.prototypes.weight, dim=1).T

    def counted(self, timesteps: Int[Tensor, " sample"]) -> Tensor:
        """Return which samples are in the window of timesteps, as bools."""
        first, last = self.settings.timesteps
        return (timesteps >= first) & (timesteps < last)

    def loss(self, features: Float[Tensor, "sample d_in"], timesteps: Int[Tensor, " sample"]) -> Float[Tensor, ""]:
        """Return the mean loss of the counted samples, 0 without any; update queue and usage.

        All samples pass the head, so that BatchNorm sees a whole batch; those outside the window are left out of
        assignment and loss.

        Args:
            features: of the denoiser, one per sample; `form` decides whether the gradient reaches them.
            timesteps: of the samples.
        """
        features = features.float()
        projected = self.project(features.detach() if self.settings.form == "released" else features)
        kept = projected[self.counted(timesteps)]
        scores = self.scores(kept)
        n = int(self.n_stored)
        with torch.no_grad():
            assigned = sinkhorn(torch.cat([scores, self.scores(self.stored[:n])]))[: len(kept)]
        if not len(kept):
            return projected.sum() * 0
        self._remember(kept.detach(), scores.detach())
        return assignment_loss(assigned, scores).mean()

    @torch.no_grad()
    def _remember(self, projected: Tensor, scores: Tensor) -> None:
        shares = torch.bincount(scores.argmax(1), minlength=self.settings.n) / len(scores)
        self.usage.lerp_(shares.to(self.usage), 1 - _USAGE_DECAY)
        size = self.settings.queue
        n = min(size, int(self.n_stored) + len(projected))
        recent = torch.cat([projected.to(self.stored), self.stored[: int(self.n_stored)]])[:n]
        self.stored[:n] = recent
        self.n_stored.fill_(n)

    @torch.no_grad()
    def measure_statistics(self, batches: Iterable[Float[Tensor, "_ d_in"]]) -> None:
        """Set the statistics of BatchNorm to the mean over batches of features, each of two samples or more.

        Those of the training are of the last steps' weights; averaged weights need their own (1803.05407, section 3.2).
        """
        norms = [module for module in self.head if isinstance(module, nn.BatchNorm1d)]
        momenta, was = [norm.momentum for norm in norms], self.training
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over batches
        self.train()
        for features in batches:
            self.head(features.float())
        self.train(was)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    @torch.no_grad()
    def assign(self, features: Float[Tensor, "sample d_in"]) -> Int[Tensor, " sample"]:
        """Return the number of the nearest prototype of each feature, in evaluation mode."""
        was, _ = self.training, self.eval()
        found = self.scores(self.project(features.float())).argmax(1)
        self.train(was)
        return found
