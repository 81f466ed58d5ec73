"""The input contract of the page."""

import pytest

from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite
from diffprobe.core.result import MetricRecord
from diffprobe.report.pages.panels import DirectionPanel, Estimate, Histogram, make_histogram


def test_histogram_counts_every_value_once():
    histogram = make_histogram({"a": [0.0, 0.1, 0.9, 1.0], "b": [0.5]}, n_bins=10)
    assert sum(histogram.counts["a"]) == 4 and histogram.counts["a"][0] == 1 and histogram.counts["a"][-1] == 1 + 1
    assert histogram.edges[0] == 0.0 and histogram.edges[-1] == 1.0 and sum(histogram.counts["b"]) == 1


def test_equal_values_still_have_a_bin():
    assert sum(make_histogram({"a": [2.0, 2.0]}, n_bins=3).counts["a"]) == 2


def test_histogram_faults_are_named():
    with pytest.raises(EmptyClass, match="'b'"):
        make_histogram({"a": [1.0], "b": []})
    with pytest.raises(NonFinite):
        make_histogram({"a": [float("nan")]})
    with pytest.raises(ConfigError, match="edges"):
        Histogram(edges=(0.0, 1.0), counts={"a": (1, 2)})


def test_an_estimate_is_read_from_a_record():
    record = MetricRecord(
        name="auroc", value=0.9, split="test", n=40, probe="ridge",
        controls={"random_direction": 0.5, "shuffled_labels": 0.52},
        detail={"interval": [0.8, 0.95], "control_spread": {"random_direction": 0.08}},
    )  # fmt: skip
    expected = Estimate(
        estimator="ridge", auroc=0.9, n=40, interval=(0.8, 0.95), random_mean=0.5, random_sd=0.08, shuffled=0.52
    )
    assert Estimate.from_record(record) == expected
    bare = Estimate.from_record(MetricRecord(name="auroc", value=0.9, split="test", n=40))
    assert bare.estimator == "auroc" and bare.interval is None and bare.shuffled is None


def test_an_estimate_beats_its_controls_only_above_the_strongest():
    estimate = Estimate(estimator="ridge", auroc=0.9, n=40, shuffled=0.52, raw_pixels=0.9)
    assert estimate.strongest_control == ("raw pixels", 0.9) and estimate.below_control
    assert not Estimate(estimator="ridge", auroc=0.9, n=40, raw_pixels=0.89).below_control
    assert not Estimate(estimator="ridge", auroc=0.1, n=40).below_control


def test_a_histogram_has_the_classes_of_its_poles():
    with pytest.raises(ConfigError, match="noto, twemoji"):
        DirectionPanel(
            target="style", positive="noto", negative="twemoji", cell="c", estimates=(), shown="ridge",
            positive_end=(), negative_end=(), histogram=make_histogram({"noto": [1.0], "other": [0.0]}),
        )  # fmt: skip
