"""The forward process: from clean latents to noisy ones, by the checkpoint's own betas. Owns the range of timesteps.

Samplers differ in what their `add_noise` returns (unscaled variance-exploding values, other values off their grid),
so the sampler that a pipeline ships is never asked: only its betas are used. The noise itself is
`core.rng.noise_for`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.digest import digest_json
from diffprobe.core.errors import BadTimestep, WeightsMismatch, WeightsMissing

_BETA_FIELDS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """A variance-preserving forward process on a grid of training timesteps; larger is noisier."""

    alphas_cumprod: Float[Tensor, " timesteps"]
    """Share of the signal's variance left at each timestep, float32."""
    digest: str
    """Digest of the settings that fix the betas; equal for all samplers with equal betas."""

    @property
    def n_timesteps(self) -> int:
        """Number of timesteps on the grid."""
        return len(self.alphas_cumprod)

    def sigma(self, timestep: int) -> float:
        """Return the noise-to-signal ratio of a timestep, sqrt((1 - a) / a), infinite at zero signal."""
        a = self.alphas_cumprod[timestep].double()
        return float(((1 - a) / a).sqrt())

    def add(
        self,
        clean: Float[Tensor, "rows ..."],
        noise: Float[Tensor, "rows ..."],
        timesteps: Int[Tensor, " rows"],
    ) -> Float[Tensor, "rows ..."]:
        """Noise each row at its own timestep: sqrt(a_t) clean + sqrt(1 - a_t) noise.

        Source: Ho et al., NeurIPS 2020, equation 4; equals `DDPMScheduler.add_noise` of diffusers.
        """
        a = self.alphas_cumprod.to(clean.device)[timesteps].to(clean.dtype)
        a = a.reshape(-1, *(1 for _ in clean.shape[1:]))
        return a.sqrt() * clean + (1 - a).sqrt() * noise

    def check(self, timesteps: Sequence[int], name: str) -> None:
        """Refuse timesteps off the grid of backbone `name`, all at once. Raises: BadTimestep."""
        bad = [t for t in timesteps if not 0 <= t < self.n_timesteps]
        if not bad:
            return
        last = self.n_timesteps - 1
        raise BadTimestep(
            f"{', '.join(f't={t}' for t in bad)} outside the training grid of backbone '{name}'.",
            f"allowed: {'only 0' if last == 0 else f'0..{last}'}; larger is noisier",
            fix=f"features.timesteps=[{min(max(bad[0], 0), last)}]",
        )


def load_schedule(folder: Path) -> NoiseSchedule:
    """Read the forward process of a checkpoint from its `scheduler` folder, whatever sampler it ships.

    Raises: WeightsMissing without the file; WeightsMismatch if the sampler is one of a flow or continuous-time model.
    """
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise WeightsMissing(f"no scheduler config in '{folder}'.", f"looked for: {path.name}")
    return make_schedule(json.loads(path.read_text(encoding="utf-8")))


def make_schedule(config: dict[str, Any]) -> NoiseSchedule:
    """Make the forward process from a diffusers scheduler config. Raises: WeightsMismatch, see `load_schedule`."""
    from diffusers import DDPMScheduler

    kind = str(config.get("_class_name"))
    if (
        kind.startswith("FlowMatch")
        or config.get("use_flow_sigmas")
        or config.get("prediction_type") == "flow_prediction"
    ):
        raise WeightsMismatch(f"scheduler {kind} belongs to a flow model; this family noises by betas.")
    if "num_train_timesteps" not in config:
        raise WeightsMismatch(
            f"scheduler {kind} has no grid of training timesteps.", f"its config has: {', '.join(sorted(config))}"
        )
    known = {key: config[key] for key in _BETA_FIELDS if key in config}
    try:
        scheduler: Any = DDPMScheduler(**known)
    except NotImplementedError as error:
        raise WeightsMismatch(
            f"scheduler {kind} has a beta schedule '{config.get('beta_schedule')}' that is not known."
        ) from error
    digest = digest_json({key: scheduler.config[key] for key in _BETA_FIELDS})
    return NoiseSchedule(alphas_cumprod=scheduler.alphas_cumprod.to(torch.float32), digest=digest)


def clean_schedule() -> NoiseSchedule:
    """Make the schedule of a backbone that takes clean input only: timestep 0, no noise."""
    return NoiseSchedule(alphas_cumprod=torch.ones(1), digest=digest_json("clean"))
