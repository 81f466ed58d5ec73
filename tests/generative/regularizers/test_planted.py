"""Planted cases in which a class-contrast term must help: what plain training of a rare class gets wrong is known."""

import pytest
import torch

from diffprobe.generative.regularizers import cbdm, diffrop, orientation_calibration
from diffprobe.generative.regularizers.base import Regularizer, ReverseKernels
from tests.generative.regularizers.planted import CLASSES, TRUE, draw, process, train


def made(module, **settings):
    forward = process()
    return module.make(module.Config(**settings), forward, ReverseKernels(forward, "epsilon"), CLASSES)


@pytest.mark.slow
def test_diffrop_parts_the_kernels_that_plain_training_merges():
    images, labels = draw()
    plain = train(Regularizer(), images=images, labels=labels, decay=0.1)
    parted = train(made(diffrop, weight=3.0, margin=0.3), images=images, labels=labels, decay=0.1)
    assert float(plain[1, 0]) < 0  # the tail is drawn with the head's sign
    assert float(parted[1, 0]) > 0.5
    assert float((parted - TRUE)[1].norm()) < 0.5 * float((plain - TRUE)[1].norm())
    assert abs(float(parted[0, 0] + 1)) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "settings"),
    [(cbdm, {"tau": 0.2}), (orientation_calibration, {"direction": "tail_to_head"})],
    ids=["cbdm", "orientation_calibration"],
)
def test_what_few_tail_images_get_wrong_is_taken_from_the_head(module, settings):
    """The three tail images have a nuisance of 1.5, the classes one of 0."""
    images, labels = draw(tail_nuisance=1.5)
    plain = train(Regularizer(), images=images, labels=labels, decay=0.0)
    helped = train(made(module, **settings), images=images, labels=labels, decay=0.0)
    assert float(plain[1, 1]) > 1.2
    assert float(helped[1, 1]) < 0.85 * float(plain[1, 1])
    assert float(helped[1, 0]) > 0  # and the classes are still two
    torch.testing.assert_close(helped[0], plain[0], atol=0.15, rtol=0)
