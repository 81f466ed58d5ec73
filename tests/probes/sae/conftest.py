"""Features with a large common mean, initialised autoencoders of every variant, and two simulated processes."""

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from threading import Barrier, local

import pytest
import torch

from diffprobe.probes.sae.types import Collective

VARIANTS = ("topk", "batch_topk", "matryoshka", "jumprelu", "revelio_released")


def features(n=200, d=12, seed=0):
    return 3 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 20


def fresh(variant="topk", d=12, x=None, seed=0, start=True, **settings):
    module = import_module(f"diffprobe.probes.sae.{variant}")
    x = features(d=d) if x is None else x
    base = {"k": 4, "n_latents": 48} | ({} if variant == "revelio_released" else {"k_aux": 6})  # which has no AuxK
    sae = module.make(module.Config(**(base | settings)), d, seed=seed)
    if start:
        sae.initialise(x.double().mean(0), x.double().var(0, unbiased=False), x)
    return sae


@pytest.fixture
def x():
    return features()


@pytest.fixture
def make_sae():
    return fresh


@pytest.fixture
def share_out(monkeypatch):
    """Call a function of (rows, collective) on the even and on the odd rows, as two processes; return both results."""
    own, meeting, sent = local(), Barrier(2, timeout=60), [None, None]
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: own.rank)

    def exchange(values):
        sent[own.rank] = values
        meeting.wait()
        found = list(sent)
        meeting.wait()
        return found

    collective = Collective(lambda t: sum(exchange(t)) / 2, lambda t: torch.cat(exchange(t)), size=2)

    def call(function, x):
        def work(rank):
            own.rank = rank
            return function(x[rank::2], collective)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(work, range(2)))

    return call


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param
