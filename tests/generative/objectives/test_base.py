"""The contract of training objectives, over all files of the registry."""

import dataclasses

import pytest
import torch

from diffprobe.config import search_path
from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError, DiffprobeError, UnknownName
from diffprobe.core.registry import OBJECTIVES
from diffprobe.generative.architectures import BetaSchedule
from diffprobe.generative.objectives.base import (
    DeclaredProcess,
    ForwardProcess,
    ObjectiveConfig,
    complete,
    compute_loss,
    declared_process,
    make_objective,
    mean_squared_error,
)

TIMESTEPS = torch.tensor([3, 250, 600, 999])


@pytest.fixture
def process():
    return ForwardProcess(BetaSchedule().scheduler().alphas_cumprod.float())


@pytest.fixture(params=OBJECTIVES.names())
def pair(request, process):
    """An objective and the forward process that it is defined on."""
    config = ObjectiveConfig(name=request.param)
    own = declared_process(config) or process
    return make_objective(config, own), own


@pytest.fixture
def objective(pair):
    return pair[0]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, 2, 3, 3, generator=generator) for _ in range(2))


def test_the_target_is_what_diffusers_reads_as_the_declared_prediction_type(pair, batch):
    """From the noised latents and the target, diffusers' own sampler step recovers the clean latents."""
    clean, noise = batch
    objective, process = pair
    if isinstance(process, DeclaredProcess):
        noised, target = process.add_noise(clean, noise, TIMESTEPS), objective.target(clean, noise, TIMESTEPS)
        for row, t in enumerate(TIMESTEPS.tolist()):
            scheduler = process.scheduler()
            scheduler.set_timesteps(sigmas=[t / scheduler.config.num_train_timesteps])  # one step, to the clean latents
            step = scheduler.step(target[row], scheduler.timesteps[0], noised[row])
            torch.testing.assert_close(step.prev_sample, clean[row], atol=1e-4, rtol=1e-3)
        return
    scheduler = BetaSchedule().scheduler(objective.prediction_type)
    scheduler.set_timesteps(1000)
    noised = process.add_noise(clean, noise, TIMESTEPS)
    target = objective.target(clean, noise, TIMESTEPS)
    for row, t in enumerate(TIMESTEPS.tolist()):
        step = scheduler.step(target[row], t, noised[row])
        torch.testing.assert_close(step.pred_original_sample, clean[row], atol=2e-3, rtol=1e-2)


def test_weights_are_positive_finite_and_proportional_to_the_error(objective):
    weights = objective.weighted(torch.ones(4), TIMESTEPS)
    assert weights.shape == (4,) and bool((weights > 0).all()) and bool(weights.isfinite().all())
    torch.testing.assert_close(objective.weighted(torch.full((4,), 3.0), TIMESTEPS), 3 * weights)


def test_a_perfect_prediction_has_no_loss_and_any_other_has_one_with_a_gradient(objective, batch):
    target = objective.target(*batch, TIMESTEPS)
    assert float(compute_loss(objective, mean_squared_error(target, target), TIMESTEPS)) == 0
    prediction = (target + 1).requires_grad_()
    loss = compute_loss(objective, mean_squared_error(prediction, target), TIMESTEPS)
    loss.backward()
    assert float(loss.detach()) > 0 and bool((prediction.grad != 0).all())


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_settings_are_completed_and_unknown_ones_are_refused(name):
    module = OBJECTIVES.load(name)
    found = complete(ObjectiveConfig(name=name))
    assert set(found.params) == {field.name for field in dataclasses.fields(module.Config)}
    assert complete(found) == found
    with pytest.raises(ConfigError, match="no_such_key"):
        complete(ObjectiveConfig(name=name, params={"no_such_key": 1}))


def test_each_objective_has_a_preset_and_each_preset_composes():
    presets = []
    for choice in search_path.groups()["objective"]:
        flow = declared_process(ObjectiveConfig(name=choice)) is not None
        experiment = "scenes/train_flow" if flow else "emoji/train_denoiser"
        presets.append(load(experiment, [f"objective={choice}"]).objective)
    assert {preset.name for preset in presets} == set(OBJECTIVES.names())
    for preset in presets:
        assert complete(preset) == preset


def test_a_setting_of_an_objective_can_be_set_and_is_checked():
    config = load("emoji/train_denoiser", ["objective.params.min_snr_gamma=2"])
    assert config.objective.params == {"min_snr_gamma": 2.0}
    for setting, fact in (("objective.params.min_snr_gama=2", "min_snr_gamma"), ("objective.name=noise", "noise_")):
        with pytest.raises(DiffprobeError, match=fact):
            load("emoji/train_denoiser", [setting])


def test_an_unknown_objective_names_the_nearest():
    with pytest.raises(UnknownName, match="noise_prediction"):
        complete(ObjectiveConfig(name="noise_predicton"))


def test_the_forward_process_is_that_of_diffusers(process, batch):
    from diffusers import DDPMScheduler

    expected = DDPMScheduler.from_config(BetaSchedule().scheduler().config).add_noise(*batch, TIMESTEPS)
    torch.testing.assert_close(process.add_noise(*batch, TIMESTEPS), expected)
    alphas = BetaSchedule().scheduler().alphas_cumprod[TIMESTEPS]
    torch.testing.assert_close(process.snr(TIMESTEPS), alphas / (1 - alphas), rtol=1e-3, atol=1e-5)
    assert process.n_timesteps == 1000 and not process.state_dict()
