"""On a real SLURM: runs that a signal, the time limit or another job interrupts end as if nothing had happened."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffprobe.cli.main import main
from diffprobe.core.digest import digest_file
from diffprobe.launch import slurm
from diffprobe.training.checkpoint_file import verify_checkpoint
from tests.slurm.conftest import Jobs, outcome, trained_on

pytestmark = pytest.mark.slow
EPOCHS, SAMPLES = 6, 16


@pytest.fixture(scope="module")
def whole() -> dict[str, object]:
    """Outcomes of undisturbed runs, by settings; each is run once."""
    return {}


def undisturbed(jobs: Jobs, whole: dict[str, object], *settings: str) -> object:
    key = " ".join(settings)
    if key not in whole:
        jobs.write_cluster()
        jobs.train(*settings, "output=undisturbed")
        jobs.finish()
        (result,) = (jobs.folder / "undisturbed").rglob("result.json")
        whole[key] = outcome(result)
        jobs.log.unlink()
    return whole[key]


def assert_undisturbed(jobs: Jobs, expected: object, *, starts: int) -> None:
    """Check result, samples and W&B run of the one run in the folder `runs`."""
    (result,) = (jobs.folder / "runs").rglob("result.json")
    assert outcome(result) == expected
    steps = jobs.steps()
    assert {step["start"] for step in steps} == set(range(starts))
    counts = trained_on(steps)
    assert set(counts.values()) == {1} and len(counts) == EPOCHS * SAMPLES
    wandb = [path.name.rpartition("-")[2] for path in result.parent.glob("wandb/offline-run-*")]
    assert len(wandb) == starts and len(set(wandb)) == 1


def in_step(jobs: Jobs, n: int) -> None:
    """Wait until the run is in its n-th step."""
    jobs.wait(lambda states: len(jobs.steps()) >= n)


def test_usr1(jobs: Jobs, whole: dict[str, object]) -> None:
    expected = undisturbed(jobs, whole, "logger=wandb")
    jobs.write_cluster(seconds=0.5)
    jobs.train("logger=wandb")
    in_step(jobs, 6)
    job = jobs.states()[-1].task.job
    slurm.call("scancel", "--signal=USR1", job)
    jobs.wait(lambda states: states[-1].state == "pending")
    jobs.write_cluster()
    jobs.finish()
    assert_undisturbed(jobs, expected, starts=2)
    log = jobs.states()[-1].task.log.read_text()
    assert f"job {job} is requeued" in log and log.count("result: ") == 1


def assert_survives_usr1(jobs: Jobs, whole: dict[str, object], *settings: str, step: int) -> None:
    """Train as a job that gets SIGUSR1 in a step, and compare it with an undisturbed one after its restart."""
    expected = undisturbed(jobs, whole, *settings)
    jobs.write_cluster(seconds=0.5)
    jobs.train(*settings)
    in_step(jobs, step)
    slurm.call("scancel", "--signal=USR1", jobs.states()[-1].task.job)
    jobs.finish()
    assert_undisturbed(jobs, expected, starts=2)


def test_usr1_before_diffprobe_has_started(jobs: Jobs, whole: dict[str, object]) -> None:
    expected = undisturbed(jobs, whole, "logger=wandb")
    jobs.write_cluster(start=60.0)
    jobs.train("logger=wandb")
    jobs.wait(lambda states: bool(_processes(states[-1].task.job)))
    slurm.call("scancel", "--signal=USR1", jobs.states()[-1].task.job)
    states = jobs.finish()
    assert "SIGUSR1 before diffprobe had started; the job is requeued." in states[-1].task.log.read_text()
    assert {step["start"] for step in jobs.steps()} == {1}
    (result,) = (jobs.folder / "runs").rglob("result.json")
    assert outcome(result) == expected


def test_two_processes_at_usr1(jobs: Jobs, whole: dict[str, object]) -> None:
    assert_survives_usr1(jobs, whole, "logger=wandb", "trainer.devices=2", "data.batch_size=2", step=12)
    assert {step["rank"] for step in jobs.steps()} == {0, 1}


def test_time_limit(jobs: Jobs, whole: dict[str, object]) -> None:
    """SLURM sends the signal up to a minute before the time that was asked for."""
    expected = undisturbed(jobs, whole, "logger=wandb")
    jobs.write_cluster(seconds=4.0)
    jobs.train("logger=wandb", "cluster.time=2:00", "cluster.signal_seconds=30", "cluster.max_restarts=20")
    jobs.finish(seconds=1200)  # on a busy machine a start alone takes a minute of the two
    starts = 1 + max(step["start"] for step in jobs.steps())
    assert starts >= 2
    assert_undisturbed(jobs, expected, starts=starts)


@pytest.mark.parametrize("lead", [60, 0], ids=["USR1", "SIGTERM"])
def test_preempted_by_a_higher_partition(jobs: Jobs, whole: dict[str, object], lead: int) -> None:
    """With `--signal` this SLURM sends SIGUSR1 to what it preempts, else SIGTERM."""
    expected = undisturbed(jobs, whole, "logger=wandb")
    jobs.write_cluster(seconds=0.5)
    jobs.train("logger=wandb", f"cluster.signal_seconds={lead}")
    in_step(jobs, 6)
    other = ["sbatch", "--parsable", "--partition=high", "--cpus-per-task=2", "--mem=500", "--output=/dev/null"]
    made = subprocess.run([*other, "--wrap=sleep 5"], capture_output=True, text=True, check=True)
    try:
        jobs.wait(lambda states: states[-1].state == "pending", seconds=60)
        jobs.finish()
    finally:
        subprocess.run(["scancel", made.stdout.strip()], check=False)
    assert_undisturbed(jobs, expected, starts=2)


def test_one_task_of_an_array_at_usr1(jobs: Jobs, whole: dict[str, object]) -> None:
    expected = undisturbed(jobs, whole, "logger=wandb")
    jobs.write_cluster(seconds=0.5)
    jobs.train("logger=wandb", "output=runs,others")
    jobs.wait(lambda states: len(jobs.steps()) >= 12)
    array = jobs.states()[-1].task.job.partition("_")[0]  # the undisturbed run may be a job of this folder, too
    slurm.call("scancel", "--signal=USR1", f"{array}_0")
    logs = {state.task.job: state.task.log for state in jobs.finish()}
    (other,) = (jobs.folder / "others").rglob("result.json")
    assert outcome(other) == expected
    (result,) = (jobs.folder / "runs").rglob("result.json")
    assert outcome(result) == expected
    assert f"job {array}_0 is requeued" in logs[f"{array}_0"].read_text()
    assert "requeued" not in logs[f"{array}_1"].read_text()
    assert set(trained_on(jobs.steps()).values()) == {2}  # once in each of the two runs


def test_live_features_with_a_worker_at_usr1(jobs: Jobs, whole: dict[str, object]) -> None:
    """The signal reaches the worker of the loader as well."""
    assert_survives_usr1(jobs, whole, "logger=wandb", "features.source=live", "data.num_workers=1", step=6)


def test_an_extraction_at_usr1(jobs: Jobs) -> None:
    def stored(name: str) -> dict[str, str]:
        (store,) = (jobs.folder / name).iterdir()
        files = [path for path in store.rglob("*") if path.is_file() and path.suffix != ".json"]
        return {path.relative_to(store).as_posix(): digest_file(path) for path in files}

    jobs.submit("extract", *jobs.settings, "features.store=whole")
    jobs.finish()
    jobs.write_cluster(seconds=3.0)
    jobs.submit("extract", *jobs.settings, "features.store=cut")
    jobs.wait(lambda states: (jobs.folder / "cut").is_dir() and len(list((jobs.folder / "cut").glob("*/*/"))) >= 2)
    slurm.call("scancel", "--signal=USR1", jobs.states()[-1].task.job)
    states = jobs.finish()
    assert stored("cut") == stored("whole") and states[-1].progress is not None
    log = states[-1].task.log.read_text()
    assert "no training step is running" in log and log.count("to write: ") == 2


def test_a_job_that_starts_again_and_again_stops_with_the_reason(jobs: Jobs) -> None:
    jobs.write_cluster(seconds=60.0)
    jobs.train("cluster.max_restarts=2")

    def starts() -> int:
        found = list((jobs.folder / "runs").rglob("restarts.json"))
        return len(json.loads(found[0].read_text())["starts"]) if found else 0

    for n in (1, 2):
        jobs.wait(lambda states: starts() == n)  # noqa: B023
        slurm.call("scontrol", "requeue", jobs.states()[-1].task.job)
    states = jobs.wait(lambda states: states[-1].state == "failed")
    text = states[-1].task.log.read_text()
    assert states[-1].reason == "status 2" and "restarted 2 times without progress: each start found 0 done" in text


def test_a_killed_process_ends_the_others(jobs: Jobs) -> None:
    jobs.write_cluster(seconds=1.0)
    jobs.train("trainer.devices=2", "data.batch_size=2")
    in_step(jobs, 4)
    victim = next(pid for pid, n in _processes(jobs.states()[-1].task.job).items() if n == "1")
    subprocess.run(["kill", "-KILL", victim], check=True)
    began = time.monotonic()
    states = jobs.wait(lambda states: states[-1].state not in ("running", "completing"), seconds=60)
    assert states[-1].state == "failed" and time.monotonic() - began < 40  # KillWait of the cluster is ten seconds
    assert not list((jobs.folder / "runs").rglob("result.json"))


def test_a_node_that_fails(jobs: Jobs, whole: dict[str, object]) -> None:
    """The node goes down as if its power were cut; when it is back, the job continues from the last checkpoint."""
    expected = undisturbed(jobs, whole, "logger=wandb")
    jobs.write_cluster(seconds=0.5)
    jobs.train("logger=wandb", "trainer.checkpoint_every_steps=2")
    in_step(jobs, 6)
    job, node = jobs.states()[-1].task.job, slurm.call("sinfo", "-h", "-o", "%n").strip()
    steps = subprocess.run(["pgrep", "-f", rf"slurmstepd: \[{job}\."], capture_output=True, text=True).stdout.split()
    daemon = (Path(os.environ["SLURM_CONF"]).parent / "slurmd.pid").read_text().strip()
    subprocess.run(["kill", "-KILL", daemon, *steps, *_processes(job)], check=True)
    slurm.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    jobs.wait(lambda states: states[-1].state == "pending")
    subprocess.run(["slurmd"], check=True)  # its registration brings the node back (ReturnToService=2)
    jobs.finish()
    (result,) = (jobs.folder / "runs").rglob("result.json")
    assert outcome(result) == expected
    counts = trained_on(jobs.steps())
    assert len(counts) == EPOCHS * SAMPLES and set(counts.values()) <= {1, 2}  # twice: steps after the last checkpoint
    assert {step["start"] for step in jobs.steps()} == {0, 1}
    assert len({path.name.rpartition("-")[2] for path in result.parent.glob("wandb/offline-run-*")}) == 1


def test_a_full_disk_at_a_checkpoint(
    jobs: Jobs,
    whole: dict[str, object],
    mounted: Callable[[int], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The job fails with the reason, the last good checkpoint stays, and a second job continues from it."""
    settings = ["logger=none", "probe.params.n_latents=8000", "trainer.checkpoint_every_steps=2"]
    expected = undisturbed(jobs, whole, *settings)
    size = next((jobs.folder / "undisturbed").rglob("last.ckpt")).stat().st_size
    output = mounted(int(size * 1.5) >> 20) / "runs"  # one checkpoint has room, and not a second beside it
    jobs.train(*settings, f"output={output}")
    states = jobs.wait(lambda states: states[-1].state not in ("pending", "running", "completing"))
    job = states[-1].task.job
    assert states[-1].state == "failed" and states[-1].reason == "status 2", jobs.shown()
    text = states[-1].task.log.read_text()
    assert text.count("RunFailed: the checkpoint '") == 1 and "No space left on device" in text
    (checkpoint,) = output.rglob("last.ckpt")
    verify_checkpoint(checkpoint)
    assert {path.name for path in checkpoint.parent.iterdir()} == {"inputs.json", "last.ckpt", "restarts.json"}
    capsys.readouterr()
    assert main(["jobs", "--folder", "jobs"]) == 0
    shown = capsys.readouterr().out
    assert f"{job} " in shown and "failed" in shown and "status 2; RunFailed: the checkpoint '" in shown
    assert "No space left on device" in shown
    mounted(400)
    assert main(["jobs", "resubmit", job, "--folder", "jobs"]) == 0
    jobs.wait(
        lambda states: states[-1].task.job != job and states[-1].state not in ("pending", "running", "completing")
    )
    assert jobs.states()[-1].state == "finished", jobs.shown()
    (result,) = output.rglob("result.json")
    assert outcome(result) == expected
    counts = trained_on(jobs.steps())
    assert len(counts) == EPOCHS * SAMPLES and set(counts.values()) <= {1, 2}  # twice: steps after the last good one
    assert main(["jobs", "--folder", "jobs"]) == 0 and "RunFailed" not in capsys.readouterr().out


def _processes(job: str) -> dict[str, str]:
    """Return the processes of a job that run diffprobe, each with its number in the job."""
    listed = subprocess.run(["pgrep", "-f", "watched.py train"], capture_output=True, text=True).stdout.split()
    environ = {pid: _environ(pid) for pid in listed}
    return {
        pid: found["SLURM_PROCID"]
        for pid, found in environ.items()
        if found.get("SLURM_STEP_ID") and found.get("SLURM_JOB_ID") == job
    }


def _environ(pid: str) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if "=" in entry)
