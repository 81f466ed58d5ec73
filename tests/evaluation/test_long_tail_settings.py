"""Settings of the long-tail evaluation that are refused, by name."""

from dataclasses import replace

import pytest

from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.long_tail_settings import LongTailEvaluation


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"n_per_class": 5}, "n_per_class=5.*k=5"), ({"guidance": -1.0}, "guidance"), ({"k": 0}, "k"),
        ({"overlap_timesteps": (0,)}, "overlap_timesteps"), ({"overlap_timesteps": ()}, "overlap_timesteps"),
        ({"overlap_images": -1}, "overlap_images"), ({"n_resamples": 0}, "n_resamples"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes, fact):
    with pytest.raises(ConfigError, match=fact):
        replace(LongTailEvaluation(experiment="mine", run="runs/x"), **changes)


def test_the_experiment_has_the_defaults():
    found = load("scenes/long_tail/evaluate", ["run=runs/x"])
    assert found == LongTailEvaluation(experiment="scenes/long_tail/evaluate", run="runs/x")
