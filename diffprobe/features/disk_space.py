"""The size of a store before it is written, and whether the disk has enough space.

Sizes are computed from the plan of the backbone alone, before any weights are loaded.
"""

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffprobe.backbones.cell import parse_pool
from diffprobe.backbones.plan import ReadPlan
from diffprobe.core.byte_size import size
from diffprobe.core.errors import RunFailed
from diffprobe.features.manifest import ShardEntry

_TEXT_BYTES = 512
"""Allowance for a sample's key, caption and labels in `samples.json`."""
_FILE_BYTES = 8192
"""Allowance for a file's header and its last block."""


@dataclass(frozen=True)
class Need:
    """The files that will be written below one folder."""

    folder: Path
    n_samples: int
    sample_bytes: int
    """Bytes of one sample in the tensor files."""
    n_files: int

    @property
    def n_bytes(self) -> int:
        """Total bytes, with an allowance for texts and file ends."""
        return self.n_samples * (self.sample_bytes + _TEXT_BYTES) + self.n_files * _FILE_BYTES


def features_need(folder: Path, plan: ReadPlan, shards: Sequence[ShardEntry]) -> Need:
    """Return the space that the features of some shards need."""
    n_files = len(shards) * (len(plan.cells) + 1)
    return Need(folder, sum(shard.n for shard in shards), sample_bytes(plan), n_files)


def latents_need(folder: Path, plan: ReadPlan, shards: Sequence[ShardEntry]) -> Need:
    """Return the space that the VAE latents of some shards need."""
    return Need(folder, sum(shard.n for shard in shards), 4 * math.prod(plan.spec.latent_shape), 2 * len(shards))


def sample_bytes(plan: ReadPlan) -> int:
    """Return the bytes of one sample's pooled features in float32, all cells together."""
    kind, number = parse_pool(plan.pool)
    draws = plan.draws if plan.keep_draws else 1
    places = {"none": None, "tokens": number, "grid": number * number}.get(kind, 1)
    sizes = {tap.path: tap.channels * (math.prod(tap.size) if places is None else places) for tap in plan.taps}
    return sum(4 * draws * sizes[cell.tap] for cell in plan.cells)


def check_space(needs: Sequence[Need]) -> int:
    """Compare the needed with the free space of each disk, and return the free bytes of the first folder.

    The folders need not exist; the disk is that of the nearest one above.

    Raises: RunFailed with sizes, free space and folder.
    """
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        by_disk.setdefault(os.stat(_above(need.folder)).st_dev, []).append(need)
    for group in by_disk.values():
        total, free = sum(need.n_bytes for need in group), _free(group[0].folder)
        if total > free:
            raise RunFailed(
                f"{size(total)} are needed, but '{group[0].folder}' has {size(free)} left.",
                *(f"{n.n_samples:,} samples of {n.sample_bytes:,} bytes in '{n.folder}'" for n in group),
                fix="choose another disk with features.store=FOLDER, read fewer taps and timesteps, or pool them",
            )
    return _free(needs[0].folder)


def _free(folder: Path) -> int:
    return shutil.disk_usage(_above(folder)).free


def _above(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
