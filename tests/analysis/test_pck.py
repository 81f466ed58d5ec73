"""PCK in its variants, against counts by hand."""

import numpy as np
import pytest

from diffprobe.analysis.pck import Matches, Variant, side_confusion
from diffprobe.analysis.statistics import evaluate
from diffprobe.core.errors import ConfigError

TRUE = np.array([[10.0, 10.0], [50.0, 20.0], [30.0, 40.0]])
FOUND = np.array([[16.0, 18.0], [50.0, 24.0], [30.0, 40.0]])  # 10, 4 and 0 pixels away
MATCHES = Matches(
    pair=np.array([0, 0, 1]), name=("head", "foot", "head"), true=TRUE, found=FOUND, box=np.array([40.0, 30.0, 20.0]),
    resolution=64,
)  # fmt: skip


def score(variant: Variant) -> float:
    return evaluate(MATCHES.statistic(MATCHES.correct(variant), variant.per), np.arange(2))


@pytest.mark.parametrize(
    ("alpha", "per", "size", "expected"),
    [
        (0.1, "point", "image", 2 / 3),  # within 6.4 pixels
        (0.1, "image", "image", 3 / 4),
        (0.1, "point", "box", 1 / 3),  # within 4, 3 and 2 pixels: 10, 4 and 0 are
        (0.1, "image", "box", 1 / 2),
        (0.25, "point", "box", 1.0),  # within 10, 7.5 and 5: a distance equal to the limit is correct
        (0.05, "point", "image", 1 / 3),
    ],
)
def test_each_variant_counts_what_its_name_states(alpha: float, per: str, size: str, expected: float) -> None:
    variant = Variant(alpha=alpha, per=per, size=size)  # type: ignore[arg-type]
    found = score(variant)
    assert found == pytest.approx(expected)
    assert variant.name == f"pck@{alpha:g}_per_{per}_{size}"


def test_chance_is_the_share_of_pixels_within_the_limit() -> None:
    variant = Variant(alpha=0.1, per="point", size="image")
    pixels = [(x + 0.5, y + 0.5) for x in range(64) for y in range(64)]
    expected = [np.mean([np.hypot(x - a, y - b) <= 6.4 for x, y in pixels]) for a, b in TRUE]
    np.testing.assert_allclose(MATCHES.chance(variant), expected)


def test_means_by_name() -> None:
    values = MATCHES.correct(Variant(alpha=0.1, per="point", size="image"))
    assert MATCHES.by_name(values) == {"foot": 1.0, "head": 0.5}


def test_a_match_nearer_to_the_partner_is_a_confusion_of_sides() -> None:
    partners = np.array([[16.0, 19.0], [0.0, 0.0], [99.0, 99.0]])
    wrong, counted = side_confusion(MATCHES, partners, [True, False, True])
    assert wrong[counted].tolist() == [1.0, 0.0]


def test_a_share_of_a_box_needs_boxes_and_points_need_matches() -> None:
    alone = Matches(pair=np.array([0]), name=("head",), true=TRUE[:1], found=FOUND[:1], box=None, resolution=64)
    with pytest.raises(ConfigError, match="box_parts"):
        alone.correct(Variant(alpha=0.1, per="point", size="box"))
    with pytest.raises(ConfigError, match="2 pairs"):
        Matches(pair=np.array([0, 0]), name=("head",), true=TRUE[:1], found=FOUND[:1], box=None, resolution=64)
