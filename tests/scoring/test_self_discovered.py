"""The self-discovered vector: the only thing that learns, reproducible, and better than none on held-out samples."""

import pytest
import torch

from diffprobe.backbones.intervention import Splice
from diffprobe.core.errors import BadTimestep, ConfigError
from diffprobe.scoring.intervention_network import HeldOut, InterventionNetwork, put_features
from diffprobe.scoring.self_discovered import VectorSearch, self_discovered_vector
from tests.backbones.plans import plan_for

LAST = "up_blocks.1"  # near the output, so that random weights leave it an effect
SEARCH = VectorSearch(steps=40, batch_size=4, learning_rate=0.1, window=(100, 900))


@pytest.fixture(scope="module")
def network(tiny_sd):
    return InterventionNetwork(plan_for(str(tiny_sd), taps=["mid_block"], timesteps=[500]), device="cpu", rows=8)


def samples(network, n=8, *, seed=0, prompt="a dog"):
    latents = torch.randn(n, *network.plan.spec.latent_shape, generator=torch.Generator().manual_seed(seed)) + 1.0
    return HeldOut(latents, [f"{seed}-{i}" for i in range(n)], [prompt] * n)


def digest(network):
    return torch.cat([p.detach().flatten() for p in network._backbone.denoiser.parameters()]).double().sum()


@pytest.mark.slow
def test_the_vector_lowers_the_error_of_held_out_samples_and_nothing_else_learns(network):
    before = digest(network)
    found = self_discovered_vector(network, samples(network), samples(network, seed=1), SEARCH, tap=LAST)
    assert found.error_with < found.error_without and len(found.errors) == SEARCH.steps
    assert torch.isfinite(found.vector).all() and found.vector.norm() > 0
    assert digest(network) == before
    assert all(p.grad is None and not p.requires_grad for p in network._backbone.denoiser.parameters())


@pytest.mark.slow
def test_the_error_without_is_that_of_the_untouched_network(network):
    held = samples(network, seed=1)
    found = self_discovered_vector(network, samples(network), held, SEARCH, tap="mid_block")
    change = put_features(Splice("mean"), lambda before: before + found.vector)
    of_window = [round(100 + i * 800 / 7) for i in range(8)]
    for expected, changes in ((found.error_without, {}), (found.error_with, {"mid_block": change})):
        plain = sum(float(network.errors(held, t, changes).mean()) for t in of_window) / 8
        assert expected == pytest.approx(plain, rel=1e-5)


def test_its_gradient_is_that_of_finite_differences(network):
    held, width = samples(network, 3), next(iter(network.plan.widths.values()))
    vector = torch.zeros(width, requires_grad=True)
    loss = network.loss(held, [0, 1, 2], 500, 0, {"mid_block": put_features(Splice("mean"), lambda b: b + vector)})
    loss.backward()
    step = 0.5 * vector.grad / vector.grad.norm()

    def error_at(place: torch.Tensor) -> float:
        moved = put_features(Splice("mean"), lambda before: before + place)
        return float(network.loss(held, [0, 1, 2], 500, 0, {"mid_block": moved}))

    up, down = error_at(step), error_at(-step)
    assert up - down == pytest.approx(2 * float(step @ vector.grad), rel=0.05)


@pytest.mark.slow
def test_one_seed_gives_one_vector_and_a_grid_has_a_vector_per_part(network):
    width = next(iter(network.plan.widths.values()))
    one, again, other = (
        self_discovered_vector(
            network, samples(network), samples(network, seed=1), VectorSearch(steps=4, seed=seed), tap="mid_block"
        ).vector
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    grid = self_discovered_vector(
        network, samples(network), samples(network, seed=1), VectorSearch(steps=2), tap="mid_block", pool="grid2"
    )
    assert len(grid.vector) == 4 * width and len(one) == width


def test_what_cannot_be_searched_is_refused(network):
    both = (samples(network), samples(network, seed=1))
    with pytest.raises(ConfigError, match="none"):
        self_discovered_vector(network, *both, VectorSearch(steps=1), tap="mid_block", pool="none")
    with pytest.raises(BadTimestep, match="2000"):
        self_discovered_vector(network, *both, VectorSearch(steps=1, window=(0, 2000)), tap="mid_block")
    with pytest.raises(ConfigError, match="0 samples"):
        self_discovered_vector(network, samples(network, 0), both[1], VectorSearch(steps=1), tap="mid_block")
    with pytest.raises(ConfigError, match="window"):
        VectorSearch(window=(500, 100))
    with pytest.raises(ConfigError, match="steps=0"):
        VectorSearch(steps=0)
