"""Mean decoder coherence: the mean |cosine| over all pairs of decoder rows, beside that of random directions."""

import math
from typing import Any

from torch import Tensor

from diffprobe.metrics.decoder_coherence import DecoderCoherence

FOR = "sae_decoder"
NAME = "mean_decoder_coherence"
HIGHER_IS_BETTER = False
HELP = "mean |cosine| of two decoder rows"
ORDER = 8


class MeanDecoderCoherence(DecoderCoherence):
    """Mean |cosine| of two decoder rows."""

    def compute(self) -> Tensor:
        """Return the mean |cosine|, a float64 scalar in 0..1."""
        return self.mean.clone()

    def controls(self) -> dict[str, float]:
        """Return the expectation for random directions: Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)) in d dimensions."""
        d_in = int(self.shape[1])
        expected = math.exp(math.lgamma(d_in / 2) - math.lgamma((d_in + 1) / 2)) / math.sqrt(math.pi)
        return {"random_direction": expected}

    def detail(self) -> dict[str, Any]:
        """Return nothing: the mean is over all pairs."""
        return {}


def make(d_in: int, n_latents: int) -> MeanDecoderCoherence:
    """Make the metric."""
    return MeanDecoderCoherence()
