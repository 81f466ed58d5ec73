"""Dictionaries trained for an equal time; a clock that counts steps stands in for the processor's."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffprobe.benchmarks import timed_dictionaries
from diffprobe.benchmarks.ksae import planted
from diffprobe.benchmarks.timed_dictionaries import (
    OURS,
    PAIRED,
    TargetRows,
    Training,
    TrainingSettings,
    check_conversion,
    optimiser_of,
    train_for,
    train_ours,
    train_peer,
)
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.probes.sae.convert import UnscaledSAE, fold
from diffprobe.probes.sae.topk import TopK

SETTINGS = TrainingSettings(seconds=40.0, k=4, expansion=2, batch=64)
ROWS = planted(300, 12, seed=0)


@pytest.fixture(autouse=True)
def a_second_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each step take a second."""
    own, ticks = train_for, iter(range(10**6))
    clock: Callable[[], float] = lambda: float(next(ticks))  # noqa: E731
    monkeypatch.setattr(timed_dictionaries, "train_for", lambda *args, **given: own(*args, **given, clock=clock))


def fvu(sae: torch.nn.Module) -> float:
    with torch.no_grad():
        return float((ROWS - sae(ROWS)[0]).square().sum() / (ROWS - ROWS.mean(0)).square().sum())


@pytest.mark.slow
@pytest.mark.parametrize("variant", OURS)
def test_every_variant_learns_in_its_time(variant: str) -> None:
    target = TargetRows("mid_block", ROWS) if variant == PAIRED else None
    seconds = 200.0 if variant == PAIRED else 40.0  # its decoder starts apart from its encoder
    settings = replace(SETTINGS, seconds=seconds)
    found, again, other = (train_ours(variant, ROWS, settings, seed=seed, target=target) for seed in (0, 0, 1))
    assert found.steps == found.seconds == seconds and not found.sae.training
    assert fvu(found.sae) < 0.9 and torch.equal(found.sae.W_dec, again.sae.W_dec)
    assert not torch.equal(found.sae.W_dec, other.sae.W_dec)


@pytest.mark.slow
@pytest.mark.parametrize("width", [12, 5])
def test_a_transcoder_learns_the_rows_of_its_target_and_no_others(width: int) -> None:
    y = ROWS @ torch.randn(12, width, generator=torch.Generator().manual_seed(1)) * 3 + 2
    moved = y.roll(1, 0)  # as a target that is drawn apart from the input
    longer = replace(SETTINGS, seconds=300.0)

    def left(target: Tensor) -> float:
        sae = train_ours("transcoder", ROWS, longer, seed=0, target=TargetRows("mid_block", target)).sae
        with torch.no_grad():
            return float((target - sae(ROWS)[0]).square().sum() / (target - target.mean(0)).square().sum())

    assert left(y) < 0.2 and left(moved) > 0.7


def test_a_transcoder_needs_a_target_of_as_many_rows_and_the_others_none() -> None:
    with pytest.raises(ConfigError, match="no target was given"):
        train_ours("transcoder", ROWS, SETTINGS, seed=0)
    with pytest.raises(ConfigError, match="'mid_block' was given"):
        train_ours("topk", ROWS, SETTINGS, seed=0, target=TargetRows("mid_block", ROWS))
    with pytest.raises(ConfigError, match="299 rows"):
        train_ours("transcoder", ROWS, SETTINGS, seed=0, target=TargetRows("mid_block", ROWS[1:]))


def test_ours_trains_with_the_adam_of_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    made, adam = [], torch.optim.Adam

    def noting(*args: object, **given: object) -> torch.optim.Optimizer:
        made.append(adam(*args, **given))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(torch.optim, "Adam", noting)
    config = train_ours("topk", ROWS, SETTINGS, seed=0).sae.config
    assert [(one.defaults["betas"], one.defaults["eps"]) for one in made] == [
        ((0.9, config.adam_beta2), config.adam_eps)
    ]
    assert config.adam_beta2 == 0.95  # torch's own default would pass unnoticed if it were ours
    assert optimiser_of("topk") == f"Adam, betas 0.9 and 0.95, epsilon {config.adam_eps:g}"
    assert optimiser_of("transcoder") == optimiser_of("topk") != optimiser_of("revelio_released")


def test_batches_and_step_sizes_are_those_of_the_time() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    optimiser, seen = torch.optim.SGD([weight], lr=1.0), []

    def step(x: Tensor) -> None:
        seen.append((x, optimiser.param_groups[0]["lr"]))

    ticks = iter(range(10**6))
    steps, seconds = train_for(step, optimiser, ROWS, SETTINGS, seed=3, clock=lambda: float(next(ticks)))
    assert (steps, seconds) == (40, 40.0)
    first = torch.cat([x for x, _ in seen[:4]])  # 256 of 300 rows, each once
    assert len(torch.unique(first, dim=0)) == 256
    rates = [rate / SETTINGS.learning_rate for _, rate in seen]
    assert rates[0] < 0.02 and rates[20] == 1.0 and rates[-1] < 0.2 and rates == sorted(rates[:20]) + rates[20:]


def toy(sae: TopK, batch: int, seed: int) -> Training:
    """Another library that trains our own class, on features with our scale."""
    other = TopK(sae.config, sae.d_in, seed=seed)
    other.load_state_dict({**sae.state_dict(), "scale": torch.ones(())})
    optimiser = torch.optim.Adam(other.parameters())

    def step(x: Tensor) -> None:
        optimiser.zero_grad()
        (x - other(x)[0]).square().mean().backward()
        optimiser.step()

    def weights() -> UnscaledSAE:
        return fold(other)._replace(k=sae.k)

    return Training(step, optimiser, weights, lambda x: other(x)[0])


def test_the_dictionary_of_another_library_is_converted_to_the_unit_of_the_features() -> None:
    found = train_peer(toy, ROWS * 7 + 3, SETTINGS, seed=0)
    with torch.no_grad():
        x = ROWS * 7 + 3
        share = float((x - found.sae(x)[0]).square().sum() / (x - x.mean(0)).square().sum())
    assert found.steps == 40 and share < 0.9


def test_a_conversion_that_changes_the_function_is_refused() -> None:
    sae = train_ours("topk", ROWS, SETTINGS, seed=0).sae
    check_conversion(sae, lambda x: sae(x)[0], ROWS)
    with pytest.raises(RunFailed, match="differ"):
        check_conversion(sae, lambda x: sae(x)[0] * 1.1, ROWS)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="positive"):
        TrainingSettings(seconds=0)
    with pytest.raises(ConfigError, match="300 rows"):
        train_ours("topk", ROWS, TrainingSettings(batch=512, k=4), seed=0)
