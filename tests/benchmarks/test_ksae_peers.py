"""The start and the first steps of every library that is installed; where none is, that they are named."""

import pytest
import torch

from diffprobe.benchmarks import ksae_peers
from diffprobe.benchmarks.ksae import planted
from diffprobe.benchmarks.ksae_peers import (
    PEERS,
    Peer,
    Plan,
    Unusable,
    as_ours,
    prepare,
    row_order,
    run_steps,
    train_peer,
    version,
)
from diffprobe.core.errors import ConfigError, UnknownName
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
    trainee = peer.make(sae, Plan(batch=64))
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


@pytest.mark.parametrize("name", PEERS)
def test_the_converted_autoencoder_is_the_same_function(name: str, start) -> None:
    peer = usable(name)
    sae, features = start
    scaled, plan = features * sae.scale, Plan(batch=32, steps=10, learning_rate=3e-3, warmup=0.1, decay=0.3, aux=True)
    trainee = peer.make(sae, plan)
    run_steps(trainee, scaled, plan, seed=0)
    converted = as_ours(trainee, sae.scale)
    with torch.no_grad():
        torch.testing.assert_close(
            converted(features)[0] * sae.scale, trainee.reconstruct(scaled), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", PEERS)
def test_a_rate_that_has_fallen_to_zero_changes_little(name: str, start) -> None:
    """The schedule reaches each library: the last steps of a falling rate are smaller than the first."""
    peer = usable(name)
    sae, features = start
    scaled, plan = features * sae.scale, Plan(batch=64, steps=20, warmup=0.1, decay=0.9)
    trainee, moved = peer.make(sae, plan), []
    for number in range(20):
        before = trainee.weights().W_enc
        trainee.step(scaled[number % 3 * 64 :][:64])
        moved.append(float((trainee.weights().W_enc - before).norm()))
    assert moved[-1] < 0.2 * max(moved[:5])


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_trains_on_rows_and_comes_back_in_our_format(name: str) -> None:
    usable(name)
    rows = planted(256, 16, seed=0)
    plan = Plan(batch=32, steps=40, learning_rate=3e-3)
    sae = train_peer(name, rows, k=4, n_latents=64, plan=plan)
    residual = (rows - sae(rows)[0]).square().sum() / (rows - rows.mean(0)).square().sum()
    short = train_peer(name, rows, k=4, n_latents=64, plan=Plan(batch=32), seconds=1e-4)
    assert residual < 0.7 and (short.k, short.n_latents) == (4, 64)


def test_a_training_by_steps_and_seconds_or_neither_is_refused() -> None:
    rows = torch.randn(8, 4)
    for plan, seconds in ((Plan(batch=4), None), (Plan(batch=4, steps=2), 1.0), (Plan(batch=4), -1.0)):
        with pytest.raises(ConfigError, match="one of both is needed"):
            train_peer("sparsify", rows, k=2, n_latents=8, plan=plan, seconds=seconds)
    with pytest.raises(UnknownName, match="sparsify"):
        train_peer("sparsity", rows, k=2, n_latents=8, plan=Plan(batch=4, steps=1))


def test_the_factor_rises_stays_and_falls() -> None:
    plan = Plan(batch=1, steps=10, warmup=0.2, decay=0.4)
    assert [round(plan.factor(step), 2) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert {Plan(batch=1).factor(step) for step in (0, 5, 10**6)} == {1.0}
    for wrong in ({"steps": 0}, {"learning_rate": 0.0}, {"warmup": 0.6, "decay": 0.6}, {"decay": -0.1}):
        with pytest.raises(ConfigError, match="invalid plan"):
            Plan(**{"batch": 1, **wrong})


def test_the_order_of_rows_is_a_permutation_in_each_epoch() -> None:
    order = row_order(10, 3, seed=1)
    epochs = [torch.cat([next(order) for _ in range(3)]) for _ in range(2)]
    assert all(len(epoch.unique()) == 9 for epoch in epochs) and not torch.equal(*epochs)
    again = row_order(10, 3, seed=1)
    assert torch.equal(torch.cat([next(again) for _ in range(3)]), epochs[0])
    with pytest.raises(ConfigError, match="less than a batch"):
        next(row_order(2, 3, seed=0))
