"""The description of a SLURM cluster, `configs/cluster/NAME.yaml`: what jobs may ask for, what their script does first.

`diffprobe submit ... cluster=NAME cluster.time=1:00:00` chooses a file and replaces single keys of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from diffprobe.config.compose import compose_group
from diffprobe.config.parse import parse
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError

GROUP = "cluster"
"""The group of presets; it belongs to `diffprobe submit` and is part of no run."""
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?", re.ASCII)
_MEMORY = re.compile(r"[1-9]\d*[KMGT]?", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_WORD = re.compile(r"[^\s'\"\\$`;#%]+")
_OURS = (
    "account", "array", "chdir", "constraint", "cpus-per-task", "dependency", "error", "gpus", "gpus-per-node",
    "gpus-per-task", "gres", "job-name", "mem", "nodes", "no-requeue", "ntasks", "ntasks-per-node", "open-mode",
    "output", "parsable", "partition", "qos", "requeue", "signal", "test-only", "time", "wait", "wrap",
)  # fmt: skip
"""Options of sbatch that the template writes, or that would change what `submit` reads from sbatch."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """One SLURM cluster, as far as the jobs of one user need it."""

    partition: str | None = None
    """Partition; None: the cluster's default."""
    light_partition: str | None = None
    """Partition of jobs without GPUs (tables) where `gpus_per_node` is more than 0; None: `partition`."""
    account: str | None = None
    """Account that is charged; None: the user's default."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have: a100, or "a100|h100"."""
    nodes: int = 1
    """Most nodes of one job."""
    gpus_per_node: int = 0
    """GPUs of a node that one job may use."""
    gpu_type: str | None = None
    """Type of the GPUs, as in --gres=gpu:TYPE:2; None: any."""
    cpus_per_node: int | None = None
    """Cores of a node that one job may use; None: not checked before SLURM does."""
    cpus_per_task: int = 1
    """Cores of each process, the loader's workers included."""
    memory: str | None = None
    """Memory per node: 32G; None: the cluster's default."""
    time: str = "24:00:00"
    """Time limit: hours:minutes:seconds, days-hours, or any other form of sbatch. In YAML, in quotes."""
    signal_seconds: int = 120
    """Seconds before the time limit at which a run saves a checkpoint and goes back into the queue; 0: never."""
    requeue: bool = True
    """Put jobs back into the queue after preemption, a failed node, or the time limit."""
    max_restarts: int = 3
    """Restarts of a job without any progress after which it stops."""
    array_limit: int = 8
    """Most tasks of a job array that run at once."""
    modules: tuple[str, ...] = ()
    """Modules to load, in order: cuda/12.4."""
    setup: tuple[str, ...] = ()
    """Lines of bash before the command: source /path/venv/bin/activate."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables to set."""
    container: str | None = None
    """What runs a command in a container: apptainer exec --nv image.sif."""
    command: str | None = None
    """How diffprobe is started on a node; None: by the Python that submits, `PYTHON -m diffprobe`."""
    options: tuple[str, ...] = ()
    """Further options of sbatch: --exclusive, --mail-type=END."""
    folder: str = "runs/jobs"
    """Folder of the submissions: scripts, logs and records, on a file system that all nodes see."""

    def __post_init__(self) -> None:
        at_least(1, nodes=self.nodes, cpus_per_node=self.cpus_per_node, cpus_per_task=self.cpus_per_task)
        at_least(1, array_limit=self.array_limit, max_restarts=self.max_restarts)
        at_least(0, gpus_per_node=self.gpus_per_node, signal_seconds=self.signal_seconds)
        for name in ("partition", "light_partition", "account", "qos", "constraint", "gpu_type"):
            value = getattr(self, name)
            if value is not None and not _WORD.fullmatch(value):
                raise ConfigError(f"{name}={value!r} is not one word.", "a line of the script would end or go on there")
        if self.memory is not None and not _MEMORY.fullmatch(self.memory):
            raise ConfigError(f"memory={self.memory} is not an amount.", "allowed: 512M, 32G, 1T; a number is in MB")
        seconds = seconds_of(self.time)
        if self.signal_seconds >= seconds:
            raise ConfigError(
                f"signal_seconds={self.signal_seconds} is not before the end of time={self.time} ({seconds} s)."
            )
        for name, lines in (("setup", self.setup), ("modules", self.modules), ("options", self.options)):
            if any("\n" in line or "\0" in line for line in lines):
                raise ConfigError(f"{name} has an entry of several lines.", fix="one entry per line")
        odd = [name for name in self.environment if not _VARIABLE.fullmatch(name)]
        if odd:
            raise ConfigError(f"environment: '{odd[0]}' is not the name of a variable.")
        for option in self.options:
            self._check_option(option)

    @staticmethod
    def _check_option(option: str) -> None:
        match = re.match(r"--([a-z][a-z-]*)(=|$)", option)
        if match is None:
            raise ConfigError(
                f"options: '{option}' is not an option of sbatch in its long form.", "allowed: --NAME or --NAME=VALUE"
            )
        if match[1] in _OURS:
            key = {"mem": "memory", "gres": "gpus_per_node", "signal": "signal_seconds"}.get(match[1], match[1])
            raise ConfigError(
                f"options: --{match[1]} is written by the template.",
                "processes are trainer.devices x trainer.num_nodes of the run",
                f"other keys of cluster, for example {key}, stand for the other options",
            )


def seconds_of(time: str) -> int:
    """Return the seconds of a time limit in one of sbatch's forms. Raises: ConfigError.

    >>> [seconds_of(text) for text in ("90", "1:30", "24:00:00", "2-0", "1-12:30", "1-0:0:1")]
    [5400, 90, 86400, 172800, 131400, 86401]
    """
    match = _TIME.fullmatch(time)
    if match is None:
        raise ConfigError(
            f"time={time} is not a time limit.",
            "allowed: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes:seconds",
        )
    a, b, c = (int(match[name] or 0) for name in "abc")
    if match["days"] is not None:
        seconds = int(match["days"]) * 86400 + a * 3600 + b * 60 + c
    elif match["c"] is not None:
        seconds = a * 3600 + b * 60 + c
    else:
        seconds = a * 60 + b
    if seconds == 0:
        raise ConfigError(
            f"time={time} is not a time limit.", "a job has one: at least a second; SLURM would read 0 as unlimited"
        )
    return seconds


def split_cluster(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the settings of the cluster (`cluster=NAME`, `cluster.KEY=VALUE`) from the others."""
    ours = [setting for setting in settings if re.match(rf"{GROUP}[.=]", setting)]
    return ours, [setting for setting in settings if setting not in ours]


def load_cluster(settings: Sequence[str]) -> tuple[str, ClusterConfig]:
    """Load the file that `cluster=NAME` chooses, with the keys that `cluster.KEY=VALUE` replaces.

    Returns: the name and the validated description.
    Raises: ConfigError without a name, with several, for an unknown one (with the nearest), and with every error of the
        file.
    """
    names = list(dict.fromkeys(text.partition("=")[2] for text in settings if text.startswith(f"{GROUP}=")))
    keys = [text for text in settings if not text.startswith(f"{GROUP}=")]
    if len(names) > 1:
        raise ConfigError(f"more than one cluster is named: {', '.join(names)}.")
    tree, origin = compose_group(GROUP, names[0] if names else None, keys)
    return names[0], parse(ClusterConfig, tree[GROUP], origin, at=GROUP)
