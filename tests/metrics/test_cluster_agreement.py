"""NMI, AMI and ARI of clusters: hand-computed cases, invariances, and what is refused."""

import math
import random

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.metrics.cluster_agreement import cluster_agreement


def test_numbers_of_clusters_do_not_count() -> None:
    labels = ["a", "a", "b", "b", "c", "c"]
    assert cluster_agreement([7, 7, 0, 0, 3, 3], labels) == pytest.approx({"nmi": 1.0, "ami": 1.0, "ari": 1.0})


def test_a_merged_pair_of_labels_by_hand() -> None:
    """Clusters {a, b}, {c, d} of four labels with two samples each: information log 2, entropies log 2 and log 4."""
    found = cluster_agreement([0, 0, 0, 0, 1, 1, 1, 1], list("aabbccdd"))
    assert found["nmi"] == pytest.approx(math.log(2) / ((math.log(2) + math.log(4)) / 2))
    # pairs together in both: 4; in the labels 4, in the clusters 12, of 28
    expected = 4 * 12 / 28
    assert found["ari"] == pytest.approx((4 - expected) / ((4 + 12) / 2 - expected))


def test_independent_partitions_have_nmi_above_and_adjusted_measures_near_zero() -> None:
    draw = random.Random(0)
    found = cluster_agreement([draw.randrange(20) for _ in range(400)], [f"l{draw.randrange(20)}" for _ in range(400)])
    assert found["nmi"] > 0.1 and abs(found["ami"]) < 0.03 and abs(found["ari"]) < 0.03


@pytest.mark.parametrize(("clusters", "labels"), [([0], ["a", "b"]), ([], []), ([0, 1], ["a", "a"])])
def test_what_has_no_agreement_is_refused(clusters: list[int], labels: list[str]) -> None:
    with pytest.raises(ConfigError):
        cluster_agreement(clusters, labels)
