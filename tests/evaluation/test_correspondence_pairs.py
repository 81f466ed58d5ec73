"""Mirrored samples, and the numbers of a split of pairs."""

import numpy as np
import torch
from PIL import Image

from diffprobe.evaluation.correspondence_pairs import PairedPoints, attribute_of, mirrored
from diffprobe.shards.decode import Sample
from diffprobe.shards.dense_truth import PointSample


def sample(key: str, points: dict[str, tuple[float, float]]) -> PointSample:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8).astype(np.uint8))
    own = Sample(
        key=key, image=image, label=0, class_name="cook", caption="", captions=(), attributes={"role": "cook"}, shard=""
    )
    return PointSample(sample=own, points=points, box=(4.0, 6.0))


def test_a_mirrored_sample_has_its_points_at_the_other_side_under_the_other_name() -> None:
    one = sample("a", {"left": (1.0, 2.0), "tip": (3.0, 4.0)})
    other = mirrored(one, {"left": "right", "right": "left"}, 8)
    assert other.points == {"right": (7.0, 2.0), "tip": (5.0, 4.0)}
    assert np.array_equal(np.asarray(other.sample.image), np.asarray(one.sample.image)[:, ::-1])
    assert mirrored(other, {"left": "right", "right": "left"}, 8).points == one.points
    assert attribute_of(one, "label") == attribute_of(one, "role") == "cook" and attribute_of(one, "hat") == ""


def test_matches_carry_pairs_boxes_and_partners() -> None:
    one = sample("a", {"left": (1.0, 2.0), "right": (6.0, 2.0)})
    two = sample("b", {"left": (2.0, 2.0), "right": (5.0, 3.0)})
    pairs = PairedPoints(
        pairs=[(one, two)], names=[("left",)], groups=["a", "b"], clusters=[0], resolution=8,
        partner={"left": "right", "right": "left"},
    )  # fmt: skip
    rungs, clusters, partners, known = pairs.measured({"own": {"cell": np.array([[2.5, 2.5]])}})
    assert pairs.n_points == 1 and torch.equal(pairs.points(0), torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    own = rungs["own"]["cell"]
    assert own.true.tolist() == [[2.0, 2.0]] and own.box is not None and own.box.tolist() == [6.0]
    assert rungs["same_place"][""].found.tolist() == [[1.0, 2.0]]
    assert clusters == [0] and partners.tolist() == [[5.0, 3.0]] and known.tolist() == [True]
