"""Export of a trained text-to-image model as a folder of diffusers' pipeline: of Stable Diffusion, or of version 3."""

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
    _clean_files(folder, denoiser="unet", texts=("",))


def save_flow_pipeline(
    folder: Path, *, vae: Any, transformer: Any, text_encoders: tuple[Any, Any], tokenizer: Any, scheduler: Any
) -> None:
    """Write a StableDiffusion3Pipeline without T5 in diffusers' format, as `save_pipeline` does.

    Args:
        text_encoders: two CLIPs with projection, which have one tokenizer.
    """
    with quiet_libraries():
        from diffusers import StableDiffusion3Pipeline

    parts = {"vae": vae, "transformer": transformer}
    parts |= {"text_encoder": text_encoders[0], "text_encoder_2": text_encoders[1]}
    components: dict[str, Any] = {name: deepcopy(part).half() for name, part in parts.items()}
    if components["vae"].config.shift_factor is None:  # the pipeline adds it to what it decodes
        components["vae"].register_to_config(shift_factor=0.0)
    pipeline: Any = StableDiffusion3Pipeline(
        **components,
        tokenizer=tokenizer,
        tokenizer_2=deepcopy(tokenizer),
        text_encoder_3=None,
        tokenizer_3=None,
        scheduler=scheduler,
    )
    with quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)
    _clean_files(folder, denoiser="transformer", texts=("", "_2"))


def _clean_files(folder: Path, *, denoiser: str, texts: tuple[str, ...]) -> None:
    """Shorten vocabularies, remove the folders that components were opened from, and state the precision of texts."""
    for end in texts:  # transformers indents every merge; a third of the file is whitespace
        vocabulary = folder / f"tokenizer{end}" / "tokenizer.json"
        vocabulary.write_text(canonical_json(json.loads(vocabulary.read_text("utf-8"))), "utf-8")
        _rewrite(folder / f"tokenizer{end}" / "tokenizer_config.json", _without_source)
        _rewrite(
            folder / f"text_encoder{end}" / "config.json", lambda config: {**_without_dtype(config), "dtype": "float32"}
        )
    for part in ("vae", denoiser):
        _rewrite(folder / part / "config.json", _without_source)


def _without_source(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in SOURCE_KEYS}


def _without_dtype(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}


def _rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    config = change(json.loads(path.read_text("utf-8")))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
