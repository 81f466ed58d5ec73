"""The picture of planted classes: one row per image, the colours of the classes, the largest score white."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffprobe.evaluation.concepts_picture import Example, draw_examples


def test_images_classes_and_scores_stand_side_by_side(tmp_path: Path) -> None:
    truth = torch.tensor([[0, 1], [1, 1]])
    scores = torch.tensor([[[0.9, 0.1], [0.1, 0.1]], [[0.5, 0.5], [0.5, 0.5]]])
    one = Example(image=Image.new("RGB", (2, 2), (10, 20, 30)), truth=truth, scores=scores, found=1 - truth)
    draw_examples([one, one], ["rest", "hat"], tmp_path / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    step = 112 + 4
    assert sheet.shape == (16 + 2 * step, 4 + 5 * step, 3)
    tiles = [sheet[16 + step : 16 + step + 112, 4 + i * step : 4 + i * step + 112] for i in range(5)]
    assert (tiles[0] == (10, 20, 30)).all()
    assert (tiles[1][0, 0] == tiles[2][-1, -1]).all() and (tiles[1][-1, -1] == tiles[2][0, 0]).all()
    assert (tiles[1][0, 0] != tiles[1][-1, -1]).any()
    assert (tiles[3][0, 0] == 255).all() and (tiles[3][-1, -1] == 0).all() and (tiles[4] == 0).all()
