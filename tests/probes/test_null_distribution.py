"""Null distributions have quantile, p and smallest p."""

import json

import numpy as np
import pytest

from diffprobe.probes.null_distribution import Null


def test_a_null_has_p_quantile_and_the_smallest_p():
    null = Null(observed=3.0, values=np.array([1.0, 2.0, 3.0, 4.0]), n_permutations=5, n_distinct=100.0, n_between=0,
                n_within=2)  # fmt: skip
    assert null.p == (1 + 2) / (1 + 4) and null.smallest_p == 1 / 5 and null.n_undefined == 1
    assert null.quantile == pytest.approx(2.5 / 4) and null.mean == 2.5 and null.percentiles(0.0, 1.0) == [1.0, 4.0]
    lower = Null(observed=0.0, values=null.values, n_permutations=4, n_distinct=3.0, n_between=2, n_within=0,
                 higher_is_better=False)  # fmt: skip
    assert lower.p == lower.smallest_p == 1 / 3  # three different permutations allow no less


def test_a_description_is_json_and_names_the_extreme_side():
    values = np.arange(100.0)
    found = json.loads(json.dumps(Null(observed=98.0, values=values, n_permutations=100).describe()))
    assert found == {
        "p": 3 / 101, "smallest_p": 1 / 101, "quantile": 0.985, "mean": 49.5, "percentile_95": pytest.approx(94.05),
        "n": 100,
    }  # fmt: skip
    lower = Null(observed=0.0, values=values, n_permutations=100, higher_is_better=False).describe()
    assert lower["p"] == 2 / 101 and lower["percentile_5"] == pytest.approx(4.95) and "percentile_95" not in lower
