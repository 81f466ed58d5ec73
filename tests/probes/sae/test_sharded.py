"""Latents shared by several processes give the step, the gradients, the code and the file of one."""

import importlib.util
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprobe.probes.sae import topk
from diffprobe.probes.sae.sharded import SHARED_BY, ShardedTopK

_spec = importlib.util.spec_from_file_location("shard_threads", Path(__file__).parents[2] / "shard_threads.py")
threads = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(threads)
D = 6


def features(n=9, dtype=torch.float64):
    return 3 + torch.randn(n, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def prepared(sae, dtype=torch.float64):
    sae = sae.to(dtype)
    x = features(40, dtype)
    sae.initialise(x.mean(0), x.var(0, unbiased=False), x)
    with torch.no_grad():  # biases and pre-bias of zero would hide their gradients
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(sae.n_latents, generator=generator, dtype=torch.float64)
        sae.b_enc.copy_(0.1 * noise[sae.rows.start : sae.rows.stop])
        sae.b_pre.add_(0.1)
    return sae


def stepped(sae, dead, x=None):
    out = sae.step(features() if x is None else x, dead=dead[sae.rows.start : sae.rows.stop])
    out.loss.backward()
    return out, {name: part.grad for name, part in sae.named_parameters()}


def joined(parts, name):
    return torch.cat([part[name] for part in parts]) if name in SHARED_BY else parts[0][name]


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 4),
    n_latents=st.integers(4, 19),
    k=st.integers(1, 4),
    multi=st.sampled_from([0.0, 0.125]),
    dead=st.integers(0, 2**19 - 1),
)
def test_step_and_gradients_are_those_of_one_process(size, n_latents, k, multi, dead):
    config = topk.Config(k=k, n_latents=n_latents, k_aux=5, multi_k_weight=multi)
    mask = torch.tensor([bool(dead >> i & 1) for i in range(n_latents)])
    whole, gradients = stepped(prepared(topk.make(config, D, seed=3)), mask)
    found = threads.in_threads(
        size, lambda shards: stepped(prepared(ShardedTopK(config, D, seed=3, shards=shards)), mask)
    )
    for out, own in found:
        assert out.code.indices.equal(whole.code.indices)
        torch.testing.assert_close(out.code.values, whole.code.values, rtol=1e-12, atol=1e-12)
        for one, other in zip((out.loss, out.reconstruction, out.aux), whole[:3], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert own["b_pre"].equal(found[0][1]["b_pre"])
    for name, gradient in gradients.items():
        torch.testing.assert_close(joined([own for _, own in found], name), gradient, rtol=1e-12, atol=1e-12)
