"""Checkpoints on disk: find them, read safetensors into a network, and compute digests of their content.

Reads safetensors and JSON only; pickles are never read. Which files are read is in `weight_files.py`.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffprobe.backbones.base import Checkpoint
from diffprobe.backbones.hub import fetch_file, fetch_pipeline
from diffprobe.backbones.lora import find_lora
from diffprobe.backbones.network_size import require_memory
from diffprobe.backbones.part_config import CONFIG, SAVE_AGAIN, network_settings, read_model_index, read_part_config
from diffprobe.backbones.weight_files import require_files, weight_files
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from diffprobe.core.foreign import naming
from diffprobe.core.safetensors_file import open_safetensors

SHIPPED = ("emoji-sd",)
"""Checkpoints that are part of the package, under `assets/`."""
DENOISERS = ("unet", "transformer")
"""Parts of a pipeline whose weights can be replaced."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_LONGEST = 255
"""Characters in the name of a file or folder; longer ones are errors of the system."""
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_digests: dict[tuple[str, int, int], str] = {}


def locate(
    path: str,
    *,
    revision: str | None = None,
    configs_only: bool = False,
    denoiser_weights: str | None = None,
    lora: str | None = None,
    single_file_config: str | None = None,
    cached_only: bool = False,
) -> Checkpoint:
    """Find a checkpoint on this machine, or fetch it from the hub where that is allowed.

    Args:
        path: a folder in diffusers format, a hub id, a single safetensors file, the name of a shipped checkpoint, or
            `pixels`.
        revision: commit, tag or branch; for hub ids only.
        configs_only: fetch nothing but JSON files.
        denoiser_weights: safetensors file or folder, or OWNER/NAME:FILE on the hub, to use for the denoiser;
            OWNER/NAME@REVISION:FILE for another revision than main.
        lora: FILE or FILE@WEIGHT, see `find_lora`.
        single_file_config: folder or hub id with the configurations of a single file.
        cached_only: take a hub id from the cache alone; nothing is downloaded.
    Raises: WeightsMissing if the folder or the hub id does not exist; ConfigError for a revision of a folder or a
        shipped checkpoint.
    """
    if not path.strip() or max(map(len, Path(path).parts), default=0) > _LONGEST:
        raise WeightsMissing(
            f"'{path[:40]}' is not the name of a folder.", fix="set backbone.path to a folder, or to a hub id"
        )
    if revision is not None and (path in ("pixels", *SHIPPED) or Path(path).expanduser().exists()):
        raise ConfigError(
            f"revision={revision}, but '{path}' is not a hub id: it is a folder, a file, or a part of diffprobe.",
            fix="leave backbone.revision out, or set backbone.path=OWNER/NAME",
        )
    is_file = Path(path).expanduser().is_file() and path.endswith(".safetensors")
    if single_file_config is not None and not is_file:
        raise ConfigError(
            f"single_file_config={single_file_config} belongs to a single safetensors file; '{path}' is not one.",
            fix="remove backbone.single_file_config",
        )
    if path == "pixels":
        if denoiser_weights is not None:
            raise WeightsMissing("backbone 'pixels' has no weights to replace.", fix="leave denoiser_weights out")
        if lora is not None:
            raise WeightsMissing("backbone 'pixels' has no weights that a LoRA could change.", fix="leave lora out")
        return Checkpoint(name=path, folder=None, index={"_class_name": "pixels"})
    folder = Path(path).expanduser()
    if path in SHIPPED:
        folder = Path(str(files("diffprobe") / "assets" / path))
        if not folder.is_dir():
            raise WeightsMissing(
                f"the shipped checkpoint '{path}' is not in this installation.", fix="install diffprobe again"
            )
    elif is_file and single_file_config is not None:
        folder = _single_file(folder, single_file_config, configs_only=configs_only, cached_only=cached_only)
    elif not folder.is_dir():
        _refuse_single_file(folder, path)
        if not _HUB_ID.fullmatch(path) or path.startswith("."):
            raise WeightsMissing(
                f"there is no folder '{path}', and it is not a hub id (OWNER/NAME).",
                fix="set backbone.path to a folder, or to a hub id",
            )
        folder = fetch_pipeline(path, revision, configs_only, cached_only=cached_only)
    index = folder / "model_index.json"
    if not index.is_file():
        raise WeightsMissing(
            f"'{path}' is not a checkpoint in diffusers format: it has no model_index.json.",
            f"it has: {', '.join(sorted(entry.name for entry in folder.iterdir())[:12]) or '(nothing)'}",
            fix="save one with DiffusionPipeline.save_pretrained(FOLDER) and set backbone.path=FOLDER",
        )
    return Checkpoint(
        name=path,
        folder=folder,
        index=read_model_index(index),
        denoiser_weights=None if denoiser_weights is None or configs_only else _denoiser_file(denoiser_weights),
        lora=None if lora is None else find_lora(lora),
    )


def _single_file(file: Path, configs: str, *, configs_only: bool, cached_only: bool) -> Path:
    """Return a folder for a single file: the converted one, or with `configs_only` that of the configurations."""
    from diffprobe.backbones.single_file import convert  # it imports what reads weights

    if Path(configs).expanduser().is_file():
        raise WeightsMissing(
            f"single_file_config '{configs}' is a file.", "allowed: a folder in diffusers format, or a hub id"
        )
    folder = locate(configs, configs_only=True, cached_only=cached_only).folder
    if folder is None:
        raise WeightsMissing(f"single_file_config '{configs}' has no configurations.", fix="name a folder or hub id")
    return folder if configs_only else convert(file, folder)


def _refuse_single_file(file: Path, path: str) -> None:
    """Refuse a file in place of a folder or hub id. Raises: WeightsMissing."""
    if not file.exists() and file.suffix.lower() not in _SINGLE_FILES:
        return
    if not file.exists():
        raise WeightsMissing(
            f"there is no file '{path}', and a single file is not a checkpoint that can be read.",
            fix="set backbone.path to a folder in diffusers format, or to a hub id",
        )
    if file.suffix.lower() != ".safetensors":
        raise WeightsMissing(
            f"'{path}' is a file; a checkpoint is a folder in diffusers format, or a hub id.",
            "single files other than safetensors are pickles, which are never read",
            fix="take the .safetensors file of the same model, or save a folder where you trust the file: "
            "python -c 'from diffusers import StableDiffusionPipeline as P; "
            f'P.from_single_file("{path}").save_pretrained("FOLDER")\'',
        )
    from diffprobe.backbones.single_file import HINTS, kind_of

    kind = kind_of(file)
    if kind is None:
        raise WeightsMissing(
            f"'{path}' is not a single-file checkpoint that can be read: its tensors have other names.",
            f"allowed: {', '.join(HINTS)}, in the names of the original code",
            "weights of a denoiser alone: backbone.denoiser_weights, beside the backbone.path of their pipeline",
            fix="set backbone.path to a folder in diffusers format, or to a hub id",
        )
    raise WeightsMissing(
        f"'{path}' is a single-file checkpoint ({kind}), which has no configurations and no tokenizer.",
        f"on the hub: {HINTS[kind][1]}",
        fix="backbone.single_file_config=FOLDER (in diffusers format, weights not needed) or OWNER/NAME",
    )


def _denoiser_file(name: str) -> Path:
    """Find weights that replace those of a checkpoint. Raises: WeightsMissing."""
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
        return path
    if path.exists():
        raise WeightsMissing(
            f"denoiser_weights '{name}' is not a safetensors file; pickles are never read.",
            fix="convert it to safetensors, or name a folder with config.json and safetensors weights",
        )
    place, _, file = name.partition(":")
    repo, at, revision = place.partition("@")
    if not _HUB_ID.fullmatch(repo) or bool(at) != bool(revision) or not file.endswith(".safetensors"):
        raise WeightsMissing(
            f"there is no file or folder '{name}', and it is not OWNER/NAME:FILE.safetensors.",
            "with a commit, tag or branch: OWNER/NAME@REVISION:FILE.safetensors",
            fix="set backbone.denoiser_weights to a safetensors file",
        )
    return fetch_file(repo, file, revision or None)


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
    network: nn.Module, folder: Path, *, dtype: torch.dtype, expected: Collection[str] | None = None
) -> None:
    """Read the weights of a network on the meta device; weights of pruned modules stay on disk.

    Args:
        network: the network, pruned to what is needed; its parameters become real.
        folder: the part's folder, or one safetensors file.
        dtype: what floating-point weights are converted to, however they are stored.
        expected: parameter names of the whole network; any other stored name means weights of another network.
            None skips this check.
    Raises: WeightsMissing, WeightsMismatch.
    """
    wanted = network.state_dict()
    places = match_tensors(network, folder, expected=expected)
    require_memory(sum(value.numel() for value in wanted.values()) * dtype.itemsize, folder)
    found: dict[str, Tensor] = {}
    for path in dict.fromkeys(path for path, _ in places.values()):
        with _open(path) as stored:
            for name, (file, key) in places.items():
                if file == path:
                    found[name] = _read(stored, key, path, dtype)
                    if found[name].is_floating_point() != wanted[name].is_floating_point():
                        raise WeightsMismatch(
                            f"'{path}': {key} is stored as {found[name].dtype}, the network has {wanted[name].dtype}.",
                            "quantised weights are not read",
                        )
    network.load_state_dict(found, assign=True)


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


def read_tensors(folder: Path, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read all weights of one part, floating-point ones as `dtype`. Raises: WeightsMissing, WeightsMismatch, RunFailed.

    Args:
        folder: the part's folder, or one safetensors file.
    """
    require_files(folder)
    require_memory(sum(path.stat().st_size for path in weight_files(folder)), folder)
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with _open(path) as stored:
            found.update({key: _read(stored, key, path, dtype) for key in stored.keys()})
    return found


def describe_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of one part on the meta device, by their shapes in the files' headers.

    Args:
        folder: the part's folder, or one safetensors file.
    Raises: WeightsMissing, WeightsMismatch.
    """
    require_files(folder)
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with _open(path) as stored:
            for key in stored.keys():
                found[key] = torch.empty(stored.get_slice(key).get_shape(), device="meta")
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
