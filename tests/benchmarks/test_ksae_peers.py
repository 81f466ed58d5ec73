"""The start and the first steps of every library that is installed; where none is, that they are named."""

import pytest
import torch

from diffprobe.benchmarks import ksae_peers
from diffprobe.benchmarks.ksae import planted
from diffprobe.benchmarks.ksae_peers import PEERS, Peer, Unusable, prepare, version
from diffprobe.probes.sae import topk


@pytest.fixture
def start():
    features = planted(192, 32, seed=0)
    sae = topk.make(topk.Config(k=8, n_latents=128, aux_weight=0.0), 32, seed=0)
    sae.initialise(features.mean(0), features.var(0, correction=0))
    return sae, features


def usable(name: str) -> Peer:
    try:
        prepare(name)
    except Unusable as error:
        pytest.skip(f"{name}: {error}")
    return PEERS[name]


@pytest.mark.parametrize("name", PEERS)
def test_each_starts_as_the_same_function_and_learns(name: str, start) -> None:
    peer = usable(name)
    sae, features = start
    scaled = features * sae.scale
    trainee = peer.make(sae, 64)
    with torch.no_grad():
        first = trainee.reconstruct(scaled)
        torch.testing.assert_close(first / sae.scale, sae(features)[0], rtol=1e-4, atol=1e-4)
    for number in range(6):
        trainee.step(scaled[number % 3 * 64 :][:64])
    with torch.no_grad():
        last = trainee.reconstruct(scaled)
    assert (scaled - last).square().sum() < 0.95 * (scaled - first).square().sum()


@pytest.mark.parametrize("name", PEERS)
def test_what_is_absent_is_named_and_not_imported(name: str) -> None:
    if version(name) is None:
        with pytest.raises(Unusable, match="not installed"):
            prepare(name)
    else:
        assert version(name)


def test_a_library_that_cannot_be_imported_is_reported_with_the_reason(monkeypatch, tmp_path) -> None:
    (tmp_path / "broken_peer.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = Peer(distribution="torch", module="broken_peer", make=PEERS["sparsify"].make)
    monkeypatch.setitem(ksae_peers.PEERS, "broken", broken)
    with pytest.raises(Unusable, match="its import fails: RuntimeError: operator does not exist"):
        prepare("broken")
