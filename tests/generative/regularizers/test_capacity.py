"""Capacity manipulation: the term by hand, and a planted case in which the rare class moves to the reserved weights."""

import pytest
import torch
from torch import nn

from diffprobe.core.errors import ConfigError
from diffprobe.generative.low_rank_reserve import without
from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.regularizers.base import ClassBatch, Regularizer, ReverseKernels, TrainingClasses
from diffprobe.generative.regularizers.capacity import CapacityManipulation, Config, make

PAIR = TrainingClasses(attribute="role", names=("cook", "judge"), counts=(90, 9))


def term(config: Config) -> CapacityManipulation:
    process = ForwardProcess(torch.linspace(0.95, 0.05, 10))
    return make(config, process, ReverseKernels(process, "epsilon"), PAIR)


def test_the_term_by_hand() -> None:
    """Frequent: the distance counts. Rare, a tenth as many: .1 of it, and .9 of what is left to the margin."""
    found = term(Config(weight=0.5, margin=0.1))
    found.change_network(nn.Linear(1, 1), seed=0)
    own = torch.zeros(4, 1, 1, 1)
    general = torch.tensor([0.2, 0.0, 0.2, 1.0]).view(4, 1, 1, 1)  # squared: .04, 0, .04, 1
    batch = ClassBatch(own, torch.tensor([1, 2, 3, 4]), torch.tensor([0, 1, 1, 1]), own)
    by_hand = 0.5 * (0.04 + 0.9 * 0.1 + (0.1 * 0.04 + 0.9 * 0.06) + 0.1 * 1.0) / 4
    assert float(found.contrast(batch, lambda *_: general, torch.Generator())) == pytest.approx(by_hand, rel=1e-5)


def test_without_reserved_weights_it_is_refused() -> None:
    own = torch.zeros(1, 1, 1, 1)
    batch = ClassBatch(own, torch.tensor([1]), torch.tensor([0]), own)
    with pytest.raises(ConfigError, match="no network with reserved weights"):
        term(Config()).contrast(batch, lambda *_: own, torch.Generator())


class Denoiser(nn.Module):
    """Predicts the noise of a vector from it, its timestep and its class."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6 + 2 + 1, 48), nn.SiLU(), nn.Linear(48, 6))

    def forward(self, noised: torch.Tensor, timesteps: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        conditions = nn.functional.one_hot(classes, 2).float()
        rows = torch.cat([noised.flatten(1), conditions, timesteps[:, None].float() / 10], dim=1)
        found: torch.Tensor = self.layers(rows).view_as(noised)
        return found


def errors_of_parts(weight: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the errors of both classes, shape (class,), with all weights and with the general ones after a training.

    Each class has one image; the rare one is a tenth of the other. None trains without the term.
    """
    torch.manual_seed(0)
    process, network = ForwardProcess(torch.linspace(0.95, 0.05, 10)), Denoiser()
    capacity = term(Config(weight=weight or 1.0, margin=2.0, rank=4))
    capacity.change_network(network, seed=0)
    regularizer: Regularizer = Regularizer() if weight is None else capacity
    images = torch.randn(2, 6, 1, 1)
    generator = torch.Generator().manual_seed(0)

    def draw(classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        timesteps = torch.randint(10, (len(classes),), generator=generator)
        noise = torch.randn(len(classes), 6, 1, 1, generator=generator)
        return process.add_noise(images[classes], noise, timesteps), timesteps, noise

    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(500):
        classes = (torch.rand(128, generator=generator) < 9 / 99).long()
        noised, timesteps, noise = draw(classes)
        prediction = network(noised, timesteps, classes)
        batch = ClassBatch(noised, timesteps, classes, prediction)
        loss = (prediction - noise).square().mean() + regularizer.term(batch, network, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    classes = torch.arange(2).repeat_interleave(1000)
    noised, timesteps, noise = draw(classes)
    with torch.no_grad():
        own = (network(noised, timesteps, classes) - noise).square().flatten(1).mean(1)
        with without(network):
            general = (network(noised, timesteps, classes) - noise).square().flatten(1).mean(1)
    return own.view(2, 1000).mean(1), general.view(2, 1000).mean(1)


@pytest.mark.slow
def test_what_is_known_of_the_rare_class_moves_to_the_reserved_weights() -> None:
    own, general = errors_of_parts(0.3)
    plain, plain_general = errors_of_parts(None)
    assert float(own.max()) < 0.05 and float(plain.max()) < 0.05  # both classes are learned, with the term or without
    assert float(general[0]) < 2 * float(own[0])  # the frequent class does without the reserved weights
    assert float(general[1]) > 30 * float(own[1])  # the rare one does not
    assert float(plain_general[0]) > float(plain_general[1]) > 5 * float(plain[1])  # without the term both need them
