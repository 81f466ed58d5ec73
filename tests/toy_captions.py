"""Toy features with captions: a linear map from caption vectors to features is planted, in groups of three samples."""

from collections.abc import Sequence
from types import SimpleNamespace

import torch

from diffprobe.features.batch import FeatureTable
from tests.toy import Toy

CELL, D_FEATURES, WIDTH = "mid_block@t10:empty:mean", 6, 8
ANIMALS, COLOURS = ("cat", "dog", "cow", "owl", "bee", "ant", "fox", "hen"), ("red", "blue", "green", "grey", "pink")
CAPTIONS = tuple(f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS)
SIZES = {"train": 150, "val": 60, "test": 60}


class ToyEncoder:
    """A text encoder: the sum of a fixed random vector for each word."""

    name, digest, width = "toy", "0" * 64, WIDTH

    def __init__(self) -> None:
        self.n_encoded = 0

    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> torch.Tensor:
        self.n_encoded += len(captions)
        return torch.stack([sum(word_vector(word) for word in caption.split()) for caption in captions])  # type: ignore[misc]


def word_vector(word: str) -> torch.Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(sum(map(ord, word))))


def planted_map() -> torch.Tensor:
    return torch.randn(WIDTH, D_FEATURES, generator=torch.Generator().manual_seed(5))


class Captioned(Toy):
    """Features that are a linear function of the caption, with noise of the given size and an offset of 5."""

    def __init__(self, batch_size: int = 32, seed: int = 0, noise: float = 0.3) -> None:
        super().__init__(batch_size, seed, cells=(CELL,))
        self.noise, self.widths = noise, {CELL: D_FEATURES}
        self.classes, self.attributes = (), {"family": tuple(str(i) for i in range(SIZES["train"] // 3))}
        self.request = SimpleNamespace(shard_set=SimpleNamespace(group="family"))

    def table(self, split: str) -> FeatureTable:
        draw, n = torch.Generator().manual_seed(sum(map(ord, split))), SIZES[split]
        chosen = torch.randint(len(CAPTIONS), (n // 3,), generator=draw).repeat_interleave(3)
        captions = [CAPTIONS[i] for i in chosen.tolist()]
        x = 5 + ToyEncoder()(captions) @ planted_map() + self.noise * torch.randn(n, D_FEATURES, generator=draw)
        family = torch.arange(n) // 3
        keys = [f"{split}/{i}" for i in range(n)]
        return FeatureTable({CELL: x}, keys, torch.full((n,), -1), {"family": family}, captions=captions)
