"""A pretended SLURM: the variables of a batch job, and an `scontrol` that notes its arguments."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

JOB = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


def pretend_job(folder: Path, set_variable: Callable[..., object], remove_variable: Callable[..., object]) -> Path:
    """Make this process, or the environment of another one, that of a batch job.

    Args:
        folder: where the false `scontrol` is written.
        set_variable, remove_variable: setter and remover of variables.

    Returns: the file in which `scontrol` lists its arguments, one call a line.
    """
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            remove_variable(name)
    for name, value in JOB.items():
        set_variable(name, value)
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol.txt\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    set_variable("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder / "scontrol.txt"
