"""Look at what diffprobe runs on: versions, devices, folders, Weights & Biases, SLURM. Nothing is changed or sent."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module, metadata
from pathlib import Path

from diffprobe import __version__
from diffprobe.config.schema import FeaturesConfig, LoggerConfig, RunConfig
from diffprobe.core.byte_size import folder_bytes, size
from diffprobe.core.errors import DiffprobeError
from diffprobe.core.memory import free_memory

LIBRARIES = ("torch", "lightning", "diffusers", "transformers", "tokenizers", "safetensors", "huggingface-hub",
             "webdataset", "hydra-core", "numpy", "pillow")  # fmt: skip
"""Packages that nothing runs without."""
_IMPORTS = {"huggingface-hub": "huggingface_hub", "hydra-core": "hydra", "pillow": "PIL"}
_TIMEOUT = 10
"""Seconds that `sinfo` may take; a controller that does not answer makes it wait."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: the line's head, for example `device`.
        text: what was found.
        stops: whether diffprobe cannot run because of it.
        fix: the next step of the user, where there is one.
    """

    topic: str
    text: str
    stops: bool = False
    fix: str | None = None


def examine() -> list[Finding]:
    """Return what was found, topic by topic. A check that fails itself is a finding, not an error."""
    found: list[Finding] = []
    for check in (versions, devices, caches, folders, wandb, slurm):
        found += _guarded(check)
    return found


def _guarded(check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except DiffprobeError as error:
        return [Finding(check.__name__, f"{type(error).__name__}: {error.what}", stops=True, fix=error.fix)]
    except Exception as error:  # a broken driver or library raises anything
        return [Finding(check.__name__, f"could not be examined: {type(error).__name__}: {error}")]


def versions() -> list[Finding]:
    """Return the versions of diffprobe, Python, and the libraries; each is imported."""
    found = [
        Finding("diffprobe", f"{__version__}, in {Path(__file__).resolve().parents[1]}"),
        Finding("python", f"{platform.python_version()} ({sys.executable}), {platform.platform()}"),
    ]
    lines = []
    for name in LIBRARIES:
        try:
            version = metadata.version(name)
            import_module(_IMPORTS.get(name, name))
            lines.append(f"{name} {version}")
        except Exception as error:  # a damaged library can raise anything when it is imported
            what = "is not installed" if isinstance(error, metadata.PackageNotFoundError) else "cannot be imported"
            found.append(
                Finding("library", f"{name} {what}: {type(error).__name__}: {error}", stops=True, fix="pip install .")
            )
    return [*found, Finding("libraries", ", ".join(lines))]


def devices() -> list[Finding]:
    """Return the device that `auto` takes, all accelerators, threads, bfloat16, and free memory."""
    import torch

    from diffprobe.backbones.device import choose_device, has_bfloat16

    found = [Finding("device", f"backbone.device=auto takes {choose_device('auto')}; torch {torch.__version__}")]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(i)
        text = f"cuda:{i} {torch.cuda.get_device_name(i)}, {size(free)} of {size(total)} free"
        found.append(Finding("device", f"{text}; bfloat16: {'yes' if torch.cuda.is_bf16_supported() else 'no'}"))
    limit = os.environ.get("OMP_NUM_THREADS")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    set_by = f"OMP_NUM_THREADS={limit}" if limit else "OMP_NUM_THREADS is not set"
    found.append(Finding("threads", f"{torch.get_num_threads()} of torch, {allowed} processors allowed; {set_by}"))
    slow = "no instructions for it: far slower than float32"
    found.append(Finding("bfloat16", f"on this processor: {'yes' if has_bfloat16() else slow}"))
    left = free_memory()
    return [*found, Finding("memory", "unknown" if left is None else f"{size(left)} free for this process")]


def caches() -> list[Finding]:
    """Return the caches with their sizes, and whether offline mode is on."""
    from huggingface_hub import constants

    from diffprobe.backbones.hub import offline_variables
    from diffprobe.core.cache_folder import cache_root

    found = [
        Finding("cache", f"{name}: {path}, {size(folder_bytes(path)) if path.is_dir() else 'not there yet'}")
        for name, path in (("hub", Path(constants.HF_HUB_CACHE)), ("converted single files", cache_root()))
    ]
    offline = offline_variables()
    text = f"offline: {', '.join(offline)} is set" if offline else "online: models may be downloaded"
    return [*found, Finding("hub", text)]


def folders() -> list[Finding]:
    """Return whether the folders that diffprobe writes can be written, with the free space of their disks."""
    from huggingface_hub import constants

    from diffprobe.core.cache_folder import cache_root

    output = next(field.default for field in fields(RunConfig) if field.name == "output")
    needed = {"output": Path(str(output)), "features.store": Path(FeaturesConfig.store)}
    optional = {"hub cache": Path(constants.HF_HUB_CACHE), "diffprobe's cache": cache_root()}
    settings = {
        "output": "output=FOLDER",
        "features.store": "features.store=FOLDER",
        "hub cache": "HF_HUB_CACHE=FOLDER",
    }
    found = []
    for name, path in {**needed, **optional}.items():
        fault, space = _write_fault(path)
        text = f"{name}: {path.absolute()}"
        if fault is None:
            found.append(Finding("folder", f"{text}, can be written, {size(space)} free"))
        else:
            fix = settings.get(name, "DIFFPROBE_CACHE=FOLDER")
            found.append(Finding("folder", f"{text} cannot be written: {fault}", stops=name in needed, fix=fix))
    return found


def _write_fault(path: Path) -> tuple[str | None, int]:
    """Try to write in a folder, or in the nearest parent that exists; return what is wrong, and the free bytes."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"diffprobe")
            file.flush()
        return None, shutil.disk_usage(place).free
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror or error} ('{place}')", 0


def wandb() -> list[Finding]:
    """Return version, mode and login of Weights & Biases. Keys are never read out."""
    try:
        version = metadata.version("wandb")
    except metadata.PackageNotFoundError:
        return [Finding("wandb", "not installed; logger=csv and logger=none work", fix="pip install wandb")]
    from diffprobe.training.loggers import logged_in, wandb_mode

    login = "login unknown"
    try:
        login = "logged in" if logged_in() else "not logged in"
        mode = wandb_mode(LoggerConfig(kind="wandb"))
    except DiffprobeError as error:
        return [Finding("wandb", f"{version}, {login}; logger=wandb is refused: {error.what}", fix=error.fix)]
    fix = None if login == "logged in" else "wandb login; offline runs are sent later by wandb sync"
    return [Finding("wandb", f"{version}, {login}; logger=wandb runs {mode}", fix=fix)]


def slurm() -> list[Finding]:
    """Return whether SLURM is there, the job that this is, and the partitions."""
    job = os.environ.get("SLURM_JOB_ID")
    found = [Finding("slurm", f"inside job {job}")] if job else []
    program = shutil.which("sinfo")
    if program is None:
        return found or [Finding("slurm", "not found (no sinfo)")]
    command = [program, "--noheader", "--format=%P %a, %D nodes, time limit %l, %G"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [*found, Finding("slurm", f"sinfo does not answer: {type(error).__name__}")]
    if done.returncode:
        return [*found, Finding("slurm", f"sinfo failed: {' '.join(done.stderr.split())[:200]}")]
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
    lines = [line.replace(", (null)", ", no GPU") for line in lines]  # sinfo's word for a node without such resources
    return [*found, *(Finding("slurm", f"partition {line}") for line in lines or ["none"])]
