"""What was started and what was asked agree, or every process is refused with the settings that fit."""

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities import rank_zero as fabric_rank_zero
from lightning.pytorch.utilities import rank_zero

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.training.launch import cluster_environment
from diffprobe.training.trainer import make_trainer, quiet
from tests.core.test_processes import BATCH, CHILD, MPI, STEP, TORCHRUN

SALLOC = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "study"}
FOUR = {**BATCH, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_ID": "2"}
"""srun -n 4 on one node."""


def environment(environ, **settings):
    return cluster_environment(TrainerConfig(**settings), environ)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("environ", [{}, BATCH, SALLOC, {**FOUR, "SLURM_STEP_NUM_TASKS": "1"}])
def test_one_process_trains_alone_or_starts_the_others_whatever_is_reserved(environ, devices):
    assert type(environment(environ, devices=devices)) is LightningEnvironment


def test_processes_that_were_started_and_asked_for_find_each_other():
    ports = set()
    for rank in range(4):
        found = environment({**FOUR, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}, devices=4)
        assert (found.world_size(), found.global_rank(), found.local_rank(), found.node_rank()) == (4, rank, rank, 0)
        assert found.creates_processes_externally and found.main_address == "127.0.0.1"
        ports.add(found.main_port)
    other = environment({**FOUR, "SLURM_STEP_ID": "3"}, devices=4)
    assert len(ports) == 1 and other.main_port not in ports  # two steps of a job may share a node
    nodes = environment({**STEP, "SLURM_STEP_NODELIST": "gpu[07-08]"}, devices=4, num_nodes=2)
    assert (nodes.world_size(), nodes.global_rank(), nodes.node_rank(), nodes.main_address) == (8, 5, 1, "gpu07")
    torchrun = environment({**TORCHRUN, "MASTER_ADDR": "a", "MASTER_PORT": "29500"}, devices=2, num_nodes=2)
    assert (torchrun.main_address, torchrun.main_port, torchrun.global_rank()) == ("a", 29500, 3)
    assert type(environment(CHILD, devices=2)) is LightningEnvironment


@pytest.mark.parametrize(
    ("environ", "settings", "words"),
    [
        (FOUR, {}, r"4 processes were started by srun(.|\n)*ask for 1(.|\n)*trainer.devices=4 trainer.num_nodes=1"),
        (FOUR, {}, "srun --ntasks=1"),
        (FOUR, {"devices": 2}, r"ask for 2(.|\n)*trainer.devices=4"),
        (STEP, {"devices": 8}, r"ask for 8(.|\n)*trainer.devices=4 trainer.num_nodes=2"),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "5,3"}, {"devices": 8}, "unequal numbers"),
        (TORCHRUN, {}, r"torchrun(.|\n)*trainer.devices=2 trainer.num_nodes=2"),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, {"devices": 2}, "trainer.devices=1"),
        (TORCHRUN, {"devices": 2, "num_nodes": 2}, "MASTER_ADDR"),
        (MPI, {}, "mpirun"),
        (MPI, {"devices": 4}, "torchrun or srun"),
        (CHILD, {}, "trainer.devices=2"),
        ({}, {"num_nodes": 2}, "srun --nodes=2 --ntasks-per-node=1"),
        (BATCH, {"num_nodes": 2, "devices": 2}, "srun --nodes=2 --ntasks-per-node=2"),
    ],
)
def test_processes_that_do_not_fit_are_refused_on_every_rank(environ, settings, words):
    numbers = [name for name in ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK") if environ.get("SLURM_STEP_NUM_TASKS")]
    for rank in ("0", "1"):
        with pytest.raises(ConfigError, match=words):
            environment({**environ, **dict.fromkeys(numbers[:1], rank)}, **settings)


def test_the_trainer_reads_no_other_variables(tmp_path, monkeypatch):
    for utilities in (fabric_rank_zero, rank_zero):  # the Trainer of rank 3 sets it for the whole process
        monkeypatch.setattr(utilities.rank_zero_only, "rank", 0)
    for name, value in SALLOC.items():
        monkeypatch.setenv(name, value)
    with quiet():
        trainer = make_trainer(TrainerConfig(accelerator="cpu"), run_dir=tmp_path)
        assert (trainer.world_size, trainer.global_rank) == (1, 0)
        monkeypatch.setenv("SLURM_PROCID", "0")
        assert make_trainer(TrainerConfig(accelerator="cpu"), run_dir=tmp_path).world_size == 1
        for name, value in {**FOUR, "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match="4 processes were started by srun"):
            make_trainer(TrainerConfig(accelerator="cpu"), run_dir=tmp_path)
        trainer = make_trainer(TrainerConfig(accelerator="cpu", devices=4), run_dir=tmp_path)
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank) == (4, 3, 3)
