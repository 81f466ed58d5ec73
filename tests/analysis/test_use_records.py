import numpy as np
import pytest

from diffprobe.analysis.statistics import bootstrap_interval
from diffprobe.analysis.use_records import PromptedValues, UseContext, attribute_records, use_records
from diffprobe.core.errors import EmptyClass, TooFewGroups

UNTOUCHED = np.array([1.0, 2.0, 1.0, 4.0])
ERRORS = {"zero_ablation": np.array([1.5, 2.5, 1.5, 6.5]), "patching": UNTOUCHED}
WORDS = {"zero_ablation": "zero", "patching": "another map"}


def context(groups=("a", "a", "b", "c")):
    return UseContext(cell="mid_block@t20:empty:mean", split="val", groups=groups, detail={"draws": 1})


def test_the_rise_and_the_rise_relative_to_the_untouched_error():
    records = use_records(UNTOUCHED, ERRORS, WORDS, context())
    found = {(record.probe, record.name): record for record in records}
    assert list(found) == [(name, metric) for name in ERRORS for metric in ("delta_mse", "relative_delta_mse")]
    rise, relative = found["zero_ablation", "delta_mse"], found["zero_ablation", "relative_delta_mse"]
    assert rise.value == pytest.approx(1.0) and relative.value == pytest.approx(4 / 8)
    assert rise.detail["mse"] == 2.0 and rise.detail["intervention"] == "zero" and rise.detail["draws"] == 1
    assert rise.n == 4 and rise.split == "val" and rise.cell == "mid_block@t20:empty:mean"
    for metric in ("delta_mse", "relative_delta_mse"):  # nothing changed: no rise, and no width
        assert found["patching", metric].value == 0 and found["patching", metric].detail["interval"] == [0.0, 0.0]


def test_intervals_resample_groups_and_both_parts_of_the_ratio_together():
    records = use_records(UNTOUCHED, ERRORS, WORDS, context())
    rise = ERRORS["zero_ablation"] - UNTOUCHED
    for record, below in zip(records[:2], (np.ones(4), UNTOUCHED), strict=True):
        plain = bootstrap_interval(lambda rows, b=below: float(rise[rows].sum() / b[rows].sum()), ["a", "a", "b", "c"])
        assert record.detail["interval"] == pytest.approx([plain.low, plain.high])
        assert record.detail["n_clusters"] == 3


def test_what_has_no_interval_or_no_ratio_is_refused():
    with pytest.raises(TooFewGroups, match="1 group"):
        use_records(UNTOUCHED, ERRORS, WORDS, context(("a",) * 4))
    with pytest.raises(EmptyClass, match="mid_block@t20:empty:mean is zero"):
        use_records(np.zeros(4), ERRORS, WORDS, context())


PROMPTED = np.array([0, 0, 1, 1, 1])
GROUPS = ("a", "a", "b", "c", "d")


def values(untouched):
    return PromptedValues(
        attribute="style", prompted=PROMPTED, untouched=np.array(untouched), real=np.array([0, 0, 1, 1, 0])
    )


def test_shares_are_paired_with_those_of_the_untouched_images():
    changed = {"zero_ablation": np.array([1, 0, 1, 0, 1]), "patching": PROMPTED}
    records = attribute_records(values(PROMPTED), changed, WORDS, context(GROUPS))
    found = {(record.probe, record.name): record for record in records}
    share, delta = found["zero_ablation", "attribute_share"], found["zero_ablation", "delta_attribute_share"]
    assert share.value == pytest.approx(0.6) and delta.value == pytest.approx(-0.4) and delta.target == "style"
    assert share.controls == {"untouched": 1.0, "chance": 0.6} and delta.controls == {}
    assert delta.detail["classifier_accuracy"] == {"generated": 1.0, "generated_interval": [1.0, 1.0], "real": 0.8}
    assert "not_valid" not in delta.detail and delta.detail["n_clusters"] == 4
    right = (changed["zero_ablation"] == PROMPTED).astype(float) - 1
    plain = bootstrap_interval(lambda rows: float(right[rows].mean()), GROUPS)
    assert delta.detail["interval"] == pytest.approx([plain.low, plain.high])
    assert found["patching", "delta_attribute_share"].detail["interval"] == [0.0, 0.0]


def test_a_classifier_that_fails_on_untouched_images_gives_no_difference():
    (only,) = attribute_records(values([1, 1, 1, 1, 1]), {"patching": PROMPTED}, WORDS, context(GROUPS))
    assert only.name == "attribute_share" and only.detail["not_valid"] == (
        "the classifier of 'style' is not above a constant answer (0.6) on untouched images"
    )
