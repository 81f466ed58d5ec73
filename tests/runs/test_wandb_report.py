"""The page of some runs in W&B: an offline run read back, and what W&B refuses."""

import json
from pathlib import Path

import pytest

from diffprobe.config.schema import LoggerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import StartTime, make_result, write_result
from diffprobe.runs.wandb_report import send_report
from tests.training.test_loggers import finished_records, logged_out  # noqa: F401

pytestmark = pytest.mark.usefixtures("logged_out")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        result = make_result(
            run=name, experiment="e", kind="classifier", config={}, seeds={}, metrics=[],
            started_at=StartTime(0.0, 0.0), artifacts={"probes/linear": "1" * 64},
        )  # fmt: skip
        write_result(result, tmp_path / "runs" / name / "result.json")
    page = tmp_path / "page.html"
    page.write_text("<h1>two runs</h1>")
    return page


def test_an_offline_run_holds_the_page_and_the_names_of_its_probes(page: Path) -> None:
    said: list[str] = []
    send_report(page, [page.parent / "runs"], LoggerConfig(kind="wandb", project="p"), said.append)
    (path,) = page.parent.glob("wandb/offline-run-*/run-*.wandb")
    records = finished_records(path)
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.project, run.run_group, run.job_type, run.display_name) == ("p", "e", "report", "page")
    (artifact,) = [record.artifact for record in records if record.HasField("artifact")]
    assert (artifact.type, artifact.name) == ("report", "report-page")
    assert json.loads(artifact.metadata)["probes"] == ["classifier-one", "classifier-two"]
    (copy,) = path.parent.glob("files/media/html/**/*.html")
    assert copy.read_text() == page.read_text()
    assert "offline" in said[-1] and "wandb sync" in said[-1]


def test_a_wandb_that_is_off_sends_nothing(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said: list[str] = []
    send_report(page, [page.parent / "runs"], LoggerConfig(kind="wandb"), said.append)
    assert "not sent" in said[0] and not (page.parent / "wandb").exists()


def test_contradicting_variables_are_refused(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "other")
    with pytest.raises(ConfigError, match="logger.project=mine(?s:.*)WANDB_PROJECT=other"):
        send_report(page, [page.parent / "runs"], LoggerConfig(kind="wandb", project="mine"))
