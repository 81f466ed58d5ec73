"""Steering: a direction is added at a tap, in a window, on the pass with the prompt."""

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.scoring.edits.direction import AddVector
from diffprobe.scoring.intervention_network import InterventionNetwork
from diffprobe.scoring.sampling import PromptSampler, sampling_timesteps
from diffprobe.scoring.steering import Steering, steered_latents
from tests.backbones.plans import plan_for

STEPS = sampling_timesteps(4, 1000)


@pytest.fixture(scope="module")
def network(tiny_sd):
    return InterventionNetwork(plan_for(str(tiny_sd), taps=["mid_block"], timesteps=[500]), device="cpu", rows=2)


def sampler_of(network, **options):
    settings = {"guidance": 1.0, "seed": 7, "edits_unconditional": False, **options}
    return PromptSampler(network, ["red cat", "blue dog", "red dog"], ["a", "b", "c"], STEPS, **settings)


@pytest.fixture(scope="module")
def width(network):
    (found,) = set(network.plan.widths.values())
    return found


def vector_of(n):
    return torch.randn(n, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pool", ["mean", "none", "tokens4"])
def test_the_vector_is_added_at_every_place(pool):
    x, vector = torch.randn(2, 6, 4, 4), vector_of(6)
    moved = Steering(tap="t", pool=pool, edit=AddVector(vector)).change(-3.0)(x)
    torch.testing.assert_close(moved, x - 3 * vector[None, :, None, None])


def test_a_grid_direction_moves_each_part_by_its_own_vector():
    from diffprobe.backbones.pool import grid_pool

    x, vector = torch.randn(2, 6, 4, 4), vector_of(24)
    moved = Steering(tap="t", pool="grid2", edit=AddVector(vector)).change(2.0)(x)
    torch.testing.assert_close(grid_pool(moved, k=2), grid_pool(x, k=2) + 2 * vector)
    torch.testing.assert_close(moved.var((2, 3)) > 0, torch.ones(2, 6, dtype=torch.bool))


def test_strength_0_is_the_untouched_run_and_others_differ(network, width):
    sampler = sampler_of(network)
    steering = Steering(tap="mid_block", pool="mean", edit=AddVector(vector_of(width)))
    untouched = steered_latents(sampler, steering, 0.0)
    assert torch.equal(untouched, sampler.untouched[-1])
    moved = steered_latents(sampler, steering, 2.0)
    assert not torch.allclose(moved, untouched, atol=1e-3)
    halved = Steering(tap="mid_block", pool="mean", edit=AddVector(2 * vector_of(width)))
    torch.testing.assert_close(steered_latents(sampler, halved, 1.0), moved)


def test_images_do_not_depend_on_how_many_run_together(network, width):
    steering = Steering(tap="mid_block", pool="mean", edit=AddVector(vector_of(width)))
    together = steered_latents(sampler_of(network), steering, 1.0)
    alone = PromptSampler(network, ["blue dog"], ["b"], STEPS, 1.0, 7, edits_unconditional=False)
    torch.testing.assert_close(steered_latents(alone, steering, 1.0)[0], together[1], rtol=1e-4, atol=1e-4)


def test_it_acts_in_its_window_alone(network, width):
    sampler = sampler_of(network)
    vector = vector_of(width)
    inside = Steering(tap="mid_block", pool="mean", edit=AddVector(vector), window=(300, 800))
    assert inside.band(STEPS) == (749, 499)
    expected = sampler.sample("mid_block", (749, 499), lambda t: lambda x: x + vector[None, :, None, None])
    torch.testing.assert_close(steered_latents(sampler, inside, 1.0), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"window=\[1,2\]"):
        steered_latents(sampler, Steering(tap="mid_block", pool="mean", edit=AddVector(vector), window=(1, 2)), 1.0)
    with pytest.raises(ConfigError, match=r"window=\[5, 2\]"):
        Steering(tap="mid_block", pool="mean", edit=AddVector(vector), window=(5, 2))


@pytest.mark.slow
def test_with_guidance_it_acts_on_the_pass_with_the_prompt(network, width):
    """The guided prediction is without + 3 (given - without), so a change of `without` alone would count -2 times."""
    steering = Steering(tap="mid_block", pool="mean", edit=AddVector(vector_of(width)))
    seen = []

    def count(t):
        return lambda x: seen.append(t)

    one, both = sampler_of(network, guidance=3.0), sampler_of(network, guidance=3.0, edits_unconditional=True)
    one.sample("mid_block", STEPS[:1], count)
    assert len(seen) == 2  # two chunks of rows, one branch
    assert not torch.allclose(
        steered_latents(one, steering, 2.0), steered_latents(both, steering, 2.0), rtol=1e-3, atol=1e-3
    )


def test_a_maximum_cannot_be_steered():
    with pytest.raises(ConfigError, match="pool=max"):
        Steering(tap="mid_block", pool="max", edit=AddVector(torch.ones(3)))


def test_latents_of_a_dictionary_are_edited_at_every_place(network, width):
    """With pool none, sampling equals that with each place encoded, edited and decoded by itself."""
    from diffprobe.probes.sae import KSAE
    from diffprobe.probes.sae.topk import Config, make
    from diffprobe.scoring.edits.latent import EditLatents, activations

    sae: KSAE = make(Config(k=4, n_latents=64), width, seed=0)
    sae.initialise(torch.zeros(width), torch.ones(width), None)
    sampler, (latent, mean) = sampler_of(network), (3, 2.0)
    edit = EditLatents(dictionary=sae, latents=(latent,), means=(mean,))
    steering = Steering(tap="mid_block", pool="none", edit=edit, window=(300, 800))

    def change(t):
        def plain(x):
            rows = x.permute(0, 2, 3, 1).reshape(-1, width)
            before = activations(sae, rows, [latent])[:, 0].float()
            after = (before + 1.5 * mean).clamp(min=0)
            moved = rows + (after - before)[:, None] * sae.W_dec[latent] / sae.scale
            return moved.reshape(len(x), *x.shape[2:], width).permute(0, 3, 1, 2)

        return plain

    expected = sampler.sample("mid_block", (749, 499), change)
    found = steered_latents(sampler, steering, 1.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, sampler.untouched[-1], atol=1e-4)
    silent = EditLatents(dictionary=sae, latents=(latent,), means=(1e-30,))
    same = Steering(tap="mid_block", pool="none", edit=silent)
    assert torch.equal(steered_latents(sampler, same, 1e-30), sampler.untouched[-1])  # the same code, bit by bit
