"""Training of the LoRA: it lowers the loss, changes nothing else, and knows the right candidate by its text alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffprobe.backbones.lora_adapters import LoraAdapters
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.score.few_shot_match import (
    FewShotImages,
    FewShotRule,
    margin_loss,
    optimiser_of,
    train_few_shot,
)
from diffprobe.scoring.attention_match import AttentionMatch, AttentionMatchRule
from diffprobe.scoring.denoising_error import DenoisingError
from tests.backbones.test_lora_adapters import digest

RULE = FewShotRule(images=2, steps=40, rank=2, warmup=4, learning_rate=5e-3, margin=0.05)
CAPTIONS = ["a red circle", "a blue square", "a green dog"]


@pytest.fixture
def score(tiny_sd: Path) -> AttentionMatch:
    plain = DenoisingError.from_pretrained(str(tiny_sd), device="cpu")
    return AttentionMatch.of(plain, AttentionMatchRule(error="norm"))


def images(score: DenoisingError, order: tuple[int, ...] = (0, 1, 2)) -> FewShotImages:
    latents = score.encode_images(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    table = torch.tensor([list(order), list(order)])
    offered = torch.ones(2, 3, dtype=torch.bool)
    right = torch.tensor([order.index(2), order.index(1)])
    return FewShotImages(latents, ["a", "b"], score.encode_conditions(CAPTIONS), table, offered, right)


def test_the_loss_by_hand() -> None:
    scores = torch.tensor([0.5, 0.3, 0.9], requires_grad=True)
    assert float(margin_loss(scores.detach(), 0, 0.1)) == pytest.approx(0.3)
    assert float(margin_loss(scores.detach(), 2, 0.1)) == pytest.approx(0.7)
    satisfied = margin_loss(scores, 1, 0.1)
    assert float(satisfied.detach()) == 0
    (gradient,) = torch.autograd.grad(satisfied, scores)
    assert gradient.abs().max() == 0  # nothing is learned where the margin holds


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_the_frozen_weights(score: AttentionMatch) -> None:
    network = score.backbone.denoiser
    before = digest(network)
    lora = LoraAdapters(network, rank=RULE.rank)
    factors = [factor.detach().clone() for factor in lora.parameters()]
    losses = train_few_shot(score, lora, [images(score)], RULE, seed=1)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert digest(network) == before and all(parameter.grad is None for parameter in network.parameters())
    changed = [not torch.equal(old, new) for old, new in zip(factors, lora.parameters(), strict=True)]
    assert all(changed[len(changed) // 2 :])


def test_the_optimiser_has_no_state_of_frozen_weights(score: AttentionMatch) -> None:
    lora = LoraAdapters(score.backbone.denoiser, rank=2)
    optimiser = optimiser_of(lora, RULE)
    held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in lora.parameters()}
    assert not held & {id(parameter) for parameter in score.backbone.denoiser.parameters()}


@pytest.mark.slow
def test_the_order_of_candidates_has_no_effect(score: AttentionMatch) -> None:
    """The right candidate of the released code is always the first one."""
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        lora = LoraAdapters(score.backbone.denoiser, rank=2)
        found.append(train_few_shot(score, lora, [images(score, order)], replace(RULE, steps=6), seed=1))
        lora.remove()
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_places_that_are_not_offered_are_not_read(score: AttentionMatch) -> None:
    task = images(score)
    wider = replace(
        task,
        candidates=torch.cat([task.candidates, torch.zeros(2, 2, dtype=torch.long)], 1),
        offered=torch.cat([task.offered, torch.zeros(2, 2, dtype=torch.bool)], 1),
    )
    found = []
    for given in (task, wider):
        lora = LoraAdapters(score.backbone.denoiser, rank=2)
        found.append(train_few_shot(score, lora, [given], replace(RULE, steps=3), seed=1))
        lora.remove()
    assert found[0] == found[1]


def test_an_image_without_a_wrong_candidate_is_refused(score: AttentionMatch) -> None:
    task = images(score)
    alone = replace(task, offered=torch.tensor([[True, False, False]] * 2), right=torch.tensor([0, 0]))
    with pytest.raises(EmptyClass, match="wrong candidate"):
        train_few_shot(score, LoraAdapters(score.backbone.denoiser), [alone], RULE, seed=0)


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"steps": 3}, "images=0"),
        ({"images": 1}, "images=1"),
        ({"images": 4, "rank": 0}, "rank=0"),
        ({"images": 4, "margin": 0.0}, "margin=0"),
        ({"images": 4, "learning_rate": 0.0}, "learning_rate=0"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        FewShotRule(**given)
