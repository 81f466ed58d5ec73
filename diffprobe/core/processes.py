"""What a launcher started: how many processes, and which of them this one is. Every verb reads it here.

torchrun, srun, mpirun and Lightning each number their processes by variables of their own. An allocation alone (the
script of `sbatch --ntasks=4`, a shell of `salloc`) starts one process, whatever it reserves. Standard library only.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from diffprobe.core.errors import ConfigError

_TORCHRUN = ("RANK", "WORLD_SIZE")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
_PMI = ("PMI_RANK", "PMI_SIZE")
_SPECIAL_STEPS = 2**32 - 16
"""Step ids from here on are those of SLURM itself: the batch script and the interactive shell."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes that were started together, and the place of this one among them."""

    launcher: str = ""
    """torchrun, srun, mpirun or lightning; empty for a single process without a launcher."""
    rank: int = 0
    """Number of this process, from 0."""
    count: int = 1
    """Number of processes that were started."""
    local_rank: int = 0
    """Number of this process on its node, from 0."""
    node: int = 0
    """Number of the node, from 0."""
    nodes: int | None = None
    """Number of nodes; None where the launcher does not tell, or where they have unequal numbers of processes."""
    shown: str = ""
    """The variables that were read, for messages."""
    note: str = ""
    """Why one process does everything, although an allocation reserves several tasks."""

    def __str__(self) -> str:
        return f"{self.count} processes were started by {self.launcher} ({self.shown})"


def started(environ: Mapping[str, str]) -> Processes:
    """Return what was started, by the variables of the launcher.

    Where srun starts torchrun or mpirun, those of the inner launcher count.

    Raises: ConfigError if the variables of a launcher are incomplete or contradict each other.
    """
    if "RANK" not in environ and ("LOCAL_RANK" in environ or "NODE_RANK" in environ):
        return _lightning(environ)
    if any(name in environ for name in _TORCHRUN):
        return _torchrun(environ)
    if any(name in environ for name in _OPEN_MPI):
        rank, count, shown = _numbers(_OPEN_MPI, environ)
        return Processes(launcher="mpirun", rank=rank, count=count, shown=shown)
    tasks = _step_tasks(environ)
    if "PMI_SIZE" in environ and environ["PMI_SIZE"] != tasks:  # srun --mpi=pmi2 sets it too, to its own number
        rank, count, shown = _numbers(_PMI, environ)
        return Processes(launcher="mpirun", rank=rank, count=count, shown=shown)
    if tasks is not None:
        return _srun({**environ, "SLURM_STEP_NUM_TASKS": tasks})
    reserved = environ.get("SLURM_NTASKS", "1")
    if reserved != "1":
        return Processes(note=f"SLURM_NTASKS={reserved}, but this is not an srun step: one process does everything")
    return Processes()


def is_main_process(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether this is the main process; nothing is validated.

    RANK counts over all processes. Without it, no other variable is enough alone: all children of an interactive Slurm
    shell have SLURM_PROCID=0, and the first process of every node has LOCAL_RANK=0.

    Args:
        environ: the variables; None for those of this process.
    """
    known = os.environ if environ is None else environ
    names = ("RANK",) if "RANK" in known else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", _OPEN_MPI[0], _PMI[0])
    return all(known.get(name, "0") == "0" for name in names)


def require_one_process(what: str, environ: Mapping[str, str] | None = None) -> None:
    """Refuse to run where a launcher started several processes. Raises: ConfigError, on every one of them.

    Args:
        what: what runs in one process, for the message: "diffprobe demo".
        environ: the variables; None for those of this process.
    """
    found = started(os.environ if environ is None else environ)
    if found.count > 1:
        raise ConfigError(
            f"{what} runs in one process, but {found}.",
            "each of them would do the same work and write the same files",
            fix=one_of(found),
        )


def one_of(found: Processes) -> str:
    """Return how one process is started by the same launcher, for error messages."""
    ways = {
        "srun": "start one: srun --ntasks=1 diffprobe ...",
        "torchrun": "start it without torchrun: diffprobe ...",
        "mpirun": "start it without mpirun: diffprobe ...",
    }
    return ways.get(found.launcher, "trainer.devices=1 trainer.num_nodes=1")


def _lightning(environ: Mapping[str, str]) -> Processes:
    """Read what Lightning gives the processes that it starts, or a script that numbers them in the same way."""
    local, node = _number("LOCAL_RANK", environ, "0"), _number("NODE_RANK", environ, "0")
    if "LOCAL_RANK" not in environ:  # the start of a run on one of several nodes, before Lightning starts the others
        return Processes(node=node, shown=_shown(("NODE_RANK",), environ))
    if "WORLD_SIZE" not in environ:
        if local and "NODE_RANK" not in environ:
            raise _invalid(("LOCAL_RANK", "WORLD_SIZE"), environ)
        # between two trainings of one script, for which Lightning forgets their number; or a script that names a device
        return Processes(launcher="lightning" if "NODE_RANK" in environ else "", local_rank=local, node=node)
    count, names = _number("WORLD_SIZE", environ), ("NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
    if local >= count:
        raise _invalid(names, environ)
    # the number over all nodes is not known before the Trainer is; only that it is not 0 matters here
    rank = 0 if local == node == 0 else max(local, min(node, count - 1))
    return Processes(
        launcher="lightning", rank=rank, count=count, local_rank=local, node=node, shown=_shown(names, environ)
    )


def _torchrun(environ: Mapping[str, str]) -> Processes:
    rank, count, shown = _numbers(_TORCHRUN, environ)
    local = _number("LOCAL_RANK", environ, str(rank))
    per_node = _number("LOCAL_WORLD_SIZE", environ, str(count))
    return Processes(
        launcher="torchrun",
        rank=rank,
        count=count,
        local_rank=local,
        node=_number("GROUP_RANK", environ, "0"),
        nodes=count // per_node if per_node and count % per_node == 0 else None,
        shown=shown,
    )


def _srun(environ: Mapping[str, str]) -> Processes:
    rank, count, shown = _numbers(_SRUN, environ)
    nodes = _number("SLURM_STEP_NUM_NODES", environ, environ.get("SLURM_NNODES", "1"))
    uniform = re.fullmatch(r"\d+(\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", str(count)))
    return Processes(
        launcher="srun",
        rank=rank,
        count=count,
        local_rank=_number("SLURM_LOCALID", environ, str(rank)),
        node=_number("SLURM_NODEID", environ, "0"),
        nodes=nodes if uniform and nodes and count % nodes == 0 else None,
        shown=shown,
    )


def _step_tasks(environ: Mapping[str, str]) -> str | None:
    """Return the number of tasks of the srun step that this process belongs to, or None outside of a step.

    The process of a batch script has SLURM_PROCID=0 and SLURM_NTASKS=n without being one of n tasks.
    """
    if "SLURM_STEP_NUM_TASKS" in environ:
        return environ["SLURM_STEP_NUM_TASKS"]
    step = environ.get("SLURM_STEP_ID", "")
    in_step = step.isdecimal() and int(step) < _SPECIAL_STEPS
    if in_step or environ.get("SLURM_PROCID", "0") != "0":
        return environ.get("SLURM_NTASKS", "1")
    return None


def _numbers(names: tuple[str, str], environ: Mapping[str, str]) -> tuple[int, int, str]:
    """Return rank and count. Raises: ConfigError unless both are given and rank < count."""
    values = [environ.get(name, "") for name in names]
    if not all(value.isdecimal() for value in values) or int(values[0]) >= int(values[1]):
        raise _invalid(names, environ)
    return int(values[0]), int(values[1]), _shown(names, environ)


def _number(name: str, environ: Mapping[str, str], default: str = "") -> int:
    value = environ.get(name, default)
    if not value.isdecimal():
        raise _invalid((name,), environ)
    return int(value)


def _shown(names: tuple[str, ...], environ: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={environ.get(name, '(not set)')}" for name in names)


def _invalid(names: tuple[str, ...], environ: Mapping[str, str]) -> ConfigError:
    return ConfigError(
        f"invalid process numbers in the environment: {_shown(names, environ)}.",
        "they are set by torchrun, srun, mpirun or Lightning, and count from 0",
        fix=f"unset {' '.join(names)}; diffprobe extract also takes --process I/N",
    )
