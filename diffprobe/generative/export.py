"""Writing of a trained text-to-image model as a pipeline's folder. Owns what stands in its files."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.core.digest import canonical_json

OPENED_FROM = ("_name_or_path", "is_local", "local_files_only")
"""What diffusers and transformers note of the folder that a part was opened from, and how."""


def save_pipeline(folder: Path, *, vae: Any, unet: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> None:
    """Write a StableDiffusionPipeline in diffusers' format, weights as fp16 safetensors; the parts stay as they are.

    Nothing in the files depends on the folders that the parts were opened from.
    """
    with quiet_libraries():  # what its imports say of image processors concerns nobody here
        from diffusers import StableDiffusionPipeline

    parts = {
        name: deepcopy(part).half() for name, part in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder))
    }
    pipeline: Any = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)
    vocabulary = folder / "tokenizer" / "tokenizer.json"  # transformers indents every merge; a third of it is space
    vocabulary.write_text(canonical_json(json.loads(vocabulary.read_text("utf-8"))), "utf-8")
    for path in (
        folder / "vae" / "config.json",
        folder / "unet" / "config.json",
        folder / "tokenizer" / "tokenizer_config.json",
    ):
        described = json.loads(path.read_text("utf-8"))
        kept = {key: value for key, value in described.items() if key not in OPENED_FROM}
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", "utf-8")
