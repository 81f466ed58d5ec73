"""The class-balancing term against hand-computed values, and which of its two parts moves what."""

import pytest
import torch

from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.regularizers.base import ClassBatch, ReverseKernels, TrainingClasses
from diffprobe.generative.regularizers.cbdm import Config, make

PAIR = TrainingClasses(attribute="role", names=("cook", "judge"), counts=(90, 10))
TIMESTEPS = torch.tensor([2, 8])


def run(config, kind="epsilon"):
    process = ForwardProcess(torch.linspace(0.95, 0.05, 10))
    own = torch.zeros(2, 3, 1, 1, requires_grad=True)
    other = torch.tensor([0.5, 2.0])[:, None, None, None].repeat(1, 3, 1, 1).requires_grad_()
    batch = ClassBatch(torch.zeros(2, 3, 1, 1), TIMESTEPS, torch.tensor([0, 1]), own)
    regularizer = make(config, process, ReverseKernels(process, kind), PAIR)
    term = regularizer.term(batch, lambda *_: other * 1, torch.Generator().manual_seed(0))
    term.backward()
    return float(term.detach()), own.grad, other.grad, process


def test_the_term_is_tau_times_both_parts_weighted_by_the_timestep():
    found, *_ = run(Config(tau=0.1, gamma=0.25))
    assert found == pytest.approx(0.1 * 1.25 * (0.2 * 0.25 + 0.8 * 4.0) / 2, rel=1e-5)


def test_each_part_moves_one_of_the_two_predictions():
    _, own, other, _ = run(Config(tau=0.1, gamma=0.25))
    gap = torch.tensor([0.5, 2.0])[:, None, None, None]
    expected = 0.1 * torch.tensor([0.2, 0.8])[:, None, None, None] * 2 * gap / 3 / 2
    torch.testing.assert_close(own, (-expected).expand_as(own))  # the own prediction comes closer
    torch.testing.assert_close(other, (0.25 * expected).expand_as(other))  # the other one a quarter as fast
    _, _, uncommitted, _ = run(Config(tau=0.1, gamma=0.0))
    assert not uncommitted.any()


def test_velocities_are_compared_as_noises():
    """eps = sigma x_t + signal v, so that differences of velocities count signal ** 2."""
    found, _, _, process = run(Config(tau=0.1, gamma=0.0), "v_prediction")
    scale = process.signal[TIMESTEPS].square().tolist()
    assert found == pytest.approx(0.1 * (0.2 * 0.25 * scale[0] + 0.8 * 4.0 * scale[1]) / 2, rel=1e-5)


def test_classes_are_drawn_from_the_target_distribution():
    process, asked = ForwardProcess(torch.linspace(0.95, 0.05, 10)), []
    batch = ClassBatch(
        torch.zeros(2000, 1, 1, 1), torch.ones(2000).long(), torch.zeros(2000).long(), torch.zeros(2000, 1, 1, 1)
    )

    def predict(noised, timesteps, classes):
        asked.append(float(classes.double().mean()))
        return noised

    for target in ("uniform", "sqrt", "frequency"):
        regularizer = make(Config(target=target), process, ReverseKernels(process, "epsilon"), PAIR)
        regularizer.term(batch, predict, torch.Generator().manual_seed(0))
    assert asked == pytest.approx([0.5, 0.25, 0.1], abs=0.03)
