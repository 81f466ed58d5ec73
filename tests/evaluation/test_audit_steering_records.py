"""Records of the steering of an audit, with planted rates."""

import pytest

from diffprobe.core.result import RunResult, read_result, write_result
from tests.evaluation.audit_world import TEXTURE, TONE, steered_example


@pytest.fixture(scope="module")
def result() -> RunResult:
    return steered_example(axes=(TEXTURE, TONE))


def test_each_strength_of_each_direction_has_rate_moves_and_distance(result: RunResult) -> None:
    for axis, other in (("texture", "tone"), ("tone", "texture")):
        own = [one for one in result.metrics if one.target == axis and "strength" in one.detail]
        assert len(own) == 3 * 3 * (1 + 2 + 1)  # directions x strengths x (rate, moves along both axes, distance)
        assert {one.detail["steered"] for one in own} == {axis, "random 1", "random 2"}
        assert {one.detail["along"] for one in own if one.name == "steering_moved"} == {axis, other}
        assert all(one.n == 24 and one.split == "generated" for one in own)


def test_rates_rise_with_the_strength_along_the_own_direction_alone(result: RunResult) -> None:
    rates = {
        name: [one.value for one in result.metrics
               if (one.name, one.target) == ("steering_rate", "texture") and one.detail["steered"] == name]
        for name in ("texture", "random 1")
    }  # fmt: skip
    assert rates["texture"][0] < rates["texture"][1] < rates["texture"][2] and len(set(rates["random 1"])) == 1
    (effect,) = (one for one in result.metrics if (one.name, one.target) == ("steering_effect", "texture"))
    assert effect.detail["corrected"] == pytest.approx(min(effect.value / 0.7, 1.0))
    assert effect.detail["sensitivity"] == 0.9 and effect.detail["specificity"] == 0.8
    assert effect.detail["null"]["smallest_p"] == pytest.approx(1 / 3) and effect.detail["reader"] == "planted eyes"


def test_the_other_axis_and_the_subjects_are_compared(result: RunResult) -> None:
    (collateral,) = (one for one in result.metrics if (one.name, one.target) == ("steering_collateral", "texture"))
    assert collateral.detail["other"] == "tone"
    (score,) = (one for one in result.metrics if (one.name, one.target) == ("score_against_steered", "texture"))
    assert len(score.detail["subjects"]) == len(score.detail["rates"]) == 6 and score.detail["n_images"] == 4


def test_they_are_read_back(result: RunResult, tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_result(result, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json").metrics == result.metrics


def test_limits_name_steering_where_it_was_done(result: RunResult) -> None:
    about = result.metrics[0].detail
    assert any("Steering shows what a reader perceives" in text for text in about["limits"])
    assert not any(note.startswith("No steering") for note in about["notes"])
