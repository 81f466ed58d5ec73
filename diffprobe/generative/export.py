"""Export of a trained text-to-image model as a StableDiffusionPipeline folder."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.core.digest import canonical_json

SOURCE_KEYS = ("_name_or_path", "is_local", "local_files_only")
"""Keys in which diffusers and transformers record the folder that a component was opened from."""


def save_pipeline(folder: Path, *, vae: Any, unet: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> None:
    """Write a StableDiffusionPipeline in diffusers' format, with the weights as fp16 safetensors.

    The configuration of the text encoder states float32, because transformers computes in the precision stated there
    and diffusers in float32: `StableDiffusionPipeline.from_pretrained(folder)` runs with nothing else given.
    The given components are not changed. The files do not depend on the folders that the components were opened from.
    """
    with quiet_libraries():  # its import warns about image processors that are not used
        from diffusers import StableDiffusionPipeline

    components = {
        name: deepcopy(part).half() for name, part in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder))
    }
    pipeline: Any = StableDiffusionPipeline(
        **components,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)
    vocabulary = (
        folder / "tokenizer" / "tokenizer.json"
    )  # transformers indents every merge; a third of the file is whitespace
    vocabulary.write_text(canonical_json(json.loads(vocabulary.read_text("utf-8"))), "utf-8")
    for path in (
        folder / "vae" / "config.json",
        folder / "unet" / "config.json",
        folder / "tokenizer" / "tokenizer_config.json",
    ):
        _rewrite(path, lambda config: {key: value for key, value in config.items() if key not in SOURCE_KEYS})
    _rewrite(folder / "text_encoder" / "config.json", lambda config: {**_without_dtype(config), "dtype": "float32"})


def _without_dtype(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}


def _rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    config = change(json.loads(path.read_text("utf-8")))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
