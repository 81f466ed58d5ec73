import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.generative.architectures import BetaSchedule
from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.objectives.noise_prediction import Config, make


def test_weights_are_those_of_min_snr():
    """Hang et al., 2303.09556, equation 6: min(SNR, gamma) / SNR."""
    alphas = BetaSchedule().scheduler().alphas_cumprod.double()
    timesteps = torch.tensor([0, 100, 400, 999])
    snr = alphas[timesteps] / (1 - alphas[timesteps])
    for gamma in (1.0, 5.0):
        objective = make(Config(min_snr_gamma=gamma), ForwardProcess(alphas))
        torch.testing.assert_close(
            objective.weighted(torch.ones(4, dtype=torch.float64), timesteps), snr.clamp(max=gamma) / snr
        )
    flat = make(Config(min_snr_gamma=float("inf")), ForwardProcess(alphas))
    assert flat.weighted(torch.ones(4, dtype=torch.float64), timesteps).tolist() == [1.0] * 4


def test_the_target_is_the_noise():
    noise = torch.randn(2, 1, 2, 2)
    objective = make(Config(), ForwardProcess(torch.tensor([0.9, 0.1])))
    assert torch.equal(objective.target(torch.zeros_like(noise), noise, torch.tensor([0, 1])), noise)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan")])
def test_a_gamma_out_of_range_is_named(gamma):
    with pytest.raises(ConfigError, match=f"min_snr_gamma={gamma}"):
        Config(min_snr_gamma=gamma)
