"""Render the batch script of a stage from `slurm/job.sbatch.j2`.

The template is found like presets: a `slurm/job.sbatch.j2` in the working folder or in $DIFFPROBE_CONFIGS replaces the
shipped one.
"""

import re
import shlex
import sys
from pathlib import Path

from diffprobe.config import search_path
from diffprobe.config.cluster import ClusterConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.terminal import one_line
from diffprobe.launch.plan import Stage

TEMPLATE = "slurm/job.sbatch.j2"
_ODD = re.compile(r"[%\\\"'`$\n\r\t]")


def template_path() -> Path:
    """Return the template: the first one on the search path. Raises: ConfigError if none is found."""
    for root in search_path.roots():
        if (root / TEMPLATE).is_file():
            return root / TEMPLATE
    raise ConfigError(f"{TEMPLATE} is missing.", fix="install diffprobe again")


def render(
    stage: Stage,
    cluster: ClusterConfig,
    *,
    cluster_name: str,
    submission: str,
    folder: Path,
    workdir: Path,
    array_limit: int | None = None,
) -> str:
    """Return the batch script of a stage.

    Args:
        stage: what runs.
        cluster: where it runs.
        cluster_name: name of the cluster's file.
        submission: name of the submission, part of the job's name.
        folder: absolute folder of the submission, for logs, exit statuses and progress.
        workdir: folder in which the command was given.
        array_limit: most tasks of an array at once; None: that of the cluster.

    Raises: ConfigError for a folder that a line of sbatch cannot name, or a template that does not render.
    """
    from jinja2 import FileSystemLoader, StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    if _ODD.search(str(folder)):
        raise ConfigError(
            f"the folder '{folder}' cannot be written in a line of sbatch.",
            "it has one of % \\ \" ' ` $ or white space other than a blank",
            fix="cluster.folder=FOLDER",
        )
    path = template_path()
    environment = SandboxedEnvironment(
        loader=FileSystemLoader(path.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = shlex.quote
    light = bool(cluster.gpus_per_node) and not stage.resources.gpus and cluster.light_partition is not None
    log = folder / f"{stage.name}-{'%A_%a' if len(stage.tasks) > 1 else '%j'}.log"
    try:
        return environment.get_template(path.name).render(
            title=_title(stage),
            cluster=cluster,
            cluster_name=cluster_name,
            partition=cluster.light_partition if light else cluster.partition,
            job_name=job_name(submission, stage),
            log=f'"{log}"' if " " in str(log) else str(log),
            resources=stage.resources,
            tasks=stage.tasks,
            array_limit=cluster.array_limit if array_limit is None else array_limit,
            workdir=str(workdir),
            prefix=str(folder / stage.name),
            command=cluster.command or f"{shlex.quote(sys.executable)} -m diffprobe",
        )
    except TemplateError as error:
        raise ConfigError(f"{search_path.display(path)} cannot be rendered: {error}.") from error


def job_name(submission: str, stage: Stage) -> str:
    """Return the name of a stage's job, which no other submission has."""
    return f"diffprobe-{submission}-{stage.name}"


def _title(stage: Stage) -> str:
    n, first = len(stage.tasks), stage.tasks[0].command
    return f"{n} tasks of diffprobe {first[0]}" if n > 1 else one_line(f"diffprobe {shlex.join(first)}")
