"""Predictions of a split, collected over batches and processes: each sample once, in the order of keys.

A sample is one row of bytes, so that all heads of a run are gathered together, however many there are.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from diffprobe.core.errors import RunFailed
from diffprobe.probes.predictions import Layout

_ENCODING = ("utf-8", "surrogateescape")


class PredictionCollector:
    """Collects the values of samples on the CPU.

    Args:
        layout: name -> type, and shape for one sample. The same on all processes, also on one without a sample.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = dict(layout)
        self._keys: list[bytes] = []
        self._rows: list[Tensor] = []

    def update(self, keys: Sequence[str], values: Mapping[str, Tensor]) -> None:
        """Add samples.

        Args:
            keys: their keys.
            values: name -> values (samples, ...), for all names of the layout.
        Raises: RunFailed for values of another shape.
        """
        parts = []
        for name, (dtype, shape) in self._layout.items():
            found = values[name].detach()
            if tuple(found.shape) != (len(keys), *shape):
                raise RunFailed(f"'{name}' has shape {list(found.shape)}, expected {[len(keys), *shape]}.")
            whole = torch.empty(found.shape, dtype=dtype).copy_(found)  # `contiguous` keeps odd strides of one sample
            parts.append(whole.reshape(len(keys), -1).view(torch.uint8))
        if len(keys):
            self._keys += [key.encode(*_ENCODING) for key in keys]
            self._rows.append(torch.cat(parts, 1))

    def compute(
        self, gather: Callable[[Tensor], Tensor], device: torch.device | str = "cpu"
    ) -> tuple[tuple[str, ...], dict[str, Tensor]]:
        """Return the keys of all processes in ascending order, and the values of their samples. Collective.

        Args:
            gather: concatenates tensors of equal shape of all processes; the identity in one process.
            device: device on which `gather` works.
        """
        width = sum(_width(dtype, shape) for dtype, shape in self._layout.values())
        rows = torch.cat(self._rows) if self._rows else torch.zeros(0, width, dtype=torch.uint8)
        lengths = torch.tensor([len(key) for key in self._keys], dtype=torch.int64)
        text = bytearray(b"".join(self._keys))
        letters = torch.frombuffer(text, dtype=torch.uint8) if text else torch.zeros(0, dtype=torch.uint8)
        rows, lengths, letters = (_gather_unequal(part, gather, device) for part in (rows, lengths, letters))
        whole, ends = letters.numpy().tobytes(), lengths.cumsum(0).tolist()
        keys = [whole[end - n : end].decode(*_ENCODING) for end, n in zip(ends, lengths.tolist(), strict=True)]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        rows, at, found = rows[torch.tensor(order, dtype=torch.int64)], 0, {}
        for name, (dtype, shape) in self._layout.items():
            step = _width(dtype, shape)
            found[name] = (
                rows[:, at : at + step]
                .clone(memory_format=torch.contiguous_format)
                .view(dtype)
                .reshape(len(keys), *shape)
            )
            at += step
        return tuple(keys[i] for i in order), found


def _width(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()


def _gather_unequal(part: Tensor, gather: Callable[[Tensor], Tensor], device: torch.device | str) -> Tensor:
    """Concatenate tensors that differ in length, in the order of ranks, on the CPU."""
    counts = gather(torch.tensor([len(part)], device=device)).tolist()
    if len(counts) == 1:
        return part
    padded = torch.zeros(max(counts), *part.shape[1:], dtype=part.dtype)
    padded[: len(part)] = part
    whole = gather(padded.to(device)).cpu().unflatten(0, (len(counts), -1)) if max(counts) else padded[None]
    return torch.cat([whole[rank, :n] for rank, n in enumerate(counts)]) if max(counts) else part
