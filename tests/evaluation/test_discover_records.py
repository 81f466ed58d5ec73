"""Examples and notes of a discovery."""

import numpy as np

from diffprobe.evaluation.discover_records import examples_of


def test_examples_are_of_different_subjects_first():
    scores = np.array([5.0, 4.0, 3.0, -1.0, -2.0, -3.0])
    subjects = np.array([0, 0, 1, 1, 2, 2])
    high, low = examples_of(scores, subjects, 3)
    assert high == (0, 2, 4) and low == (5, 3, 1)
    assert examples_of(scores, subjects, 5) == ((0, 2, 4, 1, 3), (5, 3, 1, 4, 2))
    assert examples_of(scores, subjects, 9)[0][:3] == (0, 2, 4) and len(examples_of(scores, subjects, 9)[0]) == 6
