"""A small convolutional head of classes on maps of frozen features: 3 x 3 convolution, GELU, 1 x 1 convolution.

It reads a place together with its neighbours. Where it is far above the linear readout of the same map, the class is
in the features of the neighbourhood and not in those of the place alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, log_softmax

from diffprobe.core.errors import ConfigError, NonFinite


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvolutionalHead:
    """A fitted head."""

    layers: nn.Sequential
    """The convolutions, on standardised channels."""
    mean: Float[Tensor, " channels"]
    """Mean of each channel over the places that were fitted."""
    std: Float[Tensor, " channels"]
    """Standard deviation of each channel over them."""

    @torch.no_grad()
    def predict(self, maps: Float[Tensor, "channels height width"], size: tuple[int, int]) -> Int[Tensor, "rows cols"]:
        """Return the class of each pixel, at the size of the truth."""
        logits = self.layers(((maps.float() - self.mean[:, None, None]) / self.std[:, None, None])[None])
        found: Tensor = interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].argmax(0)
        return found


def fit_convolutional_head(
    maps: Float[Tensor, "images channels height width"],
    shares: Float[Tensor, "true_images classes true_height true_width"],
    *,
    width: int = 64,
    steps: int = 200,
    batch_size: int = 16,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int,
) -> ConvolutionalHead:
    """Fit a head by AdamW with a cosine schedule: mean cross-entropy of the shares over the known part of all places.

    The random state of the caller is left as it was.

    Args:
        shares: share of each class in each place; they add up to 1 over classes, less where pixels are unknown.
        width: channels between the convolutions.
        batch_size: images per step, at most all.
        seed: of the start and of the order of images.

    Raises: NonFinite for features that are not finite; ConfigError for shares of another number of images or places,
        or a setting that is out of range.
    """
    for name, value in {"width": width, "steps": steps, "batch_size": batch_size}.items():
        if value < 1:
            raise ConfigError(f"{name}={value} is out of range: at least 1.")
    if (len(maps), *maps.shape[2:]) != (len(shares), *shares.shape[2:]):
        raise ConfigError(
            f"convolutional head: maps are {tuple(maps.shape)}, shares {tuple(shares.shape)}.",
            "needed: the same images, heights and widths",
        )
    if not maps.isfinite().all():
        raise NonFinite("convolutional head: a feature is not finite.")
    held = maps.float()
    mean = held.mean((0, 2, 3))
    std = held.std((0, 2, 3), correction=0).clamp(min=1e-6)
    held = (held - mean[:, None, None]) / std[:, None, None]
    with _seeded(seed), torch.enable_grad():
        layers = nn.Sequential(
            nn.Conv2d(held.shape[1], width, 3, padding=1), nn.GELU(), nn.Conv2d(width, shares.shape[1], 1)
        )
        optimizer = torch.optim.AdamW(layers.parameters(), lr=lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        batches = _batches(len(held), min(batch_size, len(held)), steps)
        for batch in batches:
            total = shares[batch].sum().clamp(min=1e-12)
            loss = -(shares[batch] * log_softmax(layers(held[batch]), 1)).sum() / total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return ConvolutionalHead(layers=layers.requires_grad_(False).eval(), mean=mean, std=std)


def _batches(n: int, size: int, steps: int) -> Iterator[Tensor]:
    """Yield positions of images for a number of steps; each pass has its own order and drops what is left over."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(n)
        yield order[:size]
        order = order[size:]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers of the CPU, and restore their state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
