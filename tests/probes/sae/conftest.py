"""Features with a large common mean, and an autoencoder of any variant that has seen them."""

from importlib import import_module

import pytest
import torch

VARIANTS = ("topk", "batch_topk", "matryoshka", "jumprelu", "revelio_released")


def features(n=200, d=12, seed=0):
    return 3 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 20


def fresh(variant="topk", d=12, x=None, seed=0, start=True, **settings):
    module = import_module(f"diffprobe.probes.sae.{variant}")
    x = features(d=d) if x is None else x
    sae = module.make(module.Config(**({"k": 4, "n_latents": 48, "k_aux": 6} | settings)), d, seed=seed)
    if start:
        sae.initialise(x.double().mean(0), x.double().var(0, unbiased=False), x)
    return sae


@pytest.fixture
def x():
    return features()


@pytest.fixture
def make_sae():
    return fresh


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param
