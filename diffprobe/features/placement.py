"""Placement of a split during training: mapped from its files, in memory, or on the accelerator."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffprobe.backbones.cell import Cell, parse_pool
from diffprobe.core.errors import ConfigError
from diffprobe.core.memory import free_memory
from diffprobe.features.batch import FeatureTable, concatenate

IN_MEMORY_BYTES = 2 << 30
"""With `placement=auto`, splits up to this size are read into memory; larger ones stay mapped."""


def place_tables(
    tables: Sequence[FeatureTable],
    mode: str,
    *,
    split: str,
    device: torch.device | str = "cpu",
    processes: int = 1,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> list[FeatureTable]:
    """Return the tables of a split by `features.placement`: unchanged (mapped), or read into one table.

    Args:
        mode: auto, memory, mapped or device.
        device: the device of mode `device`.
        processes: number of processes that place the split in the same memory.

    Raises: ConfigError, with the sizes, if the split is larger than the free memory, where that is known.
    """
    size = sum(values.numel() * values.element_size() for table in tables for values in table.features.values())
    if mode == "mapped" or (mode == "auto" and (len(tables) == 1 or size > in_memory_bytes)):
        return list(tables)
    kept_on = torch.device(device if mode == "device" else "cpu")
    if mode != "auto":
        check_fits(size, free_on(kept_on), mode=mode, split=split, device=kept_on, processes=processes)
    return [_join(tables, kept_on)]


def check_fits(size: int, free: int | None, *, mode: str, split: str, device: torch.device, processes: int = 1) -> None:
    """Raise ConfigError for a split that is larger than the free memory.

    Args:
        size, free: bytes; free is None where unknown, then the check passes.
        mode: the value of `features.placement`.
    """
    if free is None or size * processes <= free:
        return
    of_all = f"{_gib(size * processes)} for {processes} processes, " if processes > 1 else ""
    raise ConfigError(
        f"features.placement={mode}: split '{split}' needs {_gib(size)}; {of_all}{_gib(free)} of {device} memory free.",
        fix="features.placement=mapped, or fewer cells",
    )


def free_on(device: torch.device) -> int | None:
    """Return the free bytes of a device, including memory that torch has cached; None if unknown."""
    if device.type == "cpu":
        return free_memory()
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _join(tables: Sequence[FeatureTable], device: torch.device) -> FeatureTable:
    """Concatenate tables cell by cell and shard by shard, so that at most one shard is in memory twice."""
    joined = concatenate([replace(table, features={}) for table in tables])
    return replace(
        joined,
        features={
            cell: _stack([table.features[cell] for table in tables], cell, device) for cell in tables[0].features
        },
        label=joined.label.to(device),
        attributes={name: values.to(device) for name, values in joined.attributes.items()},
    )


def _stack(parts: list[Tensor], cell: str, device: torch.device) -> Tensor:
    is_map = parse_pool(Cell.parse(cell).pool)[0] == "none" and parts[0].ndim > 3
    views = [part.movedim(-3, -1) if is_map else part for part in parts]  # contiguous channels of a position
    out = torch.empty((sum(map(len, parts)), *views[0].shape[1:]), dtype=parts[0].dtype, device=device)
    for target, view in zip(out.split([len(part) for part in parts]), views, strict=True):
        target.copy_(view)
    return out.movedim(-1, -3) if is_map else out
