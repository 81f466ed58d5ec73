"""Find the checkpoint that a setting names: a folder, a hub id, a single file, a shipped model, or the pixels."""

from importlib.resources import files
from pathlib import Path

from diffprobe.backbones.base import Checkpoint
from diffprobe.backbones.hub import fetch_file, fetch_pipeline, is_hub_id
from diffprobe.backbones.lora import find_lora
from diffprobe.backbones.part_config import read_model_index
from diffprobe.backbones.single_file import HINTS, convert, kind_of
from diffprobe.core.errors import ConfigError, WeightsMissing

SHIPPED_UNETS = ("emoji-sd", "scenes-sd", "scenes-sd-permuted")
"""Pipelines of Stable Diffusion that are part of the package, under `assets/`."""
SHIPPED = (*SHIPPED_UNETS, "scenes-flow")
"""All checkpoints that are part of the package."""

_SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_LONGEST = 255
"""Characters in the name of a file or folder; longer ones are errors of the system."""


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
        if not is_hub_id(path):
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
        denoiser_weights=None
        if denoiser_weights is None or configs_only
        else _denoiser_file(denoiser_weights, cached_only=cached_only),
        lora=None if lora is None else find_lora(lora),
    )


def _single_file(file: Path, configs: str, *, configs_only: bool, cached_only: bool) -> Path:
    """Return a folder for a single file: the converted one, or with `configs_only` that of the configurations."""
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
            f"there is no file '{path}'.",
            fix="set backbone.path to a safetensors file, a folder in diffusers format, or a hub id",
        )
    if file.suffix.lower() != ".safetensors":
        raise WeightsMissing(
            f"'{path}' is a file; a checkpoint is a folder in diffusers format, or a hub id.",
            "single files other than safetensors are pickles, which are never read",
            fix="take the .safetensors file of the same model, or save a folder where you trust the file: "
            "python -c 'from diffusers import StableDiffusionPipeline as P; "
            f'P.from_single_file("{path}").save_pretrained("FOLDER")\'',
        )
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


def _denoiser_file(name: str, *, cached_only: bool) -> Path:
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
    if not is_hub_id(repo) or bool(at) != bool(revision) or not file.endswith(".safetensors"):
        raise WeightsMissing(
            f"there is no file or folder '{name}', and it is not OWNER/NAME:FILE.safetensors.",
            "with a commit, tag or branch: OWNER/NAME@REVISION:FILE.safetensors",
            fix="set backbone.denoiser_weights to a safetensors file",
        )
    return fetch_file(repo, file, revision or None, cached_only=cached_only)
