"""Dense scores against torchmetrics and plain loops."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.metrics.dense import class_iou, depth_scores, depth_sums, image_confusion, mean_iou


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    truth, predicted = torch.randint(0, 5, (2, 6, 12, 12), generator=generator)
    return predicted, torch.where(torch.rand(truth.shape, generator=generator) < 0.5, predicted, truth)


def test_pooled_iou_is_that_of_torchmetrics_in_any_order(maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    predicted, truth = maps
    counts = np.array([image_confusion(p, t, 5) for p, t in zip(predicted, truth, strict=True)])
    per_class = MulticlassJaccardIndex(5, average="none")(predicted, truth)
    assert class_iou(counts.sum(0)) == pytest.approx(per_class.numpy(), abs=1e-6)
    assert mean_iou(counts[::-1].sum(0)) == pytest.approx(float(per_class.mean()), abs=1e-6)
    loops = [
        np.mean([((p == c) & (t == c)).sum() / ((p == c) | (t == c)).sum() for c in range(5)])
        for p, t in zip(predicted.numpy(), truth.numpy(), strict=True)
    ]
    assert mean_iou(counts) == pytest.approx(loops)
    assert np.mean(loops) != pytest.approx(float(per_class.mean()), abs=1e-4)


def test_a_class_that_occurs_nowhere_is_left_out() -> None:
    counts = image_confusion(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), 3)
    assert class_iou(counts)[:2].tolist() == [0.5, 0.0] and np.isnan(class_iou(counts)[2])
    assert mean_iou(counts) == 0.25
    assert np.isnan(mean_iou(np.zeros((3, 3))))


def test_depth_scores_against_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(0, 9, (8, 8), generator=generator).float()
    found = truth + torch.randn(8, 8, generator=generator)
    scores = depth_scores(depth_sums(found, truth))
    pixels = [(f, t) for f, t in zip(found.flatten().tolist(), truth.flatten().tolist(), strict=True) if t > 0]
    within = [f > 0 and max(f / t, t / f) < 1.25 for f, t in pixels]
    assert scores["delta1"] == pytest.approx(np.mean(within))
    assert scores["abs_rel"] == pytest.approx(np.mean([abs(f - t) / t for f, t in pixels]))
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean([(f - t) ** 2 for f, t in pixels])))


def test_ignored_pixels_are_not_counted() -> None:
    truth, found = torch.tensor([[0, 255, 1], [255, 1, 1]]), torch.tensor([[0, 2, 0], [1, 1, 1]])
    assert image_confusion(found, truth, 3, ignored=255).tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert not image_confusion(found, torch.full((2, 3), 255), 3, ignored=255).any()
    with pytest.raises(ConfigError, match="truth has classes from 0 to 255"):
        image_confusion(found, truth, 3)


def test_wrong_maps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(2, 2\).*\(2, 3\)"):
        image_confusion(torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long), 2)
    with pytest.raises(ConfigError, match="truth has classes from 0 to 4"):
        image_confusion(torch.tensor([[0, 1]]), torch.tensor([[0, 4]]), 2)
    with pytest.raises(ConfigError, match=r"\(1, 2\)"):
        depth_sums(torch.ones(2, 2), torch.ones(1, 2))
    with pytest.raises(NonFinite, match="not finite"):
        depth_sums(torch.tensor([[torch.nan]]), torch.ones(1, 1))
