"""The processes of a training run: what a launcher started against what the settings ask for. The one rule of both.

They agree, or the run is refused on every process, with the settings that fit: Lightning would train several times in
one folder, wait for processes that nobody starts, or guess from variables of SLURM.
"""

from collections.abc import Mapping

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.processes import Processes, one_of, started

_PORTS = 15000, 16000
"""First port, and number of ports, for the meeting of the tasks of one srun step."""


class LaunchedProcesses(ClusterEnvironment):
    """What Lightning asks about processes that torchrun or srun started.

    Args:
        found: the processes.
        address: host name of the main process.
        port: port on which it waits for the others.
    """

    def __init__(self, found: Processes, *, address: str, port: int) -> None:
        super().__init__()
        self._found, self._address, self._port = found, address, port

    @property
    def creates_processes_externally(self) -> bool:
        """Whether somebody else than Lightning starts the processes: yes."""
        return True

    @property
    def main_address(self) -> str:
        """Host name of the main process."""
        return self._address

    @property
    def main_port(self) -> int:
        """Port on which the main process waits."""
        return self._port

    @staticmethod
    def detect() -> bool:
        """Whether Lightning should choose this class by itself: no."""
        return False

    def world_size(self) -> int:
        """Return the number of processes."""
        return self._found.count

    def set_world_size(self, size: int) -> None:
        """Do nothing: the launcher has decided."""

    def global_rank(self) -> int:
        """Return the number of this process."""
        return self._found.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the launcher has decided."""

    def local_rank(self) -> int:
        """Return the number of this process on its node."""
        return self._found.local_rank

    def node_rank(self) -> int:
        """Return the number of this node."""
        return self._found.node


def cluster_environment(config: TrainerConfig, environ: Mapping[str, str]) -> ClusterEnvironment:
    """Return what Lightning reads its processes from: those that a launcher started, or those it starts itself.

    One process may start the others on its node (`trainer.devices`), also in the script of a batch job that reserves
    several tasks.

    Raises: ConfigError if the launcher started other processes than the settings ask for, or started them in a way in
        which they cannot find each other.
    """
    found = started(environ)
    asked = config.devices * config.num_nodes
    if found.launcher == "mpirun" and found.count > 1:
        raise _refused(config, found, "training does not run under mpirun", "torchrun or srun; or without mpirun")
    if found.launcher == "lightning":
        if found.count not in (1, asked):  # 1: Lightning forgets the number after a training
            raise _refused(config, found, _differ(config), f"trainer.devices={found.count}")
        return LightningEnvironment()
    if found.count == 1 and not (found.launcher == "torchrun" and asked > 1):
        if config.num_nodes > 1 and "NODE_RANK" not in environ:
            raise ConfigError(
                f"trainer.num_nodes={config.num_nodes}, but nothing started processes on other nodes.",
                fix=f"srun --nodes={config.num_nodes} --ntasks-per-node={config.devices} diffprobe train ...",
            )
        return LightningEnvironment()
    if found.nodes is None:
        raise _refused(
            config, found, "its nodes have unequal numbers of processes", "srun --ntasks-per-node=N, with equal nodes"
        )
    per_node = found.count // found.nodes
    if (per_node, found.nodes) != (config.devices, config.num_nodes):
        fits = f"trainer.devices={per_node} trainer.num_nodes={found.nodes}"
        raise _refused(config, found, _differ(config), f"{fits}; or {one_of(found)}")
    return LaunchedProcesses(found, address=_address(found, environ), port=_port(found, environ))


def _differ(config: TrainerConfig) -> str:
    return f"the settings ask for {config.devices * config.num_nodes}"


def _refused(config: TrainerConfig, found: Processes, what: str, fix: str) -> ConfigError:
    return ConfigError(
        f"{found}, but {what}.",
        f"given: trainer.devices={config.devices} trainer.num_nodes={config.num_nodes}",
        "nothing was loaded or written",
        fix=fix,
    )


def _address(found: Processes, environ: Mapping[str, str]) -> str:
    if "MASTER_ADDR" in environ:
        return environ["MASTER_ADDR"]
    names = ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")
    nodes = next((environ[name] for name in names if environ.get(name)), "")
    if found.launcher == "srun" and nodes and found.nodes != 1:
        return SLURMEnvironment.resolve_root_node_address(nodes)
    if found.nodes != 1:
        raise ConfigError(
            f"{found} on {found.nodes} nodes, and the environment does not name the main one.", fix="set MASTER_ADDR"
        )
    return "127.0.0.1"


def _port(found: Processes, environ: Mapping[str, str]) -> int:
    if environ.get("MASTER_PORT", "").isdecimal():
        return int(environ["MASTER_PORT"])
    if found.launcher != "srun":
        raise ConfigError(f"{found}, and MASTER_PORT is not set.", fix="start them with torchrun, which sets it")
    step = [environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    job, number = (int(value) if value.isdecimal() else 0 for value in step)
    first, count = _PORTS
    return first + (job * 31 + number) % count  # the steps of a job on one node meet at different ports
