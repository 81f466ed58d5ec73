"""Checkpoints on disk: read safetensors into a network, and compute digests of their content.

Reads safetensors and JSON only; pickles are never read. Which files are read is in `weight_files.py`, how a
checkpoint is found in `locate.py`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffprobe.backbones.base import Checkpoint
from diffprobe.backbones.network_size import require_memory
from diffprobe.backbones.part_config import CONFIG, SAVE_AGAIN, network_settings, read_part_config
from diffprobe.backbones.weight_files import require_files, weight_files
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.core.foreign import naming
from diffprobe.core.safetensors_file import open_safetensors

DENOISERS = ("unet", "transformer")
"""Parts of a pipeline whose weights can be replaced."""

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_digests: dict[tuple[str, int, int], str] = {}


def denoiser_source(checkpoint: Checkpoint, part: str) -> tuple[Path, Path]:
    """Return where the denoiser's config and its weights are.

    Args:
        part: the part's name in the pipeline, `unet` or `transformer`.
    Returns: the folder of the config.json in use, and the folder or file of the weights. A folder given as
        `denoiser_weights` has its own config.json; a file is used with the checkpoint's. A pipeline without a folder
        for the part may have it next to its index, which diffusers supports as well.
    """
    folder, replaced = checkpoint.part(part), checkpoint.denoiser_weights
    if not folder.is_dir() and (folder.parent / "config.json").is_file():
        folder = folder.parent
    if replaced is None:
        return folder, folder
    return (replaced if replaced.is_dir() else folder), replaced


def read_config(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    """Read the config.json of one part; for the denoiser, the one that belongs to the loaded weights.

    Returns: the keys that have an effect, see `read_part_config`.
    Raises: WeightsMissing, WeightsMismatch.
    """
    return read_part_config(config_file(checkpoint, part))


def config_file(checkpoint: Checkpoint, part: str) -> Path:
    """Return the config.json of one part, the one that belongs to the loaded weights. Raises: WeightsMissing."""
    folder = denoiser_source(checkpoint, part)[0] if part in DENOISERS else checkpoint.part(part)
    path = folder / CONFIG
    if not path.exists():
        raise WeightsMissing(
            f"checkpoint '{checkpoint.name}' has no {part}/config.json.",
            *([] if folder.name == part else [f"looked for: {path}"]),
            fix=SAVE_AGAIN,
        )
    return path


def load_tensors(
    network: nn.Module,
    folder: Path,
    *,
    dtype: torch.dtype,
    expected: Collection[str] | None = None,
    leave: Sequence[str] = (),
    kept: Collection[str] = (),
) -> dict[str, tuple[Path, str]]:
    """Read the weights of a network on the meta device; weights of pruned modules stay on disk.

    Args:
        network: the network, pruned to what is needed; its parameters become real.
        folder: the part's folder, or one safetensors file.
        dtype: what floating-point weights are converted to, however they are stored.
        expected: parameter names of the whole network; any other stored name means weights of another network.
            None skips this check.
        leave: modules whose weights stay on disk too; `read_places` reads them.
        kept: see `read_places`.
    Returns: of each tensor of the network its file, and its name in it.
    Raises: WeightsMissing, WeightsMismatch.
    """
    wanted = network.state_dict()
    places = match_tensors(network, folder, expected=expected)
    read = {name: place for name, place in places.items() if not name.startswith(tuple(f"{one}." for one in leave))}
    require_memory(sum(wanted[name].numel() for name in read) * dtype.itemsize, folder)
    network.load_state_dict(read_places(read, wanted, dtype=dtype, kept=kept), assign=True, strict=not leave)
    return places


def read_places(
    places: Mapping[str, tuple[Path, str]],
    wanted: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    kept: Collection[str] = (),
) -> dict[str, Tensor]:
    """Read some tensors of a network.

    Args:
        places: name in the network -> the file, and the name in it.
        wanted: the tensors of the network by name, on the meta device.
        dtype: what floating-point weights are converted to.
        kept: names in a tensor's path that keep it in float32.
    Raises: WeightsMismatch.
    """
    found: dict[str, Tensor] = {}
    for path in dict.fromkeys(path for path, _ in places.values()):
        with _open(path) as stored:
            for name, (file, key) in places.items():
                if file == path:
                    found[name] = _read(stored, key, path, precision_of(name, dtype, kept))
                    if found[name].is_floating_point() != wanted[name].is_floating_point():
                        raise WeightsMismatch(
                            f"'{path}': {key} is stored as {found[name].dtype}, the network has {wanted[name].dtype}.",
                            "quantised weights are not read",
                        )
    return found


def precision_of(name: str, dtype: torch.dtype, kept: Collection[str]) -> torch.dtype:
    """Return the precision of a tensor of a network that holds those with a name of `kept` in their path in float32."""
    return torch.float32 if set(kept) & set(name.split(".")) else dtype


def match_tensors(
    network: nn.Module, folder: Path, *, expected: Collection[str] | None = None
) -> dict[str, tuple[Path, str]]:
    """Find the stored tensor of each parameter of a network, from the headers of the files alone.

    Args: see `load_tensors`.
    Returns: name in the network -> the file, and the name in it.
    Raises: WeightsMissing; WeightsMismatch for names or shapes of another network.
    """
    require_files(folder)
    wanted = network.state_dict()
    places: dict[str, tuple[Path, str]] = {}
    foreign: list[str] = []
    shapes: list[str] = []
    for path in weight_files(folder):
        with _open(path) as stored:
            for key in stored.keys():
                name = _modern(key, wanted, expected)
                if name in wanted:
                    places[name] = path, key
                    given, asked = tuple(stored.get_slice(key).get_shape()), tuple(wanted[name].shape)
                    if given != asked:
                        shapes.append(f"{name}: stored {given}, config {asked}")
                elif expected is not None and name not in expected:
                    foreign.append(key)
    missing = [name for name in wanted if name not in places]
    if missing or foreign or shapes:
        raise WeightsMismatch(
            f"the weights in '{folder}' do not fit {'the' if folder.is_file() else 'its'} config.json.",
            *(
                f"{title} {len(names)}: {', '.join(names[:3])}"
                for title, names in _faults(missing, foreign, shapes)
                if names
            ),
        )
    return places


def match_whole(network: nn.Module, folder: Path) -> None:
    """Compare a network that nothing was removed from with the headers of its files. Raises: see `match_tensors`."""
    match_tensors(network, folder, expected=tensor_names(network))


def tensor_names(network: nn.Module) -> frozenset[str]:
    """Return the names under which the tensors of a network may be stored: parameters, and buffers of all kinds."""
    return frozenset(network.state_dict()) | {name for name, _ in network.named_buffers()}


def read_tensors(folder: Path, *, dtype: torch.dtype, rename: Callable[[str], str | None] = str) -> dict[str, Tensor]:
    """Read all weights of one part, floating-point ones as `dtype`. Raises: WeightsMissing, WeightsMismatch, RunFailed.

    Args:
        folder: the part's folder, or one safetensors file.
        rename: turns a stored name into the one that is wanted; None leaves the tensor on disk.
    """
    require_files(folder)
    require_memory(sum(path.stat().st_size for path in weight_files(folder)), folder)
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with _open(path) as stored:
            names = {key: name for key in stored.keys() if (name := rename(key)) is not None}
            found.update({name: _read(stored, key, path, dtype) for key, name in names.items()})
    return found


def describe_tensors(folder: Path, *, rename: Callable[[str], str | None] = str) -> dict[str, Tensor]:
    """Return the tensors of one part on the meta device, by their shapes in the files' headers.

    Args:
        folder: the part's folder, or one safetensors file.
        rename: see `read_tensors`.
    Raises: WeightsMissing, WeightsMismatch.
    """
    require_files(folder)
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with _open(path) as stored:
            for key in stored.keys():
                if (name := rename(key)) is not None:
                    found[name] = torch.empty(stored.get_slice(key).get_shape(), device="meta")
    return found


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    with open_safetensors(path, error=WeightsMismatch, fix="copy or download the file again") as stored:
        yield stored


def _read(stored: Any, key: str, path: Path, dtype: torch.dtype) -> Tensor:
    """Copy one tensor into memory, in `dtype` if it holds floating-point numbers. Raises: WeightsMismatch."""
    with naming(path, f"a file whose tensor '{key}' can be read"):
        value: Tensor = stored.get_tensor(key)
        return value.to(dtype if value.is_floating_point() else value.dtype, copy=True)


def _faults(missing: list[str], foreign: list[str], shapes: list[str]) -> list[tuple[str, list[str]]]:
    return [("missing", missing), ("of another network", foreign), ("of another shape", shapes)]


def _modern(key: str, wanted: Collection[str], expected: Collection[str] | None) -> str:
    """Rename attention weights of old checkpoints (`query`, `proj_attn`)."""
    if key in wanted or (expected is not None and key in expected):
        return key
    stem, _, end = key.rpartition(".")
    parent, _, last = stem.rpartition(".")
    return f"{parent}.{_OLD_ATTENTION[last]}.{end}" if last in _OLD_ATTENTION else key


def digest_denoiser(checkpoint: Checkpoint, part: str, *, weights: bool = True) -> str:
    """Digest the denoiser as it is loaded, with the weights that replace its own.

    Raises: WeightsMissing if there are none.
    """
    folder, source = denoiser_source(checkpoint, part)
    if weights:
        require_files(source)
    return digest_part(folder, weights=weights, source=source)


def digest_part(folder: Path, *, weights: bool = True, source: Path | None = None) -> str:
    """Digest one part: the settings that its network is built from, and its weights.

    Weights from elsewhere (`source`, a folder or file) count by their content alone, not by their names.
    Files are hashed once per process, cached by path, size and time of change.
    """
    content: dict[str, Any] = {"config": network_settings(read_part_config(folder / CONFIG))}
    if weights and source is not None and source != folder:
        content["replaced"] = [_digest_once(path) for path in weight_files(source)]
    elif weights:
        content["weights"] = {path.name: _digest_once(path) for path in weight_files(folder)}
    return digest_json(content)


def digest_files(paths: Sequence[Path]) -> str:
    """Digest small files by their names and bytes; missing files are left out."""
    return digest_json({path.name: _digest_once(path) for path in paths if path.is_file()})


def _digest_once(path: Path) -> str:
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        _digests[key] = digest_file(path)
    return _digests[key]
