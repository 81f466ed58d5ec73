"""The forward process of a checkpoint, from clean latents to noisy ones, and what its denoiser predicts.

A forward process is two numbers per timestep: x_t = signal[t] x + noise[t] n. For epsilon and v models they follow from
the betas, for flow models they are 1 - t/T and t/T. Samplers differ in what their `add_noise` returns (unscaled
variance-exploding values, other values off their grid), so the sampler of a pipeline is never called: only its
config is read. The noise itself is `core.rng.noise_for`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.backbones.part_config import positive, read_part_config
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import BadTimestep, WeightsMismatch, WeightsMissing
from diffprobe.core.foreign import naming

PredictionKind = Literal["epsilon", "v", "flow", "sample"]
"""What a denoiser predicts: the noise; v = signal[t] noise - noise[t] x (Salimans and Ho, 2202.00512); the velocity
noise - x of a flow; or the clean sample x."""

_FILE = "scheduler_config.json"
_MAX_TIMESTEPS = 100_000
"""Timesteps of a grid; published models have at most 4,000. Tables of this length are built."""
_PREDICTION_TYPES: dict[str, PredictionKind] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
_BETAS = {"beta_start", "beta_end", "beta_schedule", "trained_betas"}
_BETA_FIELDS = ("num_train_timesteps", *sorted(_BETAS), "rescale_betas_zero_snr")
SHIFTED = "CogVideoX"
"""Start of the classes of schedulers with `snr_shift_scale`, which divide the signal-to-noise ratio of betas by it."""


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """A forward process on a grid of training timesteps; larger is noisier."""

    signal: Float[Tensor, " timesteps"]
    """Factor of the clean latent at each timestep, float32, falling."""
    noise: Float[Tensor, " timesteps"]
    """Factor of the standard normal noise at each timestep, float32, rising."""
    digest: str
    """Digest of the settings that fix both; equal for all samplers of one forward process."""

    @property
    def n_timesteps(self) -> int:
        """Number of timesteps on the grid."""
        return len(self.signal)

    def sigma(self, timestep: int) -> float:
        """Return the noise-to-signal ratio of a timestep, infinite at zero signal."""
        return float(self.noise[timestep].double() / self.signal[timestep].double())

    def snr(self, timestep: int) -> float:
        """Return the signal-to-noise ratio of a timestep as a ratio of variances, signal^2 / noise^2."""
        return float((self.signal[timestep].double() / self.noise[timestep].double()) ** 2)

    def nearest(self, snr: float, name: str) -> int:
        """Return the timestep whose signal-to-noise ratio is nearest to `snr`, by its logarithm.

        Raises: BadTimestep if `snr` is not positive, or further than a factor of 2 from all ratios of backbone `name`.
        """
        ratios = 2 * (self.signal.double().log() - self.noise.double().log())  # -inf and inf at the ends of flows
        if snr > 0 and len(ratios) > 1:
            distance = (ratios - math.log(snr)).abs()
            best = int(distance.argmin())
            if float(distance[best]) <= math.log(2):
                return best
        finite = ratios[ratios.isfinite()]
        ends = f"{finite.min().exp():.3g}..{finite.max().exp():.3g}" if len(finite) else "none: its input is clean"
        raise BadTimestep(
            f"backbone '{name}' has no timestep with a signal-to-noise ratio (of variances) of {snr:g}.",
            f"allowed: {ends}",
        )

    def add(
        self,
        clean: Float[Tensor, "rows ..."],
        noise: Float[Tensor, "rows ..."],
        timesteps: Int[Tensor, " rows"],
    ) -> Float[Tensor, "rows ..."]:
        """Noise each row at its own timestep: signal[t] clean + noise[t] noise.

        Sources: Ho et al., NeurIPS 2020, equation 4 (betas; equals `DDPMScheduler.add_noise` of diffusers); Liu et al.,
        2209.03003, equation 1 (flows).
        """
        signal, scale = (
            table.to(clean.device)[timesteps].to(clean.dtype).reshape(-1, *(1 for _ in clean.shape[1:]))
            for table in (self.signal, self.noise)
        )
        return signal * clean + scale * noise

    def check(self, timesteps: Sequence[int], name: str) -> None:
        """Raise for timesteps outside of the grid of backbone `name`, all at once. Raises: BadTimestep."""
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
    """Read the forward process of a checkpoint from its `scheduler` folder; the class of the sampler does not matter.

    Raises: WeightsMissing without the file; WeightsMismatch for the sampler of a continuous-time model.
    """
    return make_schedule(_read(folder), where=folder / _FILE)


def load_prediction_kind(folder: Path) -> PredictionKind:
    """Read what a checkpoint's denoiser predicts from its `scheduler` folder.

    Raises: WeightsMissing without the file; WeightsMismatch for a target other than epsilon, v, flow or sample.
    """
    return prediction_kind(_read(folder), where=folder / _FILE)


def prediction_kind(config: Mapping[str, Any], *, where: Path | str = _FILE) -> PredictionKind:
    """Return what a denoiser predicts, by the config of a diffusers scheduler; epsilon is diffusers' default.

    Args:
        where: the file of the config, for messages.
    Raises: WeightsMismatch, see `load_prediction_kind`.
    """
    if _is_flow(config):
        return "flow"
    name = config.get("prediction_type", "epsilon")
    if not isinstance(name, str) or name not in _PREDICTION_TYPES:
        raise WeightsMismatch(
            f"scheduler {config.get('_class_name')} has prediction_type '{name}'.",
            f"allowed: {', '.join(_PREDICTION_TYPES)}, flow_prediction",
            f"in: {where}",
        )
    return _PREDICTION_TYPES[name]


def _read(folder: Path) -> dict[str, Any]:
    path = folder / _FILE
    if not path.exists():
        raise WeightsMissing(f"no scheduler config in '{folder}'.", f"looked for: {path.name}")
    return read_part_config(path, non_finite=True)


def _is_flow(config: Mapping[str, Any]) -> bool:
    return (
        str(config.get("_class_name")).startswith("FlowMatch")
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def make_schedule(config: Mapping[str, Any], *, where: Path | str = _FILE) -> NoiseSchedule:
    """Make the forward process from a diffusers scheduler config.

    Args:
        where: the file of the config, for messages.
    Raises: WeightsMismatch, see `load_schedule`.
    """
    from diffusers import CogVideoXDDIMScheduler, DDPMScheduler

    kind = str(config.get("_class_name"))
    if _is_flow(config):
        return flow_schedule(_n_timesteps(config, where))
    # EDM models have sigmas instead of betas, but their samplers have num_train_timesteps as well
    continuous = "sigma_data" in config or config.get("timestep_type") == "continuous"
    if continuous or "num_train_timesteps" not in config or not _BETAS & config.keys():
        raise WeightsMismatch(
            f"scheduler {kind} belongs to a continuous-time model: its timesteps are not given by betas.",
            f"in: {where}",
            f"its config has: {', '.join(sorted(key for key in config if key[0] != '_'))}",
        )
    n = _n_timesteps(config, where)
    made: Any = CogVideoXDDIMScheduler if kind.startswith(SHIFTED) else DDPMScheduler
    fields = (*_BETA_FIELDS, "snr_shift_scale") if kind.startswith(SHIFTED) else _BETA_FIELDS
    known = {key: config[key] for key in fields if key in config}
    trained = known.get("trained_betas")
    if trained is not None and (not isinstance(trained, list) or len(trained) != n):
        raise WeightsMismatch(f"'{where}': trained_betas is not a list of {n} numbers, one per timestep.")
    try:
        with naming(where, "a scheduler whose betas can be computed"):
            scheduler: Any = made(**known)
            digest = digest_json({key: scheduler.config[key] for key in fields})
            a = scheduler.alphas_cumprod.to(torch.float32)
    except WeightsMismatch as error:
        if isinstance(error.__cause__, NotImplementedError):
            raise WeightsMismatch(
                f"scheduler {kind} has the unknown beta schedule '{config.get('beta_schedule')}'.", f"in: {where}"
            ) from error
        raise
    if a.ndim != 1 or not bool(((a >= 0) & (a <= 1)).all()):  # also false for NaN
        raise WeightsMismatch(f"'{where}': its betas give no noise levels between 0 and 1.")
    return NoiseSchedule(signal=a.sqrt(), noise=(1 - a).sqrt(), digest=digest)


def _n_timesteps(config: Mapping[str, Any], where: Path | str) -> int:
    n = positive(config, "num_train_timesteps", 1000, where=where)
    if n > _MAX_TIMESTEPS:
        raise WeightsMismatch(f"'{where}': num_train_timesteps is {n:,}.", f"allowed: at most {_MAX_TIMESTEPS:,}")
    return n


def flow_schedule(n: int) -> NoiseSchedule:
    """Make the straight-line process of flow models: t = 0 is clean, t = n is noise alone, s = t / n between.

    A sampler's shift is not part of it: it chooses where to sample, not what a timestep means.
    """
    s = torch.arange(n + 1, dtype=torch.float64) / n
    return NoiseSchedule(signal=(1 - s).float(), noise=s.float(), digest=digest_json({"flow": n}))


def edm_sigmas(n: int, *, least: float = 0.002, most: float = 80.0, rho: float = 7.0) -> Float[Tensor, " timesteps"]:
    """Return the noise levels of EDM on a grid of `n`, rising, float64 (Karras et al., 2206.00364, equation 5)."""
    share = torch.arange(n, dtype=torch.float64) / (n - 1)
    found: Tensor = (least ** (1 / rho) + share * (most ** (1 / rho) - least ** (1 / rho))) ** rho
    return found


def edm_schedule(n: int, sigma_data: float) -> NoiseSchedule:
    """Make the process of EDM for samples of unit variance, scaled to unit variance at every timestep.

    EDM adds sigma n to data of the deviation `sigma_data` and gives its network c_in = 1 / sqrt(sigma^2 + sigma_data^2)
    times that (2206.00364, table 1): signal = sigma_data c_in, noise = sigma c_in. With them the target of the network,
    (data - c_skip x) / c_out, is minus v.
    """
    sigmas = edm_sigmas(n)
    scale = (sigmas**2 + sigma_data**2).rsqrt()
    digest = digest_json({"edm": [n, sigma_data]})
    return NoiseSchedule(signal=(sigma_data * scale).float(), noise=(sigmas * scale).float(), digest=digest)


def clean_schedule(n: int = 1) -> NoiseSchedule:
    """Make the schedule of a backbone with clean input: nothing is noised, timesteps only condition the denoiser."""
    return NoiseSchedule(signal=torch.ones(n), noise=torch.zeros(n), digest=digest_json("clean"))
