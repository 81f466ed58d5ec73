"""The hinge of DiffROP against a loop over samples, hand-computed cases, and its gradient."""

import pytest
import torch

from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.regularizers.base import ClassBatch, ReverseKernels, TrainingClasses
from diffprobe.generative.regularizers.diffrop import Config, make

PAIR = TrainingClasses(attribute="role", names=("cook", "judge"), counts=(90, 10))
ABAR = torch.linspace(0.95, 0.05, 10)


def term_of(config, gap, *, timesteps=(4, 7), classes=(0, 1)):
    """Return the term and the gradients of own and other output; each differs by `gap` in all of 3 entries."""
    process = ForwardProcess(ABAR)
    own = torch.zeros(len(classes), 3, 1, 1, requires_grad=True)
    other = torch.full((len(classes), 3, 1, 1), gap, requires_grad=True)
    asked = []

    def predict(noised, t, c):
        asked.append(c.tolist())
        return other * 1

    batch = ClassBatch(torch.zeros(len(classes), 3, 1, 1), torch.tensor(timesteps), torch.tensor(classes), own)
    term = make(config, process, ReverseKernels(process, "epsilon"), PAIR).term(
        batch, predict, torch.Generator().manual_seed(0)
    )
    term.backward()
    return float(term.detach()), own.grad, other.grad, asked


@pytest.mark.parametrize("shape", ["constant", "signal", "noise"])
def test_the_term_is_the_weighted_mean_hinge(shape):
    config = Config(weight=0.7, margin=0.5, timestep_weight=shape)
    expected = 0.0
    for t in (4, 7):
        abar, alpha = float(ABAR[t]), float(ABAR[t] / ABAR[t - 1])
        divergence = (1 - alpha) / (2 * alpha * (1 - abar)) * 3 * 0.3**2
        weight = {"constant": 1.0, "signal": abar, "noise": 1 - abar}[shape]
        expected += weight * max(0.0, 0.5 - divergence) / 2
    found, _, _, asked = term_of(config, 0.3)
    assert found == pytest.approx(0.7 * expected, rel=1e-5)
    assert asked == [[1, 0]]  # of two classes, the other one


def test_beyond_the_margin_there_is_no_term_and_no_gradient():
    found, own, other, _ = term_of(Config(margin=0.5), 10.0)
    assert found == 0 and not own.any() and not other.any()


def test_below_the_margin_the_kernels_part():
    _, own, other, _ = term_of(Config(margin=0.5), 0.3)
    assert bool((own > 0).all()) and bool((other < 0).all())  # descent lowers the own output, raises the other


def test_equal_kernels_pay_the_whole_margin_and_have_no_gradient():
    found, own, other, _ = term_of(Config(weight=2.0, margin=0.5), 0.0)
    assert found == pytest.approx(1.0) and not own.any() and not other.any()


def test_a_detached_other_kernel_is_not_moved():
    found, own, other, _ = term_of(Config(margin=0.5, detach_other=True), 0.3)
    assert found == pytest.approx(term_of(Config(margin=0.5), 0.3)[0])
    assert bool((own > 0).all()) and other is None
