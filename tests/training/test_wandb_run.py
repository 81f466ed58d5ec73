"""What W&B runs hold besides curves."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import wandb

from diffprobe.config.schema import LoggerConfig
from diffprobe.core.result import MetricRecord, StartTime, make_result, read_result
from diffprobe.training import loggers
from diffprobe.training.trainer import quiet
from diffprobe.training.wandb_run import SENT_RESULT, environment, log_artifacts, log_page, scores, val_scores
from tests.training.test_loggers import finished_records, logged_out, read_run  # noqa: F401

CELLS = "mid_block@t25:empty:mean", "mid_block@t200:empty:mean"


def result_of(**changes):
    records = [
        MetricRecord(name="accuracy", value=value, split=split, n=4, cell=cell)
        for value, split, cell in [(0.5, "val", CELLS[0]), (0.9, "test", CELLS[0]), (0.7, "val", CELLS[1])]
    ] + [MetricRecord(name="accuracy", value=0.6, split="test", n=4, cell=CELLS[1])]
    return make_result(
        run="abc", experiment="e", kind="classifier", config={"seed": 1}, seeds={}, metrics=records,
        started_at=StartTime(0.0, 0.0), **changes,
    )  # fmt: skip


def test_the_environment_has_commit_versions_and_the_ids_of_slurm():
    found = environment({"SLURM_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3", "SLURM_NODELIST": "n1"})["environment"]
    assert found["slurm"] == {"job_id": "17", "array_task_id": "3"}
    assert "torch" in found["versions"] and "git_commit" in found and "machine" in found["hardware"]
    assert "slurm" not in environment({})["environment"]


def test_a_score_is_the_test_value_where_val_is_best():
    assert scores(result_of()) == {"score/accuracy": 0.6}


@pytest.mark.usefixtures("logged_out")
def test_an_offline_run_holds_scores_environment_and_a_reference_to_its_probes(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (tmp_path / "probes/linear").mkdir(parents=True)
    (tmp_path / "probes/linear/probe.safetensors").write_bytes(b"weights")
    artifacts = {"probes/linear": "1" * 64, "input/store": "2" * 64, "input/backbone": "3" * 64}
    with quiet():
        logger = loggers.make_logger(
            LoggerConfig(kind="wandb"), run_dir=tmp_path, experiment="e", run_name="r", job_type="classifier",
            tree={"seed": 1},
        )  # fmt: skip
        loggers.finish(logger, result_of(artifacts=artifacts))
    _, config, summary, _ = read_run(tmp_path)
    assert config["seed"] == 1 and config["environment"]["slurm"]["job_id"] == "17"
    assert summary["score/accuracy"] == 0.6
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    (artifact,) = [record.artifact for record in finished_records(path) if record.HasField("artifact")]
    assert (artifact.type, artifact.name) == ("classifier", "classifier-abc")
    metadata = json.loads(artifact.metadata)
    assert metadata["inputs"] == {"input/store": "2" * 64, "input/backbone": "3" * 64}
    (entry,) = artifact.manifest.contents
    assert entry.path == "probes/linear/probe.safetensors" and entry.ref.startswith("file://")
    assert not list(tmp_path.glob("wandb/**/probe.safetensors"))  # nothing is copied


@pytest.mark.usefixtures("logged_out")
def test_an_offline_run_carries_its_result_and_those_of_its_members(tmp_path: Path):
    member = result_of()
    whole = dataclasses.replace(member, metrics=())
    with quiet():
        logger = loggers.make_logger(
            LoggerConfig(kind="wandb"), run_dir=tmp_path, experiment="e", run_name="r", job_type="classifier", tree={}
        )
        loggers.finish(logger, whole, members={"cell@t2,k=[1]": member})
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (path,) = folder.glob("run-*.wandb")
    sent = [item.path for record in finished_records(path) if record.HasField("files") for item in record.files.files]
    assert {SENT_RESULT, f"members/cell@t2,k=[1]/{SENT_RESULT}"} <= set(sent)
    assert read_result(folder / "files" / SENT_RESULT) == whole
    assert read_result(folder / "files/members/cell@t2,k=[1]" / SENT_RESULT) == member
    assert not list(tmp_path.rglob("result.json"))  # the run's own is written by its training, and found once
    assert not (folder / "files" / SENT_RESULT).is_symlink()  # the folder may be sent from another machine


def test_the_value_on_val_that_chose_the_score_is_another_key():
    assert val_scores(result_of()) == {"val_score/accuracy": 0.7}
    test_only = dataclasses.replace(result_of(), metrics=result_of().metrics[1:2])
    assert val_scores(test_only) == {} and scores(test_only) == {"score/accuracy": 0.9}


class OnlineRun:
    """What `log_artifacts` uses of an online run."""

    id, offline = "r1", False

    def __init__(self, error: Exception | None = None) -> None:
        self.used, self.logged, self.error = [], [], error

    def use_artifact(self, artifact_or_name, type=None, aliases=None, use_as=None):
        if self.error:
            raise self.error
        self.used.append(artifact_or_name)

    def log_artifact(self, artifact_or_path, name=None, type=None, aliases=None, tags=None):
        self.logged.append(artifact_or_path)


def test_the_fake_run_has_the_methods_of_the_installed_wandb():
    for name in ("use_artifact", "log_artifact"):
        fake, real = (list(inspect.signature(getattr(cls, name)).parameters) for cls in (OnlineRun, wandb.Run))
        assert real[: len(fake)] == fake


def test_online_the_probe_follows_from_features_data_and_model(tmp_path: Path):
    (tmp_path / "probes/linear").mkdir(parents=True)
    (tmp_path / "probes/linear/probe.json").write_text("{}")
    inputs = {"input/store": "2" * 64, "input/shards": "4" * 64, "input/backbone": "3" * 64}
    run = OnlineRun()
    log_artifacts(run, result_of(artifacts={"probes/linear": "1" * 64, **inputs}), tmp_path)
    assert {(used.type, used.name) for used in run.used} == {
        ("features", "features-" + "2" * 12), ("dataset", "dataset-" + "4" * 12), ("model", "model-" + "3" * 12)
    }  # fmt: skip
    assert all(used.metadata["sha256"] in inputs.values() for used in run.used)
    (made,) = run.logged
    assert made.metadata["inputs"] == inputs and made.metadata["files"] == {"probes/linear": "1" * 64}


def test_the_features_refer_to_the_store_where_it_is_at_hand(tmp_path: Path):
    manifest = tmp_path / ("2" * 16) / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text("{}")
    result = result_of(artifacts={"input/store": "2" * 64})
    run = OnlineRun()
    log_artifacts(run, dataclasses.replace(result, config={"features": {"store": str(tmp_path)}}), tmp_path)
    log_artifacts(run, dataclasses.replace(result, config={"features": {"store": "nowhere"}}), tmp_path)
    refs = [[entry.ref for entry in used.manifest.entries.values()] for used in run.used]
    assert refs == [[manifest.as_uri()], []]


def test_online_the_page_follows_from_its_probes(tmp_path: Path):
    page = tmp_path / "page.html"
    page.write_text("<h1>page</h1>")
    run, result = OnlineRun(), result_of(artifacts={"probes/linear": "1" * 64, "input/store": "2" * 64})
    log_page(run, page, [result, dataclasses.replace(result, run="a/b", kind="sae"), result_of(artifacts={})])
    assert run.used == ["classifier-abc:latest", "sae-a-b:latest"]
    (made,) = run.logged
    assert (made.type, made.name) == ("report", "report-page") and list(made.manifest.entries) == ["page.html"]
    assert made.metadata["probes"] == ["classifier-abc", "sae-a-b"]


@pytest.mark.usefixtures("logged_out")
def test_figures_that_cannot_be_drawn_do_not_fail_a_run_that_has_its_result(tmp_path: Path):
    said = []
    with quiet():
        logger = loggers.make_logger(
            LoggerConfig(kind="wandb"), run_dir=tmp_path, experiment="e", run_name="r", job_type="classifier", tree={}
        )
        loggers.finish(logger, result_of(), media=lambda: 1 / 0, announce=said.append)
    assert "tables and figures" in said[0] and "division by zero" in said[0]
    assert len(list(tmp_path.glob(f"wandb/offline-run-*/files/{SENT_RESULT}"))) == 1


@pytest.mark.usefixtures("logged_out")
def test_a_server_that_refuses_artifacts_does_not_fail_a_run_that_has_its_result(tmp_path: Path, monkeypatch):
    said = []
    monkeypatch.setattr(loggers, "log_artifacts", lambda *_: (_ for _ in ()).throw(ValueError("unexpected state")))
    with quiet():
        logger = loggers.make_logger(
            LoggerConfig(kind="wandb"), run_dir=tmp_path, experiment="e", run_name="r", job_type="classifier", tree={}
        )
        loggers.finish(logger, result_of(), announce=said.append)
    assert "artifacts" in said[0] and "unexpected state" in said[0] and "result.json" in said[0]
    assert len(list(tmp_path.glob(f"wandb/offline-run-*/files/{SENT_RESULT}"))) == 1
