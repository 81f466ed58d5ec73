"""Samplers of diffusers, made from the forward process of a checkpoint's own scheduler config.

All are evenly spaced with the last timestep of the grid first ("trailing", Lin et al., 2305.08891, table 2), except for
LCM, which takes its timesteps from those it was distilled on. Samples are not clipped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.backbones.base import Checkpoint
from diffprobe.backbones.noise import SHIFTED, make_schedule
from diffprobe.backbones.part_config import read_part_config
from diffprobe.core.errors import BadTimestep, ConfigError, DiffprobeError
from diffprobe.core.foreign import naming
from diffprobe.core.rng import derive_seed

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
    "dpm": (
        "DPMSolverMultistepScheduler",
        {
            "timestep_spacing": "trailing", "algorithm_type": "dpmsolver++", "solver_order": 2,
            "final_sigmas_type": "zero", "use_karras_sigmas": False,
        },
    ),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "use_karras_sigmas": False}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
}  # fmt: skip
"""Name of a sampler -> its class in diffusers, and the settings that replace the checkpoint's."""


class Sampler:
    """The steps of one sampler for one batch; it is used once, since samplers of several orders remember past steps.

    Args:
        scheduler: a scheduler of diffusers whose timesteps are set.
        takes_generator: whether its steps add noise.
    """

    def __init__(self, scheduler: Any, *, takes_generator: bool) -> None:
        self._scheduler, self._takes_generator = scheduler, takes_generator
        self.timesteps: tuple[int, ...] = tuple(int(t) for t in scheduler.timesteps)

    def start(self, noise: Tensor) -> Tensor:
        """Return the latents that sampling starts from, for standard normal noise."""
        return noise * float(self._scheduler.init_noise_sigma)

    def model_input(self, step: int, latents: Tensor) -> Tensor:
        """Return what the denoiser gets: latents of unit variance at their timestep."""
        scaled: Tensor = self._scheduler.scale_model_input(latents, self._scheduler.timesteps[step])
        return scaled

    def step(self, step: int, predicted: Tensor, latents: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return the latents after a step.

        Args:
            step: number of the step, in order from 0.
            predicted: the (guided) output of the denoiser.
            generators: one per sample; samplers that add noise draw it from them.
        """
        further = {"generator": generators} if self._takes_generator else {}
        after: Tensor = self._scheduler.step(
            predicted, self._scheduler.timesteps[step], latents, **further, return_dict=False
        )[0]
        return after


def scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the scheduler config of a checkpoint. Raises: WeightsMismatch, WeightsMissing."""
    return read_part_config(checkpoint.part("scheduler") / "scheduler_config.json", non_finite=True)


def make_sampler(name: str, config: dict[str, Any], steps: int, *, where: Path | str, device: torch.device) -> Sampler:
    """Make a sampler for one batch.

    Args:
        name: a key of `SAMPLERS`.
        config: scheduler config of the checkpoint.
        steps: sampling steps.
        where: the checkpoint, for messages.
    Raises: ConfigError for more steps than the sampler has, or steps between the timesteps of the training grid;
        WeightsMismatch for a config that the sampler cannot be made from.
    """
    import diffusers

    kind, settings = SAMPLERS[name]
    with naming(where, f"a scheduler that {kind} can be made from"):
        scheduler = getattr(diffusers, kind).from_config(_with_plain_betas(config, where), **settings)
    try:
        scheduler.set_timesteps(steps, device=device)
    except (DiffprobeError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"sampling.sampler={name} of '{where}' cannot take {steps} steps: {error}", fix="fewer sampling.steps"
        ) from error
    found = [float(t) for t in scheduler.timesteps]
    if not all(t.is_integer() for t in found) or len(set(found)) < len(found):
        raise ConfigError(
            f"sampling.sampler={name} of '{where}' with {steps} steps is not on the training grid.",
            f"timesteps: {', '.join(f'{t:g}' for t in found[:8])} ...",
            fix="another number of sampling.steps, or sampling.sampler=ddim",
        )
    return Sampler(scheduler, takes_generator=name == "lcm")


def _with_plain_betas(config: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """Return a scheduler config whose betas alone state its forward process, before a rescaling to zero terminal SNR.

    The samplers do not know `snr_shift_scale` of CogVideoX.
    """
    if not str(config.get("_class_name")).startswith(SHIFTED):
        return config
    a = make_schedule({**config, "rescale_betas_zero_snr": False}, where=where).signal.double() ** 2
    betas = 1 - a / torch.cat([a.new_ones(1), a[:-1]])
    return {**config, "num_train_timesteps": len(betas), "trained_betas": betas.tolist()}


def check_timesteps(asked: Sequence[int], grid: Sequence[int], *, name: str) -> None:
    """Refuse timesteps that a sampler does not visit. Raises: BadTimestep with the nearest ones and all of them."""
    wrong = [t for t in asked if t not in grid]
    if not wrong:
        return
    nearest = [min(grid, key=lambda own, t=t: (abs(own - t), own)) for t in wrong]  # type: ignore[misc]
    raise BadTimestep(
        f"{', '.join(f't={t}' for t in wrong)} not among the timesteps of sampling.sampler={name} with "
        f"{len(grid)} steps.",
        f"nearest: {', '.join(map(str, dict.fromkeys(nearest)))}",
        f"allowed: {', '.join(map(str, grid))}",
        fix="one of these; or features.reread, which takes any timestep",
    )


def start_key(number: int) -> str:
    """Return the key of the noise that sample `number` of every prompt starts from (`core.rng.noise_for`)."""
    return f"sample {number}"


def reread_key(number: int) -> str:
    """Return the key of the noise with which sample `number` of every prompt is noised again."""
    return f"reread {number}"


def step_generators(seed: int, numbers: Sequence[int]) -> list[torch.Generator]:
    """Return the generators of the noise that steps add, one per sample, fixed by the seed and its number."""
    return [torch.Generator("cpu").manual_seed(derive_seed("steps", seed, number)) for number in numbers]
