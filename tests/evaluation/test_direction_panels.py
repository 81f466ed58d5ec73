"""Directions of any runs: one panel for what belongs together, and numbers without features."""

from dataclasses import replace

import pytest

from diffprobe.core.errors import EmptyClass
from diffprobe.evaluation.direction_panels import direction_panels
from diffprobe.evaluation.panel_settings import PanelConfig
from tests.evaluation.page_runs import DIRECTION, opened

FEW = PanelConfig(n_ends=2, n_resamples=20)


def test_without_features_the_panel_has_the_numbers_of_the_result(direction):
    (run,) = opened(direction)
    (full,) = direction_panels([run], FEW)
    (bare,) = direction_panels([run], FEW, opener=lambda run: None)
    assert full.estimates[0].interval is not None and full.histogram is not None and full.positive_end
    assert bare.histogram is None and bare.positive_end == () and "not at hand" in bare.note
    assert replace(full.estimates[0], interval=None) == bare.estimates[0]
    assert (bare.target, bare.positive, bare.negative) == ("style", full.positive, full.negative)


def test_a_direction_without_its_file_has_numbers_and_the_reason(direction, tmp_path):
    (run,) = opened(direction)
    (panel,) = direction_panels([replace(run, folder=tmp_path)], FEW)
    assert "The direction is not at hand" in panel.note and panel.estimates[0].interval is None


def test_two_runs_of_one_estimator_are_called_by_their_names(direction, train_tiny):
    (first,), (second,) = opened(direction), opened(train_tiny(*DIRECTION, "seed=1"))
    (panel,) = direction_panels([first, second], FEW, names={second.result.run: "run seed 1"})
    assert [one.estimator for one in panel.estimates] == ["mean_difference", "mean_difference, run seed 1"]


def test_runs_of_other_data_have_panels_of_their_own(direction):
    (run,) = opened(direction)
    artifacts = {**run.result.artifacts, "input/shards": "e" * 64}
    other = replace(run, result=replace(run.result, run="other", artifacts=artifacts))
    sources = {run.result.run: "emoji", "other": "cars"}
    panels = direction_panels([run, other], FEW, sources=sources, opener=lambda run: None)
    assert [panel.source for panel in panels] == ["emoji", "cars"]


def test_controls_are_those_of_the_same_settings(direction):
    (run,) = opened(direction)

    def control(name, **changes):
        tree = {**run.result.config, "control": "random_weights", **changes}
        result = replace(run.result, run=name, config=tree, metrics=tuple(
            replace(record, value=0.25) for record in run.result.metrics
        ))  # fmt: skip
        return replace(run, config=replace(run.config, control="random_weights"), result=result)

    def found(*controls):
        (panel,) = direction_panels([run, *controls], FEW, opener=lambda run: None)
        return panel.estimates[0].random_weights

    assert found(control("same")) == 0.25
    other = {**run.result.config["data"], "limit": 3}
    assert found(control("other", data=other)) is None


def test_a_run_without_test_numbers_is_named_or_left_out(direction):
    (run,) = opened(direction)
    empty = replace(run, result=replace(run.result, metrics=()))
    with pytest.raises(EmptyClass, match=f"'{run.result.run}' has no test AUROC"):
        direction_panels([empty], FEW)
    said = []
    assert direction_panels([empty], FEW, leave_out=said.append) == () and "no test AUROC" in said[0]
