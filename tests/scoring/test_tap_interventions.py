"""Ablating and patching a tap, against plain hooks on diffusers' own parts."""

import pytest
import torch

from diffprobe.core.errors import ConfigError, TooFewGroups, UnknownName
from diffprobe.core.rng import noise_for
from diffprobe.scoring.intervention_network import HeldOut, InterventionNetwork
from diffprobe.scoring.tap_interventions import INTERVENTIONS, TapIntervention, donors_of_other_groups
from tests.backbones.plans import plan_for

T = 500
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
TAPS = ("mid_block", f"{BLOCK}.attn1", f"{BLOCK}.attn2")
DONORS = [1, 2, 0]


def held_out(network, seed, keys):
    images = torch.rand(len(keys), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return HeldOut(network.encode_images(images), keys, ["", "red cat", "blue dog"][: len(keys)])


@pytest.fixture(scope="module")
def network(tiny_sd):
    return InterventionNetwork(plan_for(str(tiny_sd), taps=list(TAPS), timesteps=[T], seed=3), device="cpu")


@pytest.fixture(scope="module")
def samples(network):
    return held_out(network, 0, ["a", "b", "c"])


@pytest.fixture(scope="module")
def train(network):
    return held_out(network, 1, ["d", "e"])


def size_of(network, tap):
    return next(info.size for info in network.plan.taps if info.path == tap)


@pytest.fixture(scope="module")
def plain(tiny_sd):
    """diffusers' own pipeline, and the error of one sample in it: no code of ours but the noise."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)

    @torch.no_grad()
    def run(samples, row):
        clean = samples.latents[row : row + 1]
        noise = noise_for(3, samples.keys[row], 0, tuple(clean.shape[1:]))[None]
        states, _ = pipeline.encode_prompt(samples.inputs[row], "cpu", 1, do_classifier_free_guidance=False)
        predicted = pipeline.unet(scheduler.add_noise(clean, noise, torch.tensor([T])), T, states).sample
        return float((predicted - noise).square().mean())

    return pipeline.unet, run


def output_of(plain, tap, samples, row):
    unet, run = plain
    seen = []
    handle = unet.get_submodule(tap).register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    run(samples, row)
    handle.remove()
    return seen[0]


def error_with(plain, tap, samples, row, change):
    unet, run = plain
    handle = unet.get_submodule(tap).register_forward_hook(lambda module, args, output: change(output))
    error = run(samples, row)
    handle.remove()
    return error


@pytest.mark.parametrize("tap", TAPS)
def test_each_intervention_is_a_plain_hook(network, samples, train, plain, tap):
    """mid block, self-attention and cross-attention alike."""
    here = TapIntervention(tap, size_of(network, tap), "mean", tuple(INTERVENTIONS))
    mean = network.means(train, T, {tap: here.splice})[tap]
    found = here.measure(network, samples, T, mean=mean, donors=DONORS)
    outputs = [output_of(plain, tap, train, row) for row in range(2)]
    axes = (0, 2, 3) if outputs[0].ndim == 4 else (0, 1)
    own_mean = torch.stack([output.mean(axes) for output in outputs]).mean(0)
    torch.testing.assert_close(mean, own_mean, rtol=1e-4, atol=1e-5)
    wide = own_mean[None, :, None, None] if outputs[0].ndim == 4 else own_mean
    donors = [output_of(plain, tap, samples, donor) for donor in DONORS]
    places = (2, 3) if outputs[0].ndim == 4 else (1,)
    changes = {
        "mean_ablation": lambda row: lambda x: x - x.mean(places, keepdim=True) + wide,
        "whole_map_ablation": lambda row: lambda x: torch.zeros_like(x) + wide,
        "zero_ablation": lambda row: torch.zeros_like,
        "patching": lambda row: lambda x: donors[row],
    }
    assert set(changes) == set(INTERVENTIONS) == set(found)
    untouched = network.errors(samples, T)
    for name, change in changes.items():
        expected = torch.tensor([error_with(plain, tap, samples, row, change(row)) for row in range(3)]).double()
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)
        assert not torch.equal(found[name], untouched), name


def test_a_tap_without_effect_has_no_rise_and_one_that_carries_the_image_has(network, samples, train):
    """The projection behind a transformer is set to zero: nothing inside it reaches the output any more."""
    projection = network._backbone.denoiser.get_submodule("down_blocks.0.attentions.0.proj_out")
    kept = {name: value.clone() for name, value in projection.state_dict().items()}
    try:
        with torch.no_grad():
            for parameter in projection.parameters():
                parameter.zero_()
        untouched = network.errors(samples, T)
        for tap in (f"{BLOCK}.attn1", f"{BLOCK}.attn2", "mid_block"):
            here = TapIntervention(tap, size_of(network, tap), "mean", tuple(INTERVENTIONS))
            mean = network.means(train, T, {tap: here.splice})[tap]
            for name, errors in here.measure(network, samples, T, mean=mean, donors=DONORS).items():
                assert torch.equal(errors, untouched) == (tap != "mid_block"), (tap, name)
    finally:
        projection.load_state_dict(kept)


def test_without_a_pooled_part_both_means_are_one_intervention(network, samples, train):
    here = TapIntervention("mid_block", size_of(network, "mid_block"), "none", ("mean_ablation", "whole_map_ablation"))
    mean = network.means(train, T, {"mid_block": here.splice})["mid_block"]
    seen = []
    found = here.measure(network, samples, T, mean=mean, donors=[], tick=seen.append)
    assert torch.equal(found["mean_ablation"], found["whole_map_ablation"]) and sum(seen) == 2 * len(samples)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(UnknownName, match=r"'zero'(.|\n)*zero_ablation"):
        TapIntervention("mid_block", (4, 4), "mean", ("zero",))
    with pytest.raises(ConfigError, match=r"mean_ablation with pool=max(.|\n)*interventions=\[patching\]"):
        TapIntervention("mid_block", (4, 4), "max", ("mean_ablation", "patching"))
    with pytest.raises(ConfigError, match="3 x 3"):
        TapIntervention("mid_block", (4, 4), "grid3", ("zero_ablation",))
    assert TapIntervention("mid_block", (4, 4), "max", ("whole_map_ablation",)).splice.pool == "mean"


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_is_a_donor_once_and_never_of_its_own_group(seed):
    groups = ["a"] * 5 + ["b"] * 3 + ["c", "d"]
    donors = donors_of_other_groups(groups, seed=seed)
    assert sorted(donors) == list(range(10))
    assert all(groups[donor] != groups[row] for row, donor in enumerate(donors))
    assert donors == donors_of_other_groups(groups, seed=seed)


def test_donors_differ_with_the_seed_and_need_other_groups():
    assert len({tuple(donors_of_other_groups(list(range(9)), seed=seed)) for seed in range(5)}) > 1
    with pytest.raises(ConfigError, match="group 'cat' has 3 of 5 samples"):
        donors_of_other_groups(["cat", "cat", "cat", "dog", "cow"], seed=0)
    with pytest.raises(TooFewGroups, match="patching: 1 group"):
        donors_of_other_groups(["cat", "cat"], seed=0)
