"""On a real SLURM: several processes, arrays with a limit, chains, and what SLURM refuses."""

import json
import subprocess
from pathlib import Path

import pytest

from diffprobe.cli.main import main
from diffprobe.core.result import read_result
from diffprobe.launch import slurm
from tests.slurm.conftest import ROOT, Jobs, trained_on

pytestmark = pytest.mark.slow


def results(jobs: Jobs) -> list[Path]:
    return sorted((jobs.folder / "runs").rglob("result.json"))


def test_two_processes_by_srun_train_one_probe(jobs: Jobs) -> None:
    jobs.train("trainer.devices=2", "data.batch_size=2")
    jobs.finish()
    (result,) = results(jobs)
    assert read_result(result).config["trainer"]["devices"] == 2
    steps = jobs.steps()
    assert {step["rank"] for step in steps} == {0, 1}
    counts = trained_on(steps)
    assert set(counts.values()) == {1} and len(counts) == 6 * 16


def test_an_array_of_six_with_a_limit_of_two(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["probe.params.k=2,3,4", "seed=0,1", "trainer.max_epochs=2"]
    out = jobs.train(*command, "--limit", "2")
    assert "train, 6 tasks" in out
    most = 0

    def counted(states: list) -> bool:
        nonlocal most
        queued = slurm.queue()
        most = max(most, sum(job.state == "RUNNING" for job in queued.values() if "train" in job.name))
        assert not [state for state in states if state.state in ("failed", "gone")], jobs.shown()
        return all(state.state == "finished" for state in states)

    jobs.wait(counted, seconds=500)
    assert most == 2 and len(results(jobs)) == 6
    assert jobs.train(*command).count("finished, left out: ") == 6
    gone = results(jobs)[3]
    gone.unlink()
    out = jobs.train(*command)  # the same command submits the one that is missing
    assert out.count("finished, left out: ") == 5 and str(gone.parent) in out.replace("/private", "")
    assert main(["jobs", "cancel", jobs.states()[-1].task.job, "--folder", "jobs"]) == 0
    jobs.wait(lambda states: states[-1].state not in ("pending", "running", "completing"))
    main(["jobs", "--folder", "jobs", "--format", "json"])
    states = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert [state["state"] for state in states[:6]].count("finished") == 5 and states[-1]["state"] != "finished"


def test_a_chain_of_extraction_training_and_table(
    jobs: Jobs, tiny_sd: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(ROOT / "tests" / "tiny_study"))
    settings = [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={tiny_shards}", "data.batch_size=8",
        "features.store=stores", "trainer=cpu", "trainer.max_epochs=2", "logger=none",
    ]  # fmt: skip
    out = jobs.submit("table", "tiny", *settings, "seed=0,1", "--parts", "2")
    lines = out.splitlines()
    assert ["extract, 2 tasks" in lines[0], "train, 2 tasks, after" in lines[1], "table, after" in lines[2]] == [
        True
    ] * 3
    states = jobs.finish(seconds=500)
    text = states[-1].task.log.read_text()
    assert "**Tiny (exploratory)**" in text and "raw pixels" in text and len(results(jobs)) == 2
    parts = [state.task.log.read_text() for state in states[:2]]
    assert sorted(part.count("images in ") for part in parts) == [1, 1]
    assert states[0].progress is not None and states[0].progress.what == "extract"


def test_a_failed_stage_takes_what_waits_for_it_out_of_the_queue(jobs: Jobs, tmp_path: Path) -> None:
    damaged = tmp_path / "shards"
    damaged.mkdir()
    source = next(Path(setting.partition("=")[2]) for setting in jobs.settings if setting.startswith("data.path="))
    for path in source.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    first = next(iter(sorted(damaged.glob("train-*.tar"))))
    first.write_bytes(first.read_bytes()[:600])
    jobs.train(f"data.path={damaged}")
    states = jobs.wait(lambda states: not [one for one in states if one.state in ("pending", "running", "completing")])
    assert [state.task.stage.name for state in states] == ["extract", "train"]
    assert (
        states[0].state == "failed" and states[0].reason == "status 2" and first.name in states[0].task.log.read_text()
    )
    assert states[1].state in ("cancelled", "gone")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("cluster.partition=nope", "invalid partition specified: nope"),
        ("cluster.constraint=nope", "Invalid feature specification"),
        ("cluster.memory=9000G", "Memory specification can not be satisfied"),
        ('cluster.options=["--nope=1"]', "unrecognized option '--nope=1'"),
    ],
)
def test_slurms_own_words_are_passed_on(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], setting: str, words: str
) -> None:
    assert main(["submit", "train", *jobs.settings, "cluster=test", setting]) == 2
    err = capsys.readouterr().err
    assert err.startswith("RunFailed: sbatch failed: ") and words in err and "nothing was submitted" in err
    assert not list((jobs.folder / "jobs").glob("*/*"))


def test_the_first_job_of_the_readme(jobs: Jobs) -> None:
    jobs.submit("doctor")
    states = jobs.finish()
    assert "libraries" in states[0].task.log.read_text() and states[0].task.task.run_folder is None


def test_two_submissions_at_once_are_one(jobs: Jobs) -> None:
    import sys

    command = [sys.executable, "-m", "diffprobe", "submit", "train", *jobs.settings, "cluster=test"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [process.communicate(timeout=200) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], texts
    refused = texts[[process.returncode for process in both].index(2)][1]
    assert "in the queue already" in refused and len(jobs.states()) == 1


def test_tasks_that_the_settings_do_not_ask_for_are_refused_on_the_node(jobs: Jobs) -> None:
    """Through a template of one's own: the shipped one starts devices x nodes."""
    path = jobs.folder / "slurm" / "job.sbatch.j2"
    path.parent.mkdir()
    path.write_text(
        (ROOT / "slurm" / "job.sbatch.j2").read_text().replace("srun --kill", "srun --ntasks=2 --overlap --kill")
    )
    (jobs.folder / "slurm" / "job.sbatch.j2").write_text(
        path.read_text().replace("--ntasks-per-node={{ resources.processes }}", "--ntasks-per-node=2")
    )
    jobs.train()
    states = jobs.wait(lambda states: states[-1].state == "failed")
    text = states[-1].task.log.read_text()
    assert "2 processes were started by srun" in text and "trainer.devices=2" in text and not results(jobs)
