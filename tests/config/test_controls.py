"""The names of the controls: what the schema takes, and their order."""

from typing import get_args, get_type_hints

from diffprobe.config.controls import ALL_RUNGS, EXPOSED_PART, LADDER, ONE_CELL, has_one_cell
from diffprobe.config.schema import BackboneConfig, RunConfig


def test_every_rung_is_a_control_of_a_run_and_the_ladder_itself_is_none() -> None:
    allowed = get_args(get_type_hints(RunConfig)["control"])
    assert set(allowed) == {"none", "shuffled_labels", *LADDER}
    assert ALL_RUNGS not in allowed
    assert set(EXPOSED_PART.values()) == set(get_args(get_type_hints(BackboneConfig)["part"])) - {"denoiser"}


def test_rungs_on_other_features_have_a_cell_of_their_own() -> None:
    assert set(ONE_CELL) == set(LADDER) - {"random_weights"}
    assert [has_one_cell(name) for name in ("none", None, "random_weights", *ONE_CELL)] == [False] * 3 + [True] * 3
