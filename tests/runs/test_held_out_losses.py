"""Costs of changes against plain arithmetic, with controls apart."""

import pytest

from diffprobe.generative.run_settings import HeldOutLosses
from diffprobe.runs.held_out_losses import held_out_records


def make(groups: str) -> HeldOutLosses:
    return HeldOutLosses(
        whole=[1.0, 2.0, 3.0, 4.0],
        changed={"tokens_mean": [2.0, 3.0, 4.0, 5.0], "alone": [3.0, 3.0, 3.0, 3.0]},
        controls=("alone", "absent"),
        groups=list(groups),
    )


def test_a_cost_is_the_paired_difference_and_a_control_is_on_the_loss() -> None:
    loss, cost = held_out_records(make("abcd"), split="val", seed=0)
    assert (loss.name, loss.value, loss.n, loss.controls) == ("caption_loss", 2.5, 4, {"alone": 3.0})
    assert loss.detail["differences"]["alone"]["cost"] == 0.5
    assert (cost.name, cost.value, cost.split) == ("cost_of_tokens_mean", 1.0, "val")
    assert cost.detail["loss"] == 3.5 and cost.detail["n_groups"] == 4
    assert cost.detail["interval"] == pytest.approx([1.0, 1.0])  # each sample costs the same: what is shared cancels
    low, high = loss.detail["interval"]
    assert low < 2.5 < high


def test_samples_of_one_group_have_no_interval() -> None:
    loss, cost = held_out_records(make("aaaa"), split="val", seed=0)
    assert "interval" not in loss.detail and "interval" not in cost.detail and cost.value == 1.0
