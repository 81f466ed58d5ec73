import pytest
import torch

from diffprobe.metrics.decoder_coherence import decoder_coherence
from diffprobe.metrics.mean_decoder_coherence import make


def test_mean_and_its_control_for_random_directions():
    rows = torch.nn.functional.normalize(torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    metric = make(d_in=16, n_latents=1000)
    metric.update(rows)
    assert float(metric.compute()) == decoder_coherence(rows).mean
    assert metric.controls()["random_direction"] == pytest.approx(decoder_coherence(rows).mean, rel=0.01)
    assert metric.detail() == {}
