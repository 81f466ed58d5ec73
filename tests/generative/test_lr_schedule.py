import pytest
import torch

from diffprobe.config.schema import DataConfig, TrainerConfig
from diffprobe.generative.lr_schedule import adamw_with_cosine, total_steps, warmup_cosine


def test_step_size_rises_and_reaches_zero():
    factors = [warmup_cosine(step, 4, 20) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0] and factors[4] == 1.0
    assert factors[12] == pytest.approx(0.5) and factors[20] == pytest.approx(0)
    assert all(later < earlier for earlier, later in zip(factors[4:], factors[5:], strict=False))
    assert warmup_cosine(0, 0, 10) == 1.0 and warmup_cosine(30, 4, 20) == pytest.approx(0)


def test_steps_are_whole_batches_times_epochs():
    data = DataConfig(path="x", batch_size=8)
    assert total_steps(TrainerConfig(max_epochs=3), data, 20) == 6
    assert total_steps(TrainerConfig(max_epochs=3, max_steps=4), data, 20) == 4
    assert total_steps(TrainerConfig(max_epochs=3, max_steps=100), data, 20) == 6  # the epochs end first


def test_groups_keep_their_share_of_the_step_size():
    slow, fast = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
    groups = [{"params": [fast], "lr": 0.4}, {"params": [slow], "lr": 0.04}]
    made = adamw_with_cosine(groups, TrainerConfig(weight_decay=0.3), rate=0.4, beta2=0.98, warmup=2, total=10)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step"
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.02])
    assert all(group["weight_decay"] == 0.3 and group["betas"] == (0.9, 0.98) for group in optimizer.param_groups)
    for _ in range(10):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0, 0])
