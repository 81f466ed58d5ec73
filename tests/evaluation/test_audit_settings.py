"""Settings of an audit that are refused."""

from typing import Any

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.audit_settings import Reference
from tests.evaluation.audit_world import settings


@pytest.mark.parametrize(
    ("keys", "fact"),
    [
        ({"cells": ()}, "cells"),
        ({"cells": ("a", "a")}, "cells"),
        ({"subjects": ("cook",)}, "at least 2"),
        ({"rates_axis": "tune"}, "tune"),
        ({"rates": "rates.csv"}, "reader"),
        ({"reader": "people"}, "rates"),
        ({"words_cell": "text"}, "words_only"),
        ({"level": 1.0}, "level"),
        ({"fdr": 0.0}, "fdr"),
        ({"least_separability": 0.2}, "least_separability"),
        ({"n_permutations": 0}, "n_permutations"),
        ({"max_clusters": 1}, "max_clusters"),
        ({"compare_variants": False, "rates_by": "position"}, "rates_by"),
        ({"compare_variants": False, "reference": Reference(name="census", table="a.csv")}, "reference"),
    ],
)
def test_wrong_settings_are_refused(keys: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        settings(**keys)


@pytest.mark.parametrize(
    "keys", [{"name": "uniform", "table": "a.csv"}, {"name": "census"}, {"name": " ", "table": "a"}]
)
def test_a_reference_has_a_name_that_states_what_it_is(keys: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="reference"):
        Reference(**keys)


def test_rates_are_of_the_first_axis_by_default() -> None:
    assert settings().main_axis == "texture" and settings().sampling.n_resamples == 60
