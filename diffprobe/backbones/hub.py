"""Fetch the files of a checkpoint from the hub, or find them in its local cache. Pickles are never read."""

import os
import re
from pathlib import Path

from diffprobe.core.errors import WeightsMissing

STEMS = ("diffusion_pytorch_model", "model")
"""Names of weight files, without their endings."""
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of pipelines that no family reads."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def fetch_pipeline(repo: str, revision: str | None, configs_only: bool, *, cached_only: bool = False) -> Path:
    """Return the hub cache's folder of a repository with its JSON files and, unless `configs_only`, its weights.

    Offline mode is read at each call, not when a library was imported. With `cached_only` nothing is downloaded.
    Raises: WeightsMissing.
    """
    from huggingface_hub import snapshot_download

    offline = bool(offline_variables())
    weights = [f"*/{stem}{end}" for stem in STEMS for end in (".safetensors", "-*-of-*.safetensors")]
    weights.append(f"{STEMS[0]}.safetensors")  # pipelines of one network may have it next to their index
    patterns = ["*.json", "*/*.json", "*/merges.txt", "*/*.model", "*/*.jinja", *([] if configs_only else weights)]
    skip = [*(f"{part}/*" for part in UNUSED), "vae_1_0/*"]
    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=skip,
                local_files_only=offline or cached_only,
            )
        )
    except Exception as error:  # the hub client raises a dozen classes, of its own and of its transport
        why = "" if cached_only else f", and {_reason(offline, error)}"
        raise WeightsMissing(
            f"checkpoint '{repo}'{_at(revision)} is not on this machine{why}.",
            "looked in: the hub cache; backbone.path is not a folder",
            fix="set backbone.path=FOLDER (a saved pipeline), or on a machine with network: "
            f"hf download {repo}{_option(revision)}",
        ) from error


def fetch_model(repo: str, revision: str | None = None) -> Path:
    """Return the hub cache's folder of a transformers model: JSON files, vocabulary and safetensors weights.

    Raises: WeightsMissing.
    """
    from huggingface_hub import snapshot_download

    offline = bool(offline_variables())
    patterns = ["*.json", "merges.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors"]
    try:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"], local_files_only=offline
            )
        )
    except Exception as error:  # as in fetch_pipeline
        raise WeightsMissing(
            f"model '{repo}'{_at(revision)} is not on this machine, and {_reason(offline, error)}.",
            "looked in: the hub cache; it is not a folder",
            fix=f"name a folder, or on a machine with network: hf download {repo}{_option(revision)}",
        ) from error


def is_hub_id(path: str) -> bool:
    """Return whether a text has the form OWNER/NAME.

    >>> is_hub_id("openai/clip-vit-base-patch32"), is_hub_id("./clip"), is_hub_id("clip")
    (True, False, False)
    """
    return _HUB_ID.fullmatch(path) is not None and not path.startswith(".")


def model_folder(name: str, key: str) -> Path:
    """Return the folder of a transformers model: a folder, or the hub cache's one of a hub id.

    Args:
        name: folder or hub id.
        key: the setting that names it, for messages.
    Raises: WeightsMissing.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(name):
        raise WeightsMissing(
            f"{key}={name} is not a folder.", fix=f"set {key}=FOLDER (saved by save_pretrained), or a hub id"
        )
    try:
        return fetch_model(name)
    except WeightsMissing as error:
        raise WeightsMissing(f"{key}={name}: {error.what}", *error.details, fix=error.fix) from error


def fetch_file(repo: str, file: str, revision: str | None = None, *, cached_only: bool = False) -> Path:
    """Return one file of a repository from the hub's cache, of `main` by default.

    With `cached_only` nothing is downloaded. Raises: WeightsMissing.
    """
    from huggingface_hub import hf_hub_download

    offline = bool(offline_variables())
    try:
        return Path(hf_hub_download(repo, file, revision=revision, local_files_only=offline or cached_only))
    except Exception as error:  # as in fetch_pipeline
        why = "" if cached_only else f", and {_reason(offline, error)}"
        raise WeightsMissing(
            f"'{file}' of '{repo}'{_at(revision)} is not on this machine{why}.",
            fix="set backbone.denoiser_weights=FILE, or on a machine with network: "
            f"hf download {repo} {file}{_option(revision)}",
        ) from error


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""


def _option(revision: str | None) -> str:
    return f" --revision {revision}" if revision else ""


def offline_variables() -> list[str]:
    """Return the environment variables that switch the libraries of the hub to offline mode."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return [name for name in names if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]


def _reason(offline: bool, error: Exception) -> str:
    return "offline mode is on (HF_HUB_OFFLINE)" if offline else f"the hub gave no answer ({type(error).__name__})"
