"""Settings of the evaluation of joint training: what is out of range, and the experiment."""

from typing import Any

import pytest

from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.joint_settings import JointEvaluation


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"ranks": ()}, "ranks"),
        ({"ranks": (1, 1)}, "ranks"),
        ({"ranks": (0,)}, "ranks"),
        ({"query_guidance": ()}, "query_guidance"),
        ({"query_guidance": (-1.0,)}, "query_guidance"),
        ({"ddim_steps": 0}, "ddim_steps"),
        ({"sampling_steps": 0}, "sampling_steps"),
        ({"limit": 0}, "limit"),
        ({"guidance": -1.0}, "guidance"),
        ({"n_per_role": -1}, "n_per_role"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        JointEvaluation(experiment="e", run="r", **settings)


def test_the_experiment_measures_all_ranks_and_both_guidances() -> None:
    config = load("scenes/diffdis_joint/evaluate", ["run=somewhere"])
    assert config.run == "somewhere" and config.ranks == (1, 5, 10) and config.query_guidance == (0.0, 1.0)
