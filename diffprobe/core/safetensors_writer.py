"""Write a safetensors file from tensors that arrive in parts, because no process has them whole."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from diffprobe.core.errors import RunFailed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Layout: TypeAlias = "Mapping[str, tuple[torch.dtype, tuple[int, ...]]]"
"""Name -> type and shape of a tensor."""
_NAMES = {"float64": "F64", "float32": "F32", "int64": "I64", "bool": "BOOL"}
"""Name of a type in torch -> name of it in the header."""
_ALIGNED = 8
"""The tensors begin at a multiple of this, in bytes, as those of the library do."""


def write_safetensors(path: Path | str, layout: Layout, parts: Callable[[str], Iterable["Tensor"]]) -> None:
    """Write tensors, one part after the other; the file is that of `safetensors.torch.save_file`.

    Args:
        path: the file.
        layout: the tensors: float32, float64, int64 or bool.
        parts: called with each name once, in the order of the layout: yields the rows of that tensor, from the first
            on, in any number of parts; a tensor without axes in one.

    Raises: RunFailed for parts that are more or less than the tensor or of another type; OSError.
    """
    header, ends, end = {}, {}, 0
    # the library puts wide types first, so that each tensor is aligned
    for name in sorted(layout, key=lambda name: (-layout[name][0].itemsize, name)):
        dtype, shape = layout[name]
        n = dtype.itemsize
        for side in shape:
            n *= side
        header[name] = {
            "dtype": _NAMES[str(dtype).removeprefix("torch.")],
            "shape": list(shape),
            "data_offsets": [end, end + n],
        }
        ends[name], end = (end, end + n), end + n
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, (dtype, shape) in layout.items():
            first, last = ends[name]
            file.seek(start + first)
            for part in parts(name):
                if part.dtype != dtype or part.shape[1:] != shape[1:]:
                    raise RunFailed(
                        f"a part of '{name}' is {part.dtype} {list(part.shape)}, the whole {dtype} {list(shape)}."
                    )
                file.write(part.detach().cpu().contiguous().numpy().tobytes())
            if file.tell() != start + last:
                raise RunFailed(f"the parts of '{name}' have {file.tell() - start - first} of {last - first} bytes.")
