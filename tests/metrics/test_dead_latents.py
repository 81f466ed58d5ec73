import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.metrics.dead_latents import DeadLatents

N, LATENTS, K = 37, 12, 2


def codes(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, K, generator=generator), torch.randint(0, LATENTS, (N, K), generator=generator)


def silent(values, indices, window):
    """The definition, written plainly."""
    recent, on = indices[-window:], values[-window:] > 0
    return [not bool(((recent == latent) & on).any()) for latent in range(LATENTS)]


@given(st.integers(1, N), st.integers(1, 40), st.integers(0, 20))
def test_it_is_the_definition_at_any_batch_size(window, batch, seed):
    values, indices = codes(seed)
    metric = DeadLatents(LATENTS, window)
    for rows in torch.arange(N).split(batch):
        metric.update(values[rows], indices[rows])
    dead = metric.compute()
    assert dead.mask.tolist() == silent(values, indices, window)
    assert float(dead.fraction) == sum(dead.mask.tolist()) / LATENTS and (dead.window, dead.n) == (window, N)


@given(st.integers(1, N), st.integers(2, 5), st.integers(0, 20))
def test_processes_that_share_a_line_count_it_as_one(window, world, seed):
    values, indices = codes(seed)
    parts = []
    for rank in range(world):
        part = DeadLatents(LATENTS, window)
        part.update(values[rank::world], indices[rank::world])
        parts.append(part)
    joint = DeadLatents(LATENTS, window)
    joint.update(values[:0], indices[:0])
    joint.n, joint.last = (torch.stack([getattr(part, name) for part in parts]) for name in ("n", "last"))
    assert joint.compute().mask.tolist() == silent(values, indices, window)


@given(st.integers(1, N), st.integers(1, 7), st.integers(0, 20))
def test_a_line_brought_together_at_each_step_is_known_to_every_process(window, batch, seed):
    values, indices = codes(seed)
    world, metrics = 2, [DeadLatents(LATENTS, window, sync_on_compute=False) for _ in range(2)]
    for rows in torch.arange(N - N % world).split(batch * world):
        shares, sent = [rows[rank::world] for rank in range(world)], []
        for rank in (0, 1, 0, 1):  # first what each would send, then the update with all of it
            told = len(sent) >= world
            metric = metrics[rank] if told else DeadLatents(LATENTS, window)
            gather = (lambda own: torch.cat(sent[:2])) if told else (lambda own: sent.append(own) or own)  # noqa: B023
            metric.update(values[shares[rank]], indices[shares[rank]], gather=gather)
    end = N - N % world
    for metric in metrics:
        assert int(metric.n) == end
        expected = silent(values[:end], indices[:end], window) if window <= end else [False] * LATENTS
        assert metric.mask.tolist() == expected


def test_the_line_travels_in_a_state_dict_if_it_is_asked_to():
    values, indices = codes()
    metric, other = (DeadLatents(LATENTS, 5, sync_on_compute=False) for _ in range(2))
    assert metric.state_dict() == {}
    for one in (metric, other):
        one.persistent(True)
    metric.update(values, indices)
    other.load_state_dict(metric.state_dict())
    assert other.idle.equal(metric.idle) and other.mask.tolist() == silent(values, indices, 5)


def test_forward_gives_the_value_of_the_batch_and_keeps_the_line():
    values, indices = codes()
    metric = DeadLatents(LATENTS, 5)
    assert metric(values[:10], indices[:10]).n == 10
    assert metric(values[10:], indices[10:]).n == N - 10
    assert metric.compute().mask.tolist() == silent(values, indices, 5)


def test_before_the_window_is_full_nothing_is_known():
    values, indices = codes()
    metric = DeadLatents(LATENTS, N + 1)
    assert not metric.is_full
    metric.update(values, indices)
    assert not metric.is_full
    with pytest.raises(EmptyClass, match="37 samples were seen, the window is 38"):
        metric.compute()
    metric.update(values[:1], indices[:1])
    assert metric.is_full and metric.compute().n == N + 1
    with pytest.raises(ConfigError, match="window=0"):
        DeadLatents(3, 0)
