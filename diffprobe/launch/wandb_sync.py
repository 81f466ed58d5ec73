"""Find what W&B runs that were offline have left below a folder, for the upload from a machine with a network."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from diffprobe.core.errors import RunFailed

_AT_ONCE = 200
"""Paths in one call of `wandb sync`, within what a command line holds."""


def offline_runs(root: Path | str, *, include_synced: bool = False) -> list[Path]:
    """List the folders of offline runs below a folder, in the order of their start times.

    Args:
        include_synced: also those that `wandb sync` has sent; it leaves a file `.synced` in them.

    Raises: RunFailed if the folder does not exist.
    """
    root = Path(root)
    if not root.is_dir():
        raise RunFailed(f"the folder '{root}' does not exist.", fix="name the folder of your runs: --results DIR")
    found = []
    for folder, folders, _ in os.walk(root):
        if Path(folder).name != "wandb":
            continue
        for name in folders:
            if name.startswith("offline-run-"):
                path = Path(folder) / name
                if any(path.glob("run-*.wandb")) and (include_synced or not any(path.glob("run-*.wandb.synced"))):
                    found.append(path)
        folders[:] = []
    return sorted(found, key=lambda path: (path.name, path))


def send(runs: Sequence[Path]) -> int:
    """Send runs by `wandb sync`, which prints what it does. Returns: its exit status, 0 if all were sent."""
    for start in range(0, len(runs), _AT_ONCE):
        part = [str(path) for path in runs[start : start + _AT_ONCE]]
        done = subprocess.run([sys.executable, "-m", "wandb", "sync", *part], check=False)
        if done.returncode != 0:
            return done.returncode
    return 0
