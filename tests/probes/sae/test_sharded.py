"""Latents shared by several processes give the step, the gradients, the code and the file of one."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae import KSAE, batch_topk, topk
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
    step=st.sampled_from(["sparse", "dense"]),
)
def test_step_and_gradients_are_those_of_one_process(size, n_latents, k, multi, dead, step):
    config = topk.Config(k=k, n_latents=n_latents, k_aux=5, multi_k_weight=multi, step=step)
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


def test_code_and_reconstruction_are_those_of_one_process_and_equal_on_all():
    config, x = topk.Config(k=4, n_latents=10), features()
    x_hat, code = prepared(topk.make(config, D, seed=3))(x)
    found = threads.in_threads(3, lambda shards: prepared(ShardedTopK(config, D, seed=3, shards=shards))(x))
    for own_hat, own in found:
        assert own.indices.equal(code.indices) and own.values.equal(found[0][1].values)
        torch.testing.assert_close(own_hat, x_hat, rtol=1e-12, atol=1e-12)


def test_every_process_sends_its_largest_latents_and_the_sum_of_its_rows_only():
    config, k, x = topk.Config(k=2, n_latents=400, aux_weight=0.0), 2, features()

    def sent(shards):
        sae = prepared(ShardedTopK(config, D, seed=3, shards=shards))
        shards.sent = 0
        stepped(sae, torch.zeros(400, dtype=torch.bool))
        return shards.sent

    assert threads.in_threads(2, sent) == 2 * [2 * k * len(x) + len(x) * D + D]


def test_half_precision_selects_alike_on_all_processes():
    config, x = topk.Config(k=4, n_latents=64), features(dtype=torch.float32)

    def step(shards):
        sae = prepared(ShardedTopK(config, D, seed=3, shards=shards), torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            return stepped(sae, torch.zeros(64, dtype=torch.bool), x)[0]

    one, two = threads.in_threads(2, step)
    assert one.code.indices.equal(two.code.indices) and one.loss.equal(two.loss) and one.loss.dtype == torch.float32


def test_samples_blended_into_the_dictionary_are_those_of_one_process():
    config = topk.Config(k=2, n_latents=50, datapoint_blend=0.8, pre_bias="geometric_median")
    whole = prepared(topk.make(config, D, seed=1))
    parts = threads.in_threads(3, lambda shards: prepared(ShardedTopK(config, D, seed=1, shards=shards)))
    states = [part.state_dict() for part in parts]
    for name, value in whole.state_dict().items():
        assert joined(states, name).equal(value), name


def test_the_saved_autoencoder_is_that_of_one_process_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("diffprobe.probes.sae.sharded.SENT_BYTES", 3 * D * 4)  # several parts, the last one short
    config = topk.Config(k=2, n_latents=17)
    prepared(topk.make(config, D, seed=1), torch.float32).save_pretrained(tmp_path / "whole", cell="mid_block@t10")

    def save(shards):
        sae = prepared(ShardedTopK(config, D, seed=1, shards=shards), torch.float32)
        return sae.save_pretrained(tmp_path / "shards", cell="mid_block@t10")

    threads.in_threads(3, save)
    one, other = (tmp_path / name / "probe.safetensors" for name in ("whole", "shards"))
    assert one.read_bytes() == other.read_bytes()
    found = [json.loads((tmp_path / name / "probe.json").read_text())["settings"] for name in ("whole", "shards")]
    assert found[0] == found[1]
    assert KSAE.from_pretrained(tmp_path / "shards").n_latents == 17


def test_another_variant_and_too_few_latents_are_refused():
    with pytest.raises(ConfigError, match=r"'batch_topk'(.|\n)*probe=topk, probe=revelio(.|\n)*trainer.strategy=ddp"):
        ShardedTopK(batch_topk.Config(), D, shards=threads.ThreadShards(0, threads.Meeting(2)))
    with pytest.raises(ConfigError, match=r"2 latents .* 3 processes"):
        ShardedTopK(topk.Config(k=1, n_latents=2), D, shards=threads.ThreadShards(0, threads.Meeting(3)))
