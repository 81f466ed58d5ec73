"""The choice of a cell, from planted counts."""

import numpy as np

from diffprobe.evaluation.segmentation_records import best_cell, metric_name


def test_the_cell_is_chosen_by_the_pooled_mean_of_its_number_of_labels() -> None:
    good, bad = np.array([[[9.0, 1.0], [1.0, 9.0]]]), np.array([[[5.0, 5.0], [5.0, 5.0]]])
    counts = {"val": {("a", 4): bad, ("b", 4): good, ("a", 16): good, ("b", 16): bad}}
    assert best_cell(counts, 4) == "b" and best_cell(counts, 16) == "a"
    assert metric_name("per_image", 4) == "miou_per_image_labels4"
