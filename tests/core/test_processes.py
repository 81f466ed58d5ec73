"""What a launcher started, from the variables that each of them sets."""

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.core.processes import is_main_process, require_one_process, started

BATCH = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
"""The script of `sbatch --ntasks=4`, outside of srun."""
STEP = {
    **BATCH,
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"}
CHILD = {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}
MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("environ", "launcher", "rank", "count", "local_rank", "node", "nodes"),
    [
        ({}, "", 0, 1, 0, 0, None),
        (TORCHRUN, "torchrun", 3, 4, 1, 1, 2),
        (STEP, "srun", 5, 8, 1, 1, 2),
        ({**STEP, **TORCHRUN}, "torchrun", 3, 4, 1, 1, 2),  # torchrun started by srun
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "5,3"}, "srun", 5, 8, 1, 1, None),
        (BATCH, "", 0, 1, 0, 0, None),  # one process, whatever is reserved
        ({**BATCH, "SLURM_STEP_ID": "4294967291"}, "", 0, 1, 0, 0, None),  # SLURM's own step of the batch script
        ({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4"}, "", 0, 1, 0, 0, None),  # a shell of salloc
        ({**BATCH, "SLURM_STEP_ID": "3", "SLURM_PROCID": "2"}, "srun", 2, 4, 0, 0, 1),  # an old version of srun
        ({**BATCH, **CHILD}, "lightning", 1, 2, 1, 0, None),  # started by the process of the script
        ({**CHILD, "LOCAL_RANK": "0"}, "lightning", 0, 2, 0, 0, None),
        ({**CHILD, "LOCAL_RANK": "0", "NODE_RANK": "1"}, "lightning", 1, 2, 0, 1, None),
        ({"LOCAL_RANK": "0"}, "", 0, 1, 0, 0, None),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, "lightning", 0, 1, 1, 0, None),  # after a training, in its child
        (MPI, "mpirun", 2, 4, 0, 0, None),
        ({**MPI, **STEP}, "mpirun", 2, 4, 0, 0, None),  # mpirun starts its daemons by srun
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "mpirun", 1, 2, 0, 0, None),
        ({**STEP, "PMI_RANK": "5", "PMI_SIZE": "8"}, "srun", 5, 8, 1, 1, 2),  # srun --mpi=pmi2
    ],
)
def test_each_launcher_is_read(
    environ: dict[str, str], launcher: str, rank: int, count: int, local_rank: int, node: int, nodes: int | None
) -> None:
    found = started(environ)
    assert (found.launcher, found.rank, found.count) == (launcher, rank, count)
    assert (found.local_rank, found.node, found.nodes) == (local_rank, node, nodes)


def test_an_allocation_without_a_step_is_noted() -> None:
    assert "SLURM_NTASKS=4" in started(BATCH).note and not started(STEP).note


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"LOCAL_RANK": "1"},
        {"LOCAL_RANK": "2", "WORLD_SIZE": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {**TORCHRUN, "LOCAL_RANK": "x"},
    ],
)
def test_incomplete_or_contradicting_numbers_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="process numbers"):
        started(environ)


@pytest.mark.parametrize(
    ("environ", "fix"), [(STEP, "srun --ntasks=1"), (TORCHRUN, "without torchrun"), (MPI, "without mpirun")]
)
def test_what_runs_in_one_process_is_refused_on_every_one(environ: dict[str, str], fix: str) -> None:
    with pytest.raises(ConfigError, match=rf"diffprobe table runs in one process(.|\n)*{fix}"):
        require_one_process("diffprobe table", environ)
    require_one_process("diffprobe table", BATCH)


@pytest.mark.parametrize(
    ("environment", "main"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun inside of a task
        ({"RANK": "3", "LOCAL_RANK": "0"}, False),  # first process of a second node
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, False),  # a child of an interactive Slurm shell
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),  # the launch on a second node, before it has children
        ({"NODE_RANK": "0"}, True),
        ({"SLURM_PROCID": "2"}, False),  # srun starts every process itself
        ({"SLURM_PROCID": "0"}, True),
        ({"OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"SLURM_PROCID": "4", "LOCAL_RANK": "0"}, False),  # on a second node, by a script that names the GPU so
    ],
)
def test_main_process_by_environment(environment: dict[str, str], main: bool) -> None:
    assert is_main_process(environment) is main
