import torch

from diffprobe.generative.architectures import BetaSchedule
from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.objectives.velocity_prediction import Config, make


def test_the_target_is_the_velocity_of_diffusers():
    """Salimans and Ho, 2202.00512, appendix D, as diffusers' scheduler computes it."""
    scheduler = BetaSchedule(beta_schedule="squaredcos_cap_v2").scheduler("v_prediction")
    clean, noise = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 10, 500, 999])
    objective = make(Config(), ForwardProcess(scheduler.alphas_cumprod))
    reference = scheduler.get_velocity(clean, noise, timesteps)
    torch.testing.assert_close(objective.target(clean, noise, timesteps), reference)
    assert objective.prediction_type == scheduler.config.prediction_type


def test_clean_latents_follow_from_a_perfect_prediction():
    process = ForwardProcess(torch.tensor([0.9, 0.5, 0.01]))
    clean, noise = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    timesteps = torch.arange(3)
    velocity = make(Config(), process).target(clean, noise, timesteps)
    signal, sigma = process.signal[:, None, None, None], process.sigma[:, None, None, None]
    torch.testing.assert_close(signal * process.add_noise(clean, noise, timesteps) - sigma * velocity, clean)


def test_all_timesteps_have_the_same_weight():
    errors = torch.rand(5, generator=torch.Generator().manual_seed(2))
    objective = make(Config(), ForwardProcess(torch.linspace(0.99, 0.01, 5)))
    assert torch.equal(objective.weighted(errors, torch.arange(5)), errors)
