"""Autoencoders recover a planted dictionary, from any seed.

Matryoshka is left out: its small dictionaries reconstruct everything with few latents and so blend directions of equal
importance (0.83, where the others reach 0.9).
"""

import pytest
import torch
import torch.nn.functional as F

from diffprobe.probes.sae import batch_topk, jumprelu, topk

D, TRUE, ACTIVE, BATCH, STEPS = 32, 64, 3, 512, 350


def planted(seed):
    """Directions, and a source of features: unequal frequencies, correlated pairs, a mean five times the spread."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(TRUE, D, generator=generator), dim=1)
    frequency = torch.linspace(0.02, 0.08, TRUE) * ACTIVE / (0.05 * TRUE) / 1.2
    mean = F.normalize(torch.randn(D, generator=generator), dim=0) * 15

    def sample(n):
        on = torch.rand(n, TRUE, generator=generator) < frequency
        partner = on.roll(1, 1) & (torch.arange(TRUE) % 8 == 1)  # every eighth latent often follows its neighbour
        on |= partner & (torch.rand(n, TRUE, generator=generator) < 0.5)
        size = 1 + torch.rand(n, TRUE, generator=generator)
        return (on * size) @ directions + mean + 0.01 * torch.randn(n, D, generator=generator)

    return directions, sample


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", [topk, batch_topk, jumprelu], ids=lambda v: v.__name__.split(".")[-1])
def test_a_planted_dictionary_is_found(variant, seed):
    directions, sample = planted(seed)
    config = variant.Config(k=ACTIVE + 1, n_latents=TRUE, k_aux=16, dead_window=5 * BATCH)
    sae = variant.make(config, D, seed=seed)
    first = sample(4096)
    sae.initialise(first.double().mean(0), first.double().var(0, unbiased=False), first)
    optimizer = torch.optim.Adam(sae.parameters(), lr=6e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 20, (STEPS - i) / 100))
    idle = torch.zeros(TRUE)
    for _ in range(STEPS):
        sae.begin_step()
        out = sae.step(sample(BATCH), dead=idle >= sae.config.dead_window)
        idle += BATCH
        idle[out.code.indices[out.code.values > 0]] = 0
        optimizer.zero_grad()
        out.loss.backward()
        sae.remove_parallel_gradient()
        optimizer.step()
        sae.end_step()
        schedule.step()
    code = sae.encode(sample(4096))
    dead = 1 - code.indices[code.values > 0].unique().numel() / TRUE
    found = (directions @ sae.W_dec.detach().T).max(1).values.mean()
    assert found >= 0.9 and dead < 0.02, f"mean max cosine {found:.3f}, dead {dead:.3f}"
