"""Classes of pixels from planted maps of words."""

import numpy as np
import pytest
import torch

from diffprobe.evaluation.concepts_classes import average_precisions, class_scores, classes_at, exchanged_owners

MAPS = torch.tensor([[[0.1, 0.5], [0.2, 0.2]], [[0.3, 0.1], [0.2, 0.2]], [[0.6, 0.4], [0.6, 0.6]]])


def test_a_class_has_the_largest_score_of_its_words_and_the_rest_what_they_leave() -> None:
    scores = class_scores(MAPS, [1, 1, 2], 3, (2, 2))
    expected = torch.tensor([[[0.4, 0.5], [0.4, 0.4]], [[0.3, 0.5], [0.2, 0.2]], [[0.6, 0.4], [0.6, 0.6]]])
    torch.testing.assert_close(scores, expected)
    assert classes_at(scores, 0, 0.55).tolist() == [[2, 0], [2, 2]]
    assert classes_at(scores, 0, 0.45).tolist() == [[2, 1], [2, 2]]
    assert classes_at(class_scores(MAPS, [0, 0, 1], 2, (2, 2)), None, None).tolist() == [[1, 0], [1, 1]]


def test_min_max_scales_each_class_and_a_flat_map_has_no_score() -> None:
    flat = torch.cat([MAPS, torch.full((1, 2, 2), 0.5)])
    scores = class_scores(flat, [0, 1, 2, 3], 4, (6, 6), min_max=True)
    assert scores[:3].amin((1, 2)).tolist() == [0, 0, 0] and scores[3].abs().max() == 0
    torch.testing.assert_close(scores[:3].amax((1, 2)), torch.ones(3))
    again = class_scores(0.5 * flat + 0.1, [0, 1, 2, 3], 4, (6, 6), min_max=True)
    torch.testing.assert_close(scores, again, atol=1e-5, rtol=0)


def test_average_precision_is_that_of_the_definition_and_the_share_for_equal_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, truth = torch.rand(3, 8, 8, generator=generator), torch.randint(0, 2, (8, 8), generator=generator)
    found = average_precisions(scores, truth)
    for i in range(2):
        hits = (truth == i).flatten()[scores[i].flatten().argsort(descending=True)].double()
        precision = hits.cumsum(0) / torch.arange(1, 65)
        assert found[i] == pytest.approx(float((precision * hits).sum() / hits.sum()), abs=1e-6)
    assert np.isnan(found[2])
    flat = average_precisions(torch.full((3, 8, 8), 0.25), truth)
    assert flat[0] == pytest.approx(float((truth == 0).double().mean()))


def test_exchanged_words_are_those_of_another_class() -> None:
    owners = [0, 2, 2, 3]
    exchanged = exchanged_owners(owners)
    assert sorted(set(exchanged)) == [0, 2, 3] and all(a != b for a, b in zip(owners, exchanged, strict=True))
