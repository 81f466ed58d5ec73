"""The corrected average against its closed form."""

import torch

from diffprobe.training.averaging import bias_corrected


def test_average_is_the_normalised_sum_of_decayed_steps() -> None:
    decay, steps = 0.9, torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update, average = bias_corrected(decay), steps[0]  # AveragedModel copies the first
    for n, step in enumerate(steps[1:], start=1):
        average = update(average, step, n)
    shares = decay ** torch.arange(len(steps) - 1, -1, -1, dtype=torch.float64)
    assert torch.allclose(average, (shares[:, None] * steps).sum(0) / shares.sum())


def test_constant_weights_stay_what_they_are() -> None:
    update, value = bias_corrected(0.9995), torch.ones(3)
    assert torch.equal(update(value, value, torch.tensor(1)), value)
