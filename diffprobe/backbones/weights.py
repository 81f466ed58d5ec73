"""Checkpoints on disk: find them, read safetensors into a network, and compute digests of their content.

Reads safetensors and JSON only; pickles are never read.
"""

import json
import re
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffprobe.backbones.base import Checkpoint
from diffprobe.backbones.hub import STEMS, fetch_file, fetch_pipeline
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing

SHIPPED = ("emoji-sd",)
"""Checkpoints that are part of the package, under `assets/`."""
DENOISERS = ("unet", "transformer")
"""Parts of a pipeline whose weights can be replaced."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_digests: dict[tuple[str, int, int], str] = {}


def locate(
    path: str, *, revision: str | None = None, configs_only: bool = False, denoiser_weights: str | None = None
) -> Checkpoint:
    """Find a checkpoint on this machine, or fetch it from the hub where that is allowed.

    Args:
        path: a folder in diffusers format, a hub id, the name of a shipped checkpoint, or `pixels`.
        revision: commit, tag or branch; for hub ids only.
        configs_only: fetch nothing but JSON files.
        denoiser_weights: safetensors file or folder, or OWNER/NAME:FILE on the hub, to use for the denoiser;
            OWNER/NAME@REVISION:FILE for another revision than main.
    Raises: WeightsMissing if the folder or the hub id does not exist; ConfigError for a revision of a folder or a
        shipped checkpoint.
    """
    if revision is not None and (path in ("pixels", *SHIPPED) or Path(path).expanduser().is_dir()):
        raise ConfigError(
            f"revision={revision}, but '{path}' is not a hub id: it is a folder, or a part of diffprobe.",
            fix="leave backbone.revision out, or set backbone.path=OWNER/NAME",
        )
    if path == "pixels":
        if denoiser_weights is not None:
            raise WeightsMissing("backbone 'pixels' has no weights to replace.", fix="leave denoiser_weights out")
        return Checkpoint(name=path, folder=None, index={"_class_name": "pixels"})
    folder = Path(path).expanduser()
    if path in SHIPPED:
        folder = Path(str(files("diffprobe") / "assets" / path))
        if not folder.is_dir():
            raise WeightsMissing(
                f"the shipped checkpoint '{path}' is not in this installation.", fix="install diffprobe again"
            )
    elif not folder.is_dir():
        if not _HUB_ID.fullmatch(path) or path.startswith("."):
            raise WeightsMissing(
                f"there is no folder '{path}', and it is not a hub id (OWNER/NAME).",
                fix="set backbone.path to a folder, or to a hub id",
            )
        folder = fetch_pipeline(path, revision, configs_only)
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
        index=json.loads(index.read_text(encoding="utf-8")),
        denoiser_weights=None if denoiser_weights is None or configs_only else _denoiser_file(denoiser_weights),
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

    Raises: WeightsMissing.
    """
    folder = denoiser_source(checkpoint, part)[0] if part in DENOISERS else checkpoint.part(part)
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsMissing(
            f"checkpoint '{checkpoint.name}' has no {part}/config.json.",
            *([] if folder.name == part else [f"looked for: {path}"]),
            fix="save it again with save_pretrained(FOLDER), or complete the download: hf download OWNER/NAME",
        )
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of one part: the plain file, its shards, or the only variant (fp16) that exists.

    A safetensors file in place of a folder is returned itself.
    """
    if folder.is_file():
        return [folder] if folder.suffix == ".safetensors" else []
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return (
                [folder / name for name in names if (folder / name).is_file()]
                if all((folder / n).is_file() for n in names)
                else []
            )
        variants = sorted(folder.glob(f"{stem}.*.safetensors"))
        if len(variants) == 1:
            return variants
    return []


def require_files(*folders: Path) -> None:
    """Check that each part has a config and safetensors weights. Raises: WeightsMissing, naming all parts without them.

    A safetensors file in place of a folder needs no config.
    """
    lacking = [
        folder.name
        for folder in folders
        if not weight_files(folder) or not (folder.is_file() or (folder / "config.json").is_file())
    ]
    if not lacking:
        return
    root = folders[0].parent
    pickled = [folder.name for folder in folders if folder.is_dir() and list(folder.glob("*.bin"))]
    details = [f"missing: {', '.join(lacking)} ({len(lacking)} of {len(folders)} parts)"]
    if pickled:
        details.append(f"{', '.join(pickled)}: there are .bin files, which are pickles and never read")
    raise WeightsMissing(
        f"checkpoint '{root}' lacks a config.json or safetensors weights.",
        *details,
        fix="save it again with save_pretrained(FOLDER), or complete the download: hf download OWNER/NAME",
    )


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
    from safetensors import SafetensorError, safe_open

    require_files(folder)
    wanted = network.state_dict()
    found: dict[str, Tensor] = {}
    foreign: list[str] = []
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as stored:
                for key in stored.keys():
                    name = _modern(key, wanted, expected)
                    if name in wanted:
                        value = stored.get_tensor(key)
                        found[name] = value.to(dtype if value.is_floating_point() else value.dtype, copy=True)
                    elif expected is not None and name not in expected:
                        foreign.append(key)
        except SafetensorError as error:
            raise WeightsMismatch(f"'{path}' is not a readable safetensors file: {error}.") from error
    missing = [name for name in wanted if name not in found]
    shapes = [
        f"{name}: stored {tuple(found[name].shape)}, config {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if missing or foreign or shapes:
        raise WeightsMismatch(
            f"the weights in '{folder}' do not fit {'the' if folder.is_file() else 'its'} config.json.",
            *(
                f"{title} {len(names)}: {', '.join(names[:3])}"
                for title, names in _faults(missing, foreign, shapes)
                if names
            ),
        )
    network.load_state_dict(found, assign=True)


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
    """Digest one part: its config (without the version of the library that wrote it) and its weights.

    Weights from elsewhere (`source`, a folder or file) count by their content alone, not by their names.
    Files are hashed once per process, cached by path, size and time of change.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content: dict[str, Any] = {
        "config": {
            key: value for key, value in config.items() if not key.startswith("_") and key != "transformers_version"
        }
    }
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
