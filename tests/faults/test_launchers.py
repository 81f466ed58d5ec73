"""Several processes of one launcher: refused on every rank, or one training with one result."""

import os
import signal
import subprocess
import sys

import pytest

from tests.faults.conftest import ROOT, is_alive, wait_for
from tests.pretend_slurm import JOB, pretend_job

pytestmark = [pytest.mark.slow, pytest.mark.ddp]


def together(settings, environs, act=lambda processes: None):
    """Run a command in several processes at once; return status, output and errors of each.

    `act` is called when they have started.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "diffprobe", "train", *settings],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**clean, **environ},
        )
        for environ in environs
    ]  # fmt: skip
    act(processes)
    found = [process.communicate(timeout=600) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def tasks(n):
    """The variables of the tasks of `srun --ntasks=n` in a batch job."""
    step = {**JOB, "SLURM_NTASKS": str(n), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(n)}
    return [{**step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(n)]


def test_tasks_that_nobody_asked_for_are_refused_on_every_rank(run, run_settings, tmp_path):
    for status, out, err in together([*run_settings, f"output={tmp_path}/out"], tasks(2)):
        assert status == 2 and out == "" and "Traceback" not in err
        assert "2 processes were started by srun" in err and "trainer.devices=2 trainer.num_nodes=1" in err
    assert not (tmp_path / "out").exists()


def test_tasks_that_were_asked_for_train_one_probe(run, run_settings, tmp_path):
    settings = [*run_settings, "data.batch_size=2", "trainer.devices=2", f"output={tmp_path}/out"]
    first, second = together(settings, tasks(2))
    assert first[0] == second[0] == 0, (first[2], second[2])
    assert first[1].splitlines()[-1].startswith("result: ") and second[1] == ""
    assert len(list((tmp_path / "out").rglob("result.json"))) == 1
    assert run.outcome(tmp_path / "out") is not None


def test_the_script_of_a_batch_job_with_several_tasks_trains_alone(run, run_settings, tmp_path):
    script = {**JOB, "SLURM_NTASKS": "4"}  # sbatch --ntasks=4, without srun
    shell = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "study"}  # salloc
    for name, environ in (("script", script), ("shell", shell)):
        ((status, out, err),) = together([*run_settings, f"output={tmp_path}/{name}"], [environ])
        assert status == 0 and "result: " in out, err
    assert run.outcome(tmp_path / "script") == run.outcome(tmp_path / "shell")


def test_a_shell_of_an_allocation_starts_the_processes_of_a_run_itself(run, run_settings, tmp_path):
    shell = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "study"}
    settings = [*run_settings, "data.batch_size=2", "trainer.devices=2", f"output={tmp_path}/out"]
    ((status, out, err),) = together(settings, [shell])
    assert status == 0 and out.count("result: ") == 1, err


def test_a_requeue_signal_to_all_tasks_saves_once_and_changes_no_number(run, run_settings, tmp_path):
    """The tasks are in different steps when it arrives; saving is collective."""
    settings = [*run_settings, "data.batch_size=2", "trainer.devices=2"]
    together([*settings, f"output={tmp_path}/whole"], tasks(2))
    requeued = pretend_job(tmp_path / "slurm", (environ := {}).__setitem__, lambda name: None)
    environs = [{**task, "PATH": environ["PATH"]} for task in tasks(2)]

    def send(processes):
        assert wait_for(lambda: any((tmp_path / "out").rglob("last.ckpt")), seconds=300)
        for process in processes:
            process.send_signal(signal.SIGUSR1)

    first, second = together([*settings, f"output={tmp_path}/out"], environs, send)
    assert first[0] == second[0] == 143, (first[2], second[2])
    assert first[2].count("SIGUSR1: ") == 1 and "SIGUSR1" not in second[2]
    assert requeued.read_text().splitlines()[0] == "requeue 17"
    first, second = together([*settings, f"output={tmp_path}/out"], environs)
    assert first[0] == second[0] == 0, (first[2], second[2])
    assert run.outcome(tmp_path / "out") == run.outcome(tmp_path / "whole")


def test_sigterm_to_the_main_process_ends_those_that_it_started(run, run_settings, tmp_path):
    settings = [*run_settings, "data.batch_size=2", "trainer.devices=2", "trainer.max_epochs=100000"]
    children = []

    def send(processes):
        assert wait_for(lambda: any((tmp_path / "out").rglob("last.ckpt")), seconds=300)
        found = subprocess.check_output(["pgrep", "-P", str(processes[0].pid)], text=True)
        children.extend(int(pid) for pid in found.split())
        processes[0].send_signal(signal.SIGTERM)

    ((status, out, err),) = together([*settings, f"output={tmp_path}/out"], [{}], send)
    assert status == 143 and err.splitlines()[-1].startswith("terminated (SIGTERM)") and out == ""
    assert children and wait_for(lambda: not any(is_alive(pid) for pid in children), seconds=60)
    assert not list((tmp_path / "out").rglob("result.json"))
