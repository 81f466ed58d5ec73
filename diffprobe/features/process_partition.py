"""The part of an extraction that this process does, from the variables that its launcher sets.

`torchrun` sets RANK and WORLD_SIZE, `srun` sets SLURM_PROCID and SLURM_STEP_NUM_TASKS in each task of a step. Parts
consist of whole shards and need no communication.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from diffprobe.core.errors import ConfigError

_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
"""Variables of torchrun, then of srun; where srun starts torchrun, those of torchrun count the processes."""


@dataclass(frozen=True)
class Share:
    """Part `index` of `count`."""

    index: int = 0
    count: int = 1
    note: str = ""
    """Source of the numbers, or the reason for their absence; empty for a single process."""

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def share_of(environ: Mapping[str, str]) -> Share:
    """Return the part of this process by its environment; the whole if no launcher started several processes.

    The process of a batch script has SLURM_PROCID=0 and SLURM_NTASKS=n without being one of n tasks, so that outside
    of an srun step one process does everything.

    Raises: ConfigError if only one of two variables is set, or they contradict each other.
    """
    for names in _LAUNCHERS:
        given = {name: environ[name] for name in names if name in environ}
        if names[0] == "SLURM_PROCID" and "SLURM_STEP_NUM_TASKS" not in given:
            continue  # not in an srun step
        if given:
            return _share(names, given)
    if environ.get("SLURM_NTASKS", "1") != "1":
        note = f"SLURM_NTASKS={environ['SLURM_NTASKS']}, but this is not an srun step: one process does everything"
        return Share(note=note)
    return Share()


def _share(names: tuple[str, str], given: Mapping[str, str]) -> Share:
    shown = ", ".join(f"{name}={given.get(name, '(not set)')}" for name in names)
    values = [given.get(name, "") for name in names]
    if not all(value.isdecimal() for value in values) or int(values[0]) >= int(values[1]):
        raise ConfigError(f"invalid process numbers in the environment: {shown}.", fix="--process I/N (or 0/1)")
    index, count = map(int, values)
    return Share(index, count, shown if count > 1 else "")
