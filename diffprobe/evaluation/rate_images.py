"""The images of `diffprobe eval rates`: prompts that leave the texture open, and generated or rendered images by role.

Images of a finished role are kept as uint8 in a safetensors file, and a repeated call continues after them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import NonFinite, SchemaError
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.rng import derive_seed
from diffprobe.shards.scenes.captions import values_of, write
from diffprobe.shards.scenes.factors import Ints, Scenes, fractions, sample
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.splits import split_indices

if TYPE_CHECKING:
    from torch import Tensor

UNSTATED = ("texture", "colour")
"""Factors that no prompt states: the texture, and the colour, which depends on the texture for some roles."""
IMAGES = "images"
"""Name of the tensor in a file of images."""
_BLOCK = 2048
_AT_ONCE = 25
"""Images per pass of the pipeline; noise depends on role and number alone."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class RoleImages:
    """Images of one role.

    Attributes:
        role: its name.
        keys: key of each image.
        images: uint8 (n, r, r, 3).
        truth: the scenes that were rendered; None for generated images.
    """

    role: str
    keys: tuple[str, ...]
    images: Pixels
    truth: Scenes | None


def scenes_by_role(
    spec: WorldSpec, seed: int, n: int, *, world: str | None = None, split: str = "test"
) -> dict[str, Scenes]:
    """Return the first `n` scenes of a split for each role."""
    wanted: dict[str, list[int]] = {role.name: [] for role in spec.roles}
    names, start = spec.names("role"), 0
    while any(len(found) < n for found in wanted.values()):
        indices = split_indices(spec, seed, split, _BLOCK, start=start, world=world)
        start = int(indices[-1]) + 1
        for index, code in zip(indices, sample(spec, seed, indices, world=world).factors["role"], strict=True):
            if len(wanted[names[int(code)]]) < n:
                wanted[names[int(code)]].append(int(index))
    return {role: sample(spec, seed, found, world=world) for role, found in wanted.items()}


def open_prompts(spec: WorldSpec, scenes: Scenes) -> list[str]:
    """Return a caption of each scene by the rules of the world, without those that state a factor of `UNSTATED`."""
    indices: Ints = scenes.indices
    drawn = [
        (fractions(spec, scenes.seed, f"prompt: {rule.text}", indices) < rule.probability)
        & (not set(rule.factors) & set(UNSTATED))
        for rule in spec.rules
    ]
    return [
        write(spec, values_of(spec, scenes, row), [bool(rule[row]) for rule in drawn]) for row in range(len(scenes))
    ]


def rendered_images(spec: WorldSpec, seed: int, n: int, *, world: str, resolution: int) -> list[RoleImages]:
    """Render images of each role at the rates of a world, as the positive control of a model."""
    found = []
    for role, scenes in scenes_by_role(spec, seed, n, world=world).items():
        images = render(spec, scenes, resolution=resolution).images
        found.append(RoleImages(role=role, keys=keys_of(role, n), images=images, truth=scenes))
    return found


def keys_of(role: str, n: int) -> tuple[str, ...]:
    """Return the keys of the images of a role.

    >>> keys_of("cook", 2)
    ('cook-0000', 'cook-0001')
    """
    return tuple(f"{role}-{number:04d}" for number in range(n))


def generated_images(
    spec: WorldSpec,
    pipeline: Any,
    folder: Path,
    *,
    seed: int,
    n: int,
    guidance: float,
    sampling_steps: int,
    resolution: int,
) -> list[RoleImages]:
    """Generate images of each role that are not in the folder yet, and return all.

    Prompts and noise depend on (seed, role, number) and the file of the world, so models share them.

    Args:
        pipeline: a StableDiffusionPipeline; its scheduler is replaced by DDIM with "trailing" timesteps.
        folder: of the files, one per role.
        guidance: added to the scale of classifier-free guidance: 0 is none (diffusers' scale 1).

    Raises: NonFinite for images that are not finite; SchemaError for a damaged file, or one of other prompts.
    """
    by_role = scenes_by_role(spec, seed, n)
    prompts = {role: open_prompts(spec, scenes) for role, scenes in by_role.items()}
    found = sampled_images(
        pipeline, folder, prompts, seed=seed, guidance=guidance, sampling_steps=sampling_steps, resolution=resolution
    )
    return [RoleImages(role=role, keys=keys_of(role, n), truth=None, images=images) for role, images in found.items()]


def sampled_images(
    pipeline: Any,
    folder: Path,
    prompts: Mapping[str, Sequence[str]],
    *,
    seed: int,
    guidance: float,
    sampling_steps: int,
    resolution: int,
    named: str = "roles",
) -> dict[str, Pixels]:
    """Sample the images of lists of prompts that are not in the folder yet, and return all.

    Noise depends on (seed, name of the list, number in it).

    Args:
        pipeline: a StableDiffusionPipeline; its scheduler is replaced by DDIM with "trailing" timesteps.
        folder: of the files, one per list.
        prompts: name of a list -> its prompts.
        guidance: added to the scale of classifier-free guidance: 0 is none (diffusers' scale 1).
        named: what the names are, for the progress bar.
    Returns: name -> uint8 (n, r, r, 3).

    Raises: NonFinite for images that are not finite; SchemaError for a damaged file, or one of other prompts.
    """
    from diffusers import DDIMScheduler

    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False
    )
    left = {name: list(texts) for name, texts in prompts.items() if not _path(folder, name).exists()}
    title = f"{len(left)} of {len(prompts)} {named}: sampling"
    with (
        ProgressDisplay(transient=True) as progress,
        progress.bar(sum(map(len, left.values())), title, unit="images", keep=False) as bar,
    ):
        for name, texts in left.items():
            images = _sample(
                pipeline, name, texts, seed=seed, guidance=guidance, steps=sampling_steps, side=resolution,
                update=bar.update,
            )  # fmt: skip
            _save(folder, name, texts, images)
    return {name: _load(folder, name, list(texts), resolution) for name, texts in prompts.items()}


def _sample(
    pipeline: Any, name: str, prompts: list[str], *, seed: int, guidance: float, steps: int, side: int,
    update: Callable[[int], None],
) -> Pixels:  # fmt: skip
    import torch

    found = []
    for start in range(0, len(prompts), _AT_ONCE):
        batch = prompts[start : start + _AT_ONCE]
        generators = [
            torch.Generator().manual_seed(derive_seed("rates", seed, name, start + row)) for row in range(len(batch))
        ]
        images = pipeline(
            batch, num_inference_steps=steps, guidance_scale=1.0 + guidance, generator=generators, height=side,
            width=side, output_type="np",
        ).images  # fmt: skip
        if not np.isfinite(images).all():
            raise NonFinite(f"the images generated for '{name}' are not finite numbers.")
        found.append((images * 255).round().clip(0, 255).astype(np.uint8))
        update(len(batch))
    return np.concatenate(found)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{digest_json(name)[:16]}.safetensors"


def _save(folder: Path, name: str, prompts: list[str], images: Pixels) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(_path(folder, name)) as temporary:
        save_file({IMAGES: torch.from_numpy(np.ascontiguousarray(images))}, temporary, metadata=_header(name, prompts))


def _header(name: str, prompts: list[str]) -> dict[str, str]:
    return {"role": name, "prompts": digest_json(prompts)}


def _load(folder: Path, name: str, prompts: list[str], resolution: int) -> Pixels:
    from diffprobe.core.safetensors_file import open_safetensors

    path, fix = _path(folder, name), f"remove '{_path(folder, name)}' and repeat the command"
    with open_safetensors(path, fix=fix) as stored:
        header, names = stored.metadata() or {}, set(stored.keys())
        tensor: Tensor | None = stored.get_tensor(IMAGES) if names == {IMAGES} else None
    shape = (len(prompts), resolution, resolution, 3)
    if header != _header(name, prompts) or tensor is None or tuple(tensor.shape) != shape:
        raise SchemaError(f"'{path}' does not hold images of '{name}' for these prompts.", fix=fix)
    pixels: Pixels = tensor.numpy()
    return pixels
