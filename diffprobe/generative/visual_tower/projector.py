"""Turn a feature map of a diffusion model into visual tokens, and interleave them with those of CLIP.

Source: Revelio (2411.16725), its released LLaVA variant, which follows the interleaved features of MMVP (2401.06209).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError


class DiffusionProjector(nn.Module):
    """Two 3 x 3 convolutions, the second with stride 2, and two linear layers ("mlp2x_gelu"), with GELU between them.

    At the paper's sizes a map of 1280 x 32 x 32 becomes 16 x 16 = 256 tokens.

    Args:
        channels: of the feature map.
        width: channels of both convolutions, 1024 in the paper.
        hidden_size: width of the language model.
    """

    def __init__(self, channels: int, width: int, hidden_size: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, stride=2, padding=1)
        )
        self.project = nn.Sequential(nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch token hidden"]:
        """Return the tokens of each map, row by row."""
        tokens: Tensor = self.project(self.reduce(features).flatten(2).transpose(1, 2))
        return tokens


def tokens_of_map(size: tuple[int, int]) -> int:
    """Return how many tokens `DiffusionProjector` makes of a map of this height and width.

    >>> tokens_of_map((32, 32))
    256
    """
    height, width = size
    return ((height + 1) // 2) * ((width + 1) // 2)


def require_equal_counts(n_clip: int, n_diffusion: int) -> None:
    """Check that tokens can be interleaved one to one. Raises: ConfigError."""
    if n_clip != n_diffusion:
        raise ConfigError(
            f"CLIP has {n_clip} patches and the diffusion features make {n_diffusion} tokens: "
            "they are interleaved one to one.",
            "a map of H x W makes H/2 x W/2 tokens; a CLIP of P-pixel patches at R pixels has (R/P)^2 patches",
            "the paper: ViT-L/14 at 224 pixels and up_ft1 of Stable Diffusion 1.5 at 512 pixels, 256 each",
            fix="another clip, tap or resolution",
        )


def interleave(
    clip: Float[Tensor, "batch token hidden"], diffusion: Float[Tensor, "batch token hidden"]
) -> Float[Tensor, "batch two_tokens hidden"]:
    """Return the tokens in alternation: position 2i is CLIP's token i, position 2i + 1 the diffusion token i.

    >>> interleave(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0], [4.0]]])).flatten().tolist()
    [1.0, 3.0, 2.0, 4.0]
    """
    return torch.stack([clip, diffusion], dim=2).flatten(1, 2)
