"""The part of this process: torchrun's numbers, those of an srun step, or everything."""

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.features.process_partition import share_of

STEP = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environ", "part", "note"),
    [
        ({}, "0/1", ""),
        ({"RANK": "1", "WORLD_SIZE": "3"}, "1/3", "RANK=1, WORLD_SIZE=3"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "0/1", ""),
        (STEP, "2/4", "SLURM_PROCID=2, SLURM_STEP_NUM_TASKS=4"),
        ({**STEP, "RANK": "9", "WORLD_SIZE": "32"}, "9/32", "RANK=9, WORLD_SIZE=32"),  # torchrun started by srun
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, "0/1", ""),
    ],
)
def test_the_part_that_the_environment_names(environ, part, note):
    share = share_of(environ)
    assert (str(share), share.note) == (part, note)


def test_a_batch_script_outside_of_a_step_does_everything_with_a_note():
    share = share_of({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "17"})
    assert (share.index, share.count) == (0, 1)
    assert "SLURM_NTASKS=4" in share.note and "not an srun step" in share.note


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"SLURM_STEP_NUM_TASKS": "2"},
    ],
)
def test_half_an_environment_is_refused(environ):
    with pytest.raises(ConfigError, match="process numbers") as caught:
        share_of(environ)
    assert "--process I/N" in str(caught.value)
