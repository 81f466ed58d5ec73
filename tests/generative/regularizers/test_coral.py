"""CORAL's contrastive term against a plain computation and hand-computed values, and a planted case."""

import math

import pytest
import torch
from torch import nn

from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.regularizers.base import ClassBatch, ReverseKernels, TrainingClasses
from diffprobe.generative.regularizers.coral import Config, make, supervised_contrastive_loss

PAIR = TrainingClasses(attribute="role", names=("cook", "judge"), counts=(90, 10))


def term(config: Config):
    process = ForwardProcess(torch.linspace(0.95, 0.05, 10))
    return make(config, process, ReverseKernels(process, "epsilon"), PAIR)


def plain_loss(embedding: torch.Tensor, classes: list[int], temperature: float) -> float:
    """Equation 2 of 2004.11362, sample by sample."""
    z = [row / row.norm() for row in embedding.double()]
    losses = []
    for i, own in enumerate(classes):
        others = [j for j in range(len(classes)) if j != i]
        positives = [j for j in others if classes[j] == own]
        if not positives:
            continue
        total = sum(math.exp(float(z[i] @ z[j]) / temperature) for j in others)
        shares = [math.exp(float(z[i] @ z[j]) / temperature) / total for j in positives]
        losses.append(-sum(math.log(share) for share in shares) / len(positives))
    return sum(losses) / len(losses)


def test_the_loss_is_that_of_a_plain_computation():
    classes = [0, 1, 0, 2, 1, 0, 1]  # class 2 is there once
    embedding = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    found = supervised_contrastive_loss(embedding, torch.tensor(classes), 0.3)
    assert float(found) == pytest.approx(plain_loss(embedding, classes, 0.3), rel=1e-5)


def test_the_loss_of_two_orthogonal_pairs_by_hand():
    """Each sample has one positive at similarity 1 and two negatives at 0: log(1 + 2 exp(-1 / tau))."""
    embedding = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 1.0], [0.0, 3.0]])
    found = supervised_contrastive_loss(embedding, torch.tensor([0, 0, 1, 1]), 0.5)
    assert float(found) == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-6)


def test_the_term_is_the_loss_by_weight_and_mean_time_weight():
    embedding = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 1.0], [0.0, 3.0]])
    timesteps = torch.tensor([0, 2, 5, 9])
    zeros = torch.zeros(4, 1, 1, 1, requires_grad=True)
    batch = ClassBatch(zeros, timesteps, torch.tensor([0, 0, 1, 1]), zeros, embedding)
    config = Config(weight=0.2, temperature=0.5, time_scale=0.3)
    found = term(config).term(batch, lambda *_: zeros, torch.Generator())
    time_weight = sum(math.exp((1 - t / 10) / 0.3) for t in (0, 2, 5, 9)) / 4
    assert float(found) == pytest.approx(0.2 * time_weight * math.log(1 + 2 * math.exp(-2)), rel=1e-5)


@pytest.mark.parametrize("classes", [[0, 0, 0], [0, 1, 2]], ids=["one class", "no class twice"])
def test_a_batch_without_a_contrast_has_no_gradient(classes):
    embedding = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = supervised_contrastive_loss(embedding, torch.tensor(classes), 0.1)
    loss.backward()
    assert float(loss) == 0 and not embedding.grad.any()


def test_a_head_is_seeded_and_averages_the_map():
    coral = term(Config(width=3))
    state = torch.get_rng_state()
    one, two, other = coral.make_head(6, 1), coral.make_head(6, 1), coral.make_head(6, 2)
    assert torch.equal(torch.get_rng_state(), state)
    features = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(features), two(features)) and not torch.equal(one(features), other(features))
    torch.testing.assert_close(one(features), nn.functional.linear(features.mean((2, 3)), one[2].weight, one[2].bias))


def test_features_of_a_rare_class_are_separated_from_those_of_a_frequent_one():
    """Planted: the classes differ in one of eight channels; the layer before the head can only weigh channels anew."""
    generator = torch.Generator().manual_seed(0)
    trained, held_out = torch.tensor([0] * 216 + [1] * 40), torch.tensor([0] * 500 + [1] * 500)

    def draw(classes: torch.Tensor) -> torch.Tensor:
        maps = torch.randn(len(classes), 8, 2, 2, generator=generator)
        maps[:, 0] += 0.5 * (2 * classes[:, None, None] - 1)
        return maps

    maps, fresh = draw(trained), draw(held_out)
    coral = term(Config(weight=1.0, width=4, temperature=1.0))
    body, head = nn.Conv2d(8, 8, 1), coral.make_head(8, 0)
    nn.init.dirac_(body.weight)
    nn.init.zeros_(body.bias)

    def gap() -> float:
        """Distance of the class means over the spread within classes, of pooled features of held-out maps."""
        pooled = body(fresh).mean((2, 3)).detach()
        means = torch.stack([pooled[held_out == k].mean(0) for k in (0, 1)])
        within = (pooled - means[held_out]).square().sum(1).mean().sqrt()
        return float((means[0] - means[1]).norm() / within)

    before = gap()
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=0.02)
    for _ in range(200):
        batch = ClassBatch(maps, torch.full((256,), 5), trained, maps, head(body(maps)))
        loss = coral.term(batch, lambda *_: maps, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gap() > 1.5 * before
