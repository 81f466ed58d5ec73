import pytest
import torch

from diffprobe.backbones.intervention import Splice
from diffprobe.core.errors import BadTimestep, ConfigError, NonFinite
from diffprobe.scoring.intervention_network import (
    HeldOut,
    InterventionNetwork,
    put_features,
    require_replaceable,
)
from tests.backbones.plans import plan_for

T = 500
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


@pytest.fixture(scope="module")
def network(tiny_sd):
    plan = plan_for(str(tiny_sd), taps=["mid_block", "up_blocks.0"], timesteps=[T], seed=3, draws=2)
    return InterventionNetwork(plan, device="cpu", rows=2)


@pytest.fixture(scope="module")
def samples(network):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return HeldOut(network.encode_images(images), ["a", "b", "c"], ["", "red cat", ""])


def test_means_of_several_taps_are_those_that_their_maps_have(network, samples):
    splices = {"mid_block": Splice("mean"), "up_blocks.0": Splice("grid2")}
    seen, ticks = {"mid_block": [], "up_blocks.0": []}, []
    means = network.means(samples, T, splices, ticks.append)
    network.errors(samples, T, {tap: lambda x, tap=tap: seen[tap].append(x.clone()) for tap in splices})
    for tap, splice in splices.items():
        maps = torch.cat(seen[tap])
        assert len(maps) == 3 * 2  # samples and draws
        torch.testing.assert_close(means[tap], splice.read(maps).mean(0))
    assert sum(ticks) == len(samples)


def test_features_with_treated_channels_are_refused(tiny_sd):
    plan = plan_for(str(tiny_sd), taps=["mid_block"], timesteps=[T], massive={"treatment": "drop"})
    with pytest.raises(ConfigError, match="massive"):
        InterventionNetwork(plan, device="cpu")


def test_a_map_that_is_put_back_changes_nothing(network, samples):
    untouched = network.errors(samples, T)
    same = put_features(Splice("mean"), lambda x: x.clone())
    assert torch.equal(network.errors(samples, T, {"mid_block": same}), untouched)
    assert torch.equal(network.patched_errors(samples, [0, 1, 2], T, "mid_block"), untouched)  # each its own donor
    patched = network.patched_errors(samples, [1, 2, 0], T, "mid_block")
    assert patched.dtype == torch.float64 and not torch.isclose(patched, untouched, rtol=1e-9).any()


def test_a_sample_can_be_in_a_pass_several_times_each_with_its_own_change(network, samples):
    untouched = torch.stack([network.errors_of(samples, [0, 1], T, draw) for draw in range(2)], 1)
    torch.testing.assert_close(untouched.mean(1), network.errors(samples, T)[:2], rtol=1e-6, atol=0)

    def second_only(x):
        return torch.cat([x[:1], torch.zeros_like(x[1:])])

    found = network.errors_of(samples, [1, 1], T, 0, {"mid_block": second_only})
    alone = network.errors_of(samples, [1], T, 0, {"mid_block": torch.zeros_like})
    assert float(found[0]) == pytest.approx(float(untouched[1, 0]), rel=1e-6)
    assert float(found[1]) == pytest.approx(float(alone[0]), rel=1e-6) and found[0] != found[1]
    with pytest.raises(NonFinite, match="sample 'c' at t=500"):
        network.errors_of(samples, [2], T, 0, {"mid_block": lambda x: x / 0})
    with pytest.raises(BadTimestep, match="t=1000"):
        network.errors_of(samples, [0], 1000, 0)


def test_all_hooks_are_gone_afterwards(network, samples):
    with pytest.raises(ZeroDivisionError):
        network.errors(samples, T, {"mid_block": lambda x: 1 / 0})
    assert not any(module._forward_hooks for module in network._backbone.denoiser.modules())


def test_timesteps_that_are_not_there_are_refused(network, samples):
    with pytest.raises(BadTimestep, match="t=1000"):
        network.errors(samples, 1000)
    with pytest.raises(BadTimestep, match="t=1000"):
        network.patched_errors(samples, [1, 2, 0], 1000, "mid_block")


def test_taps_that_are_no_maps_of_the_network_are_refused(tiny_sd, network, samples):
    probs = f"{BLOCK}.attn2/probs"
    plan = plan_for(str(tiny_sd), taps=["mid_block", probs], timesteps=[T])
    with pytest.raises(ConfigError, match=rf"1 of 2 taps(.|\n)*{probs}: attention weights(.|\n)*output: {BLOCK}.attn2"):
        require_replaceable(plan)
    require_replaceable(network.plan)


def test_backbones_without_noise_are_refused():
    with pytest.raises(ConfigError, match="'pixels'.* clean images"):
        InterventionNetwork(plan_for("pixels", taps=["pixels"], timesteps=[0]))
