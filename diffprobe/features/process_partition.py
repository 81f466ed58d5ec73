"""Which part of the work is this process's: asked for, or read from what started it. Owns those variables' meaning.

`torchrun` sets RANK and WORLD_SIZE, `srun` sets SLURM_PROCID and SLURM_STEP_NUM_TASKS in each task of a step. Parts are
made by shards and need no communication, so that any starter will do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from diffprobe.core.errors import ConfigError

_STARTERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
"""First is torchrun: where it was started by srun, its own numbers are the finer ones."""


@dataclass(frozen=True)
class Share:
    """Part `index` of `count`."""

    index: int = 0
    count: int = 1
    note: str = ""
    """Where the numbers come from, or why there are none, for people; empty if there is nothing to say."""

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def share_of(environ: Mapping[str, str]) -> Share:
    """Return the part that the environment gives to this process; all of it where nothing started several.

    A batch script's own process has SLURM_PROCID=0 and SLURM_NTASKS=n without being one of n: outside of an srun step
    it does everything, which is slow at worst, where a part would be too little.

    Raises: ConfigError if only one of two variables is set, or they do not fit together.
    """
    for names in _STARTERS:
        given = {name: environ[name] for name in names if name in environ}
        if names[0] == "SLURM_PROCID" and "SLURM_STEP_NUM_TASKS" not in given:
            continue  # no step
        if given:
            return _share(names, given)
    if environ.get("SLURM_NTASKS", "1") != "1":
        note = f"SLURM_NTASKS={environ['SLURM_NTASKS']}, but this is no srun step: one process does everything"
        return Share(note=note)
    return Share()


def _share(names: tuple[str, str], given: Mapping[str, str]) -> Share:
    said = ", ".join(f"{name}={given.get(name, '(not set)')}" for name in names)
    values = [given.get(name, "") for name in names]
    if not all(value.isdecimal() for value in values) or int(values[0]) >= int(values[1]):
        raise ConfigError(f"the environment names no part: {said}.", fix="say it: --process I/N, or --process 0/1")
    index, count = map(int, values)
    return Share(index, count, said if count > 1 else "")
