import numpy as np
import pytest

from diffprobe.analysis.statistics import bootstrap_interval
from diffprobe.analysis.use_records import UseContext, use_records
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
