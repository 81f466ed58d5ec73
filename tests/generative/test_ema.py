"""The corrected average against its closed form."""

from types import SimpleNamespace
from typing import Any

import lightning
import torch

from diffprobe.generative.ema import EMACallback, bias_corrected_update


def test_the_average_lies_where_the_model_will_be_trained() -> None:
    module = lightning.LightningModule()
    module.weight = torch.nn.Parameter(torch.ones(2))
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    averaging = EMACallback(0.9)
    averaging.setup(trainer, module, "fit")  # before Lightning moves the model
    assert {value.device.type for value in averaging._average_model.parameters()} == {"meta"}
    assert module.weight.device.type == "cpu"


def test_average_is_the_normalised_sum_of_decayed_steps() -> None:
    decay, steps = 0.9, torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update, average = bias_corrected_update(decay), steps[0]  # AveragedModel copies the first
    for n, step in enumerate(steps[1:], start=1):
        average = update(average, step, n)
    shares = decay ** torch.arange(len(steps) - 1, -1, -1, dtype=torch.float64)
    assert torch.allclose(average, (shares[:, None] * steps).sum(0) / shares.sum())


def test_constant_weights_stay_what_they_are() -> None:
    update, value = bias_corrected_update(0.9995), torch.ones(3)
    assert torch.equal(update(value, value, torch.tensor(1)), value)
