import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae import topk
from diffprobe.probes.sae.types import RATE, RATE_LATENTS, SINGLE_PROCESS, Collective, Config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("k", 0, "k = 0 of probe 'topk' .* 1"),
        ("n_latents", 0, "n_latents = 0"),
        ("warmup_steps", 0, "warmup_steps = 0"),
        ("aux_weight", -1.0, "aux_weight = -1.0"),
        ("datapoint_blend", 1.5, r"datapoint_blend = 1.5 .* 0\.\.1"),
        ("learning_rate", 0.0, "learning_rate = 0.0"),
        ("adam_beta2", 1.0, "adam_beta2 = 1.0"),
        ("multi_k_weight", -0.1, "multi_k_weight = -0.1"),
    ],
)
def test_settings_out_of_range(key, value, message):
    with pytest.raises(ConfigError, match=message):
        topk.Config(**{key: value})


def test_one_process_agrees_with_itself():
    assert (
        SINGLE_PROCESS.size == 1
        and SINGLE_PROCESS.mean(torch.tensor(3.0)) == 3
        and SINGLE_PROCESS.gather(torch.ones(2)).numel() == 2
    )


def test_several_processes_know_their_rank(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert Collective(size=2).rank == 1 and SINGLE_PROCESS.rank == 0  # what all do alike is done alone


def test_without_a_rate_it_falls_with_the_square_root_of_the_latents() -> None:
    rule = Config()
    assert rule.rate(64) == rule.rate(RATE_LATENTS) == RATE
    assert rule.rate(16 * RATE_LATENTS) == pytest.approx(RATE / 4)
    assert Config(learning_rate=0.02).rate(16 * RATE_LATENTS) == 0.02
