"""Samples with planted errors, for the tests of `diffprobe score`."""

import torch

from diffprobe.evaluation.captions import Encoded
from diffprobe.generative.image_table import ImageTable

COLOURS, SHAPES = ("red", "green", "blue", "grey"), ("cat", "dog", "cow", "hen", "owl")


def encoded() -> Encoded:
    """Twenty samples, each colour of each animal; latents hold their number."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    table = ImageTable(
        images=torch.zeros(20, 3, 1, 1, dtype=torch.uint8),
        keys=[f"{colour}-{shape}" for colour, shape in pairs],
        captions=[(f"a {colour} {shape}",) for colour, shape in pairs],
        attributes=[
            {"colour": colour, "shape": shape, "number": str(COLOURS.index(colour))} for colour, shape in pairs
        ],
    )
    names = [f"{colour} {shape}" for colour, shape in pairs]
    latents = torch.arange(20.0).reshape(20, 1, 1, 1)
    return Encoded(table, latents, names, [shape for _, shape in pairs])
