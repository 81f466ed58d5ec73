"""Settings of `eval steering`: what is out of range, or has no meaning, is refused."""

import pytest

from diffprobe.core.errors import ConfigError
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
    ],
)
def test_bad_settings_are_refused(change, message):
    SteeringEvaluation(**GIVEN)
    with pytest.raises(ConfigError, match=message):
        SteeringEvaluation(**{**GIVEN, **change})
