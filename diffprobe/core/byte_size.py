"""Sizes in bytes: of folders, and as text. Standard library only."""

import os
import stat
from pathlib import Path


def size(n_bytes: float) -> str:
    """Format a number of bytes.

    >>> size(1_234_567), size(512)
    ('1.2 MB', '512 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; links are not followed, unreadable folders count nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            found = os.lstat(os.path.join(place, name))
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total
