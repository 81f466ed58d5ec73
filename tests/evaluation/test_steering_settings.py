"""Settings of `eval steering`: what is out of range, or has no meaning, is refused."""

import pytest

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.evaluation.steering_settings import SteeringEvaluation

GIVEN = {"experiment": "e", "run": "runs/x", "ends": {"texture": ("striped", "plain")}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ends": {}}, "names no factor"),
        ({"ends": {"texture": ("striped",)}}, r"ends.texture=\['striped'\]"),
        ({"ends": {"texture": ("striped", "striped")}}, "a different one"),
        ({"n_images": 23}, "n_images"),
        ({"n_random": 0}, "n_random"),
        ({"strengths": (0.0, 1.0)}, "ascending numbers above 0"),
        ({"text_strengths": (2.0, 1.0)}, "text_strengths"),
        ({"replace_strengths": (0.5, 2.0)}, "at most 1"),
        ({"collateral": 0.0}, "collateral=0"),
        ({"level": 1.0}, "level=1"),
        ({"window": (5, 1)}, r"window=\[5, 1\]"),
        ({"guidance": -1.0}, "guidance"),
        ({"n_candidates": 0}, "n_candidates"),
        ({"n_choice_images": 23}, "n_choice_images"),
        ({"choice_seed": 0}, "choice_seed=0 is the seed of the scored images"),
        ({"seed": 3, "choice_seed": 3}, "(?s)choice_seed=3.*choice_seed=4"),
        ({"choice_seed": 1, "n_candidates": 1}, "no effect"),
    ],
)
def test_bad_settings_are_refused(change, message):
    SteeringEvaluation(**GIVEN)
    with pytest.raises(ConfigError, match=message):
        SteeringEvaluation(**{**GIVEN, **change})


def test_the_choice_has_another_seed_by_default():
    given = SteeringEvaluation(**GIVEN, seed=5)
    assert given.seed_of_choice == 6 and given.chooses
    assert not SteeringEvaluation(**GIVEN, n_candidates=1).chooses
    assert SteeringEvaluation(**GIVEN, n_candidates=1, more_runs=("x",), choice_seed=9).seed_of_choice == 9


def test_some_factors_are_compared_as_if_the_file_had_no_others():
    both = {"texture": ("striped", "plain"), "colour": ("red", "blue")}
    given = SteeringEvaluation(**{**GIVEN, "ends": both}, factors=("colour",))
    assert given.narrowed == SteeringEvaluation(**{**GIVEN, "ends": {"colour": ("red", "blue")}})
    assert list(SteeringEvaluation(**{**GIVEN, "ends": both}).narrowed.ends) == ["texture", "colour"]
    with pytest.raises(UnknownName, match="(?s)'size'.*texture"):
        SteeringEvaluation(**GIVEN, factors=("size",))
