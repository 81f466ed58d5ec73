"""Finished runs on disk: what is opened, what is a control of what, and runs without a result."""

import dataclasses
import shutil

import pytest

from diffprobe.core.errors import ConfigError, RunFailed, ShardError
from diffprobe.evaluation.probe_runs import open_probe_runs, reason
from tests.evaluation.page_runs import SAE, opened


def test_runs_are_opened_once_whatever_names_them(small_sae, large_sae):
    found = open_probe_runs([small_sae, small_sae / "result.json", small_sae.parent])
    assert {run.folder for run in found.runs} >= {small_sae, large_sae}
    assert len({run.result.run for run in found.runs}) == len(found.runs) and found.others == ()
    (run,) = opened(small_sae)
    assert run.control == "none" and run.config.probe.params["k"] == 2


def test_the_members_of_a_grid_are_runs_and_the_grid_is_not(train_tiny):
    grid = train_tiny(*SAE, "probe.grid.k=[2,3]")
    assert [run.config.probe.params["k"] for run in opened(grid)] == [2, 3]
    assert all(run.folder.parent.name == "members" for run in opened(grid))


def test_a_control_belongs_to_the_run_whose_settings_it_has(small_sae, large_sae):
    (small,), (large,) = opened(small_sae), opened(large_sae)
    config = dataclasses.replace(small.config, control="random_weights")
    result = dataclasses.replace(small.result, config={**small.result.config, "control": "random_weights"})
    control = dataclasses.replace(small, config=config, result=result)
    assert control.is_control_of(small) and not control.is_control_of(large) and not small.is_control_of(small)


def test_a_run_without_a_result_is_named(small_sae, tmp_path):
    begun = tmp_path / "runs" / "begun"
    shutil.copytree(small_sae, begun)
    (begun / "result.json").unlink()
    with pytest.raises(RunFailed, match="'.*begun' has no result.json(.|\n)*again"):
        open_probe_runs([begun])
    shutil.copytree(small_sae, tmp_path / "runs" / "done")
    assert open_probe_runs([tmp_path / "runs"]).unfinished == (begun,)


def test_results_of_other_kinds_are_kept_apart_and_alone_refused(small_sae, tmp_path):
    from diffprobe.core.result import read_result, write_result

    other = dataclasses.replace(read_result(small_sae / "result.json"), kind="backbone_eval")
    write_result(other, tmp_path / "other" / "result.json")
    found = open_probe_runs([small_sae, tmp_path / "other"])
    assert [result.kind for result in found.others] == ["backbone_eval"] and len(found.runs) == 1
    with pytest.raises(RunFailed, match="no run of a probe(.|\n)*backbone_eval"):
        open_probe_runs([tmp_path / "other"])
    with pytest.raises(ConfigError, match="does not exist"):
        open_probe_runs([tmp_path / "nowhere"])


def test_a_reason_is_one_sentence():
    assert reason(ShardError("the set is gone.", "detail")) == "the set is gone."
    assert reason(OSError("no space")) == "no space."
