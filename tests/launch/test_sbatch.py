"""The batch script, as a whole, and by bash."""

import subprocess
from pathlib import Path

import pytest

from diffprobe.config.cluster import ClusterConfig
from diffprobe.core.errors import ConfigError
from diffprobe.launch.plan import Resources, Stage, Task
from diffprobe.launch.sbatch import render, template_path

GOLDEN = Path(__file__).parent / "golden"
CLUSTER = ClusterConfig(
    partition="gpu", light_partition="cpu", account="lab", qos="normal", constraint="a100|h100",
    nodes=2, gpus_per_node=4, gpu_type="a100", cpus_per_task=8, memory="64G", time="1-12",
    modules=("cuda/12.4",), setup=("source venv/bin/activate",), environment={"HF_HOME": "/data/it's here"},
    container="apptainer exec --nv image.sif", command="python -m diffprobe", options=("--exclusive",),
)  # fmt: skip
FOUR = Task(command=("train", "experiment=a/b", "features.prompt='a dog, red'"), work="a")
ROWS = tuple(Task(command=("train", f"seed={i}"), work=str(i)) for i in range(3))
STAGES = {
    "gpu": Stage(name="train", tasks=(FOUR,), resources=Resources(nodes=2, processes=4, gpus=4)),
    "array": Stage(name="train", tasks=ROWS),
}


def script(stage: Stage, cluster: ClusterConfig = CLUSTER, folder: str = "/jobs/it") -> str:
    where = {"folder": Path(folder), "workdir": Path("/my work")}
    return render(stage, cluster, cluster_name="lab", submission="it", **where)


@pytest.mark.parametrize("name", STAGES)
def test_the_script_is_the_golden_one(name: str) -> None:
    cluster = CLUSTER if name == "gpu" else ClusterConfig(command="diffprobe", requeue=False)
    found, path = script(STAGES[name], cluster), GOLDEN / f"{name}.sbatch"
    assert found == path.read_text(), f"if the new one is right: write it to {path}"


def test_bash_runs_the_arguments_as_they_were_given(tmp_path: Path) -> None:
    """Without SLURM: a false srun prints what it is to start, one argument per line."""
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@" "$OMP_NUM_THREADS"; exit 3\n')
    (tmp_path / "srun").chmod(0o755)
    words = ("train", "features.prompt='a dog, it\\'s $red'", "x y", "*")
    stage = Stage(name="train", tasks=(ROWS[0], Task(command=words, work="w")))
    cluster = ClusterConfig(command="diffprobe", cpus_per_task=3)
    text = render(stage, cluster, cluster_name="x", submission="it", folder=tmp_path, workdir=tmp_path)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, env=environ)
    assert done.returncode == 3, done.stderr
    expected = ["--kill-on-bad-exit=1", "--cpus-per-task=3", "diffprobe", *words, "3"]
    assert done.stdout.splitlines() == expected
    assert (tmp_path / "train-1.status").read_text() == "3\n"


def test_a_signal_before_the_start_puts_the_job_back_into_the_queue(tmp_path: Path) -> None:
    """SIGUSR1 ends a process that has no handler yet, with status 138; at most `max_restarts` times."""
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 138\n")
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    cluster = ClusterConfig(command="diffprobe", max_restarts=2)
    text = render(STAGES["array"], cluster, cluster_name="x", submission="it", folder=tmp_path, workdir=tmp_path)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "9"}
    array = {**environ, "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1"}
    for given, job in ((environ, "9"), (array, "8_1")):
        for status in (0, 0, 138):
            done = subprocess.run(["bash"], input=text, capture_output=True, text=True, env=given)
            assert done.returncode == status, done.stderr
            assert done.stdout.startswith(f"requeue {job}\n") == (status == 0)
        assert (tmp_path / f"train-{job[2:] or 0}.status").read_text() == "138\n"


def test_a_stage_without_gpus_goes_to_the_light_partition() -> None:
    assert "--partition=cpu" in script(STAGES["array"]) and "--gres" not in script(STAGES["array"])
    assert "--partition=gpu" in script(STAGES["gpu"])


def test_a_folder_that_sbatch_would_misread_is_refused_and_a_blank_is_quoted() -> None:
    assert '#SBATCH --output="/my jobs/train-%j.log"' in script(STAGES["gpu"], folder="/my jobs")
    for odd in ("/a%b", "/a\nb", "/a'b", "/a$b"):
        with pytest.raises(ConfigError, match="cannot be written in a line of sbatch"):
            script(STAGES["gpu"], folder=odd)


def test_a_template_of_ones_own_replaces_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert template_path().is_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job.sbatch.j2").write_text("{{ cluster.time }} {{ workdir | quote }}\n")
    assert script(STAGES["gpu"]) == "1-12 '/my work'\n"
    (tmp_path / "slurm" / "job.sbatch.j2").write_text("{{ nothing.there }}")
    with pytest.raises(ConfigError, match=r"job.sbatch.j2(.*) cannot be rendered: 'nothing' is undefined"):
        script(STAGES["gpu"])
