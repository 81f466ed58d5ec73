"""TopK over several timesteps: one dictionary, with a scale, a mean and biases of each timestep."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.core.errors import BadTimestep, ConfigError
from diffprobe.probes.sae import topk, types
from diffprobe.probes.sae.kernels.sparse_step import Top, scan
from diffprobe.probes.sae.types import Code, Selected

READS: types.Reads = "timesteps"
"""What the autoencoder reads besides the rows (`types.Reads`)."""
MOST_FEATURES = 1024
"""Largest width of the embedding of a timestep."""
LONGEST = 10_000
"""Longest wavelength of the embedding, over 2 pi."""


@dataclass(frozen=True, kw_only=True)
class Config(topk.Config):
    """Keys of `probe=timestep_topk`, below `probe.params`."""

    normalise: Literal["timestep", "none"] = "timestep"
    """timestep: subtract the mean of each timestep and scale its variance to that of the others; none: one mean and
    scale for all."""
    embedding: int = 16
    """Width of the sinusoidal embedding from which the biases of encoder and decoder are learned; even; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.embedding <= MOST_FEATURES or self.embedding % 2:
            raise ConfigError(f"embedding = {self.embedding} must be an even number in 0..{MOST_FEATURES}.")
        standard = types.Config()
        for name in ("pre_bias", "datapoint_blend", "row_buffer"):
            if getattr(self, name) != getattr(standard, name):
                raise ConfigError(
                    f"{name} = {getattr(self, name)}: probe 'timestep_topk' starts from the mean and variance of each "
                    "timestep, and keeps no rows.",
                    fix=f"leave {name} unset"
                    + (", and for mixed rows use features.shuffle=rows" if name == "row_buffer" else ""),
                )


class TimestepTopK(topk.TopK):
    """TopK whose scale, mean and biases depend on the timestep t of a row; W_enc and W_dec are those of all timesteps.

    With z_t(x) = s_t (x - m_t) - B e(t) and C e(t) the learned biases of decoder and encoder:

        x_hat = (W_dec^T topk(W_enc (z_t(x) - b_pre) + b_enc + C e(t)) + b_pre + B e(t)) / s_t + m_t

    m_t and s_t are computed from the training rows of timestep t, so that the expected squared distance of scaled rows
    from their mean is d_in at each: every timestep has equal weight in the loss. e(t) are sines and cosines of t, less
    their mean over the timesteps of the training; B and C start at 0. Without both (`normalise` none, embedding 0) it
    is TopK.

    Rows need their timestep: `sae.at(200).encode(x)`, or `sae.at(timesteps)` with one per row.

    Args:
        config, d_in, seed: see `KSAE`.
        timesteps: timesteps of the training; others are refused.

    Raises: ConfigError for fewer than two timesteps.
    Source: the embedding of Ho et al. 2020, "Denoising diffusion probabilistic models".
    """

    variant, reads = "timestep_topk", READS
    config: Config
    known: Tensor
    features: Tensor
    scales: Tensor
    means: Tensor

    def __init__(self, config: Config, d_in: int, *, timesteps: Sequence[int], seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        self.timesteps = tuple(sorted(set(timesteps)))
        if len(self.timesteps) < 2:
            raise ConfigError(
                f"probe 'timestep_topk' needs several timesteps; given: {', '.join(map(str, self.timesteps))}.",
                fix="probe.cell=TAP@t* with several features.timesteps, or probe=topk for one",
            )
        n, width = len(self.timesteps), config.embedding
        self.register_buffer("known", torch.tensor(self.timesteps, dtype=torch.int64), persistent=False)
        self.register_buffer("features", sinusoids(self.timesteps, width), persistent=False)
        self.register_buffer("scales", torch.ones(n))
        self.register_buffer("means", torch.zeros(n, d_in))
        if width:
            self.encoder_embedding = nn.Parameter(torch.zeros(self.n_latents, width))
            self.decoder_embedding = nn.Parameter(torch.zeros(d_in, width))
        self._places: Tensor | None = None

    @property
    def make_arguments(self) -> dict[str, Any]:
        """The timesteps."""
        return {"timesteps": list(self.timesteps)}

    @property
    def centre(self) -> Float[Tensor, " d_in"]:
        """The mean over timesteps of the bias of the reconstruction, in the unit of the features, float64."""
        return (self.means.double() + (self.b_pre / self.scales[:, None]).double()).mean(0).detach()

    @torch.no_grad()
    def standardise(self, means: Float[Tensor, "timesteps d_in"], variances: Float[Tensor, "timesteps d_in"]) -> None:
        """Set mean and scale of each timestep, in the order of `timesteps`, before `initialise`; divisor n.

        Raises: ConfigError, naming the timestep, for features that do not vary.
        """
        for timestep, total in zip(self.timesteps, variances.sum(1).tolist(), strict=True):
            if not total > 0:
                raise ConfigError(f"the training features of timestep {timestep} are constant.")
        if self.config.normalise == "timestep":
            self.scales.copy_((self.d_in / variances.sum(1)).sqrt())
            self.means.copy_(means)

    @torch.no_grad()
    def initialise(self, mean: Tensor, variance: Tensor, rows: Tensor | None = None) -> None:
        """Set the pre-bias and dictionary; `scale` is that of all timesteps together."""
        super().initialise(mean, variance, rows)
        if self.config.normalise == "timestep":
            self.b_pre.zero_()
        else:
            self.scales.fill_(float(self.scale))

    def at(self, timesteps: Int[Tensor, " batch"] | int) -> "TimestepTopK":
        """Return the autoencoder for rows of these timesteps, one per row or one for all; it shares its weights.

        Raises: BadTimestep for a timestep that it was not trained on.
        """
        asked = torch.as_tensor(timesteps, device=self.known.device).reshape(-1)
        places = torch.searchsorted(self.known, asked).clamp(max=len(self.timesteps) - 1)
        missing = asked[self.known[places] != asked]
        if len(missing):
            raise BadTimestep(
                f"timestep {int(missing[0])} is not one that this autoencoder was trained on.",
                f"allowed: {', '.join(map(str, self.timesteps))}",
                fix="one of these, or train on it too: features.timesteps",
            )
        bound = copy.copy(self)
        bound._places = places
        return bound

    @torch.no_grad()
    def folded(self, timestep: int) -> topk.TopK:
        """Return the TopK autoencoder that equals this one at a timestep. Raises: BadTimestep."""
        place = int(self.at(timestep)._rows(1)[0])
        config = {field.name: getattr(self.config, field.name) for field in fields(topk.Config)}
        plain = topk.TopK(topk.Config(**config), self.d_in)
        s, e = self.scales[place], self.features[place]
        bias, encoder_bias = self.b_pre + s * self.means[place], self.b_enc + 0
        if self.config.embedding:
            bias, encoder_bias = bias + self.decoder_embedding @ e, encoder_bias + self.encoder_embedding @ e
        for own, value in (
            (plain.W_enc, self.W_enc), (plain.W_dec, self.W_dec), (plain.b_enc, encoder_bias), (plain.b_pre, bias),
            (plain.scale, s), (plain.initialised, self.initialised),
        ):  # fmt: skip
            own.copy_(value)
        return plain.to(self.W_enc.device)

    def _rows(self, n: int) -> Int[Tensor, " n"]:
        """Return the place of the timestep of each of n rows."""
        if self._places is None:
            raise ConfigError(
                "the rows of a timestep-conditioned autoencoder need their timestep.",
                f"allowed: {', '.join(map(str, self.timesteps))}",
                fix=f"sae.at({self.timesteps[0]}).encode(x), or sae.at(timesteps) with one timestep per row",
            )
        if len(self._places) not in (1, n):
            raise ConfigError(f"{n} rows with {len(self._places)} timesteps; allowed: one for all, or one per row.")
        return self._places.expand(n)

    def _decoder_biases(self, places: Int[Tensor, " batch"]) -> Tensor | None:
        """Return B e(t) of each row; None without an embedding."""
        return self.features[places] @ self.decoder_embedding.T if self.config.embedding else None

    def scaled(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Return features in the unit of their timestep, less the learned bias of it."""
        super().scaled(x)  # checks the shape
        places = self._rows(len(x))
        z = x.to(self.W_enc.dtype)
        if self.config.normalise == "timestep":
            z = z - self.means[places]
        z = z * self.scales[places, None]
        bias = self._decoder_biases(places)
        return z if bias is None else z - bias

    def decode(self, code: Code) -> Float[Tensor, "batch d_in"]:
        """Return the reconstruction in the unit of the features."""
        places = self._rows(len(code.values))
        found, bias = self.decode_scaled(code) + self.b_pre, self._decoder_biases(places)
        found = (found if bias is None else found + bias) / self.scales[places, None]
        return found + self.means[places] if self.config.normalise == "timestep" else found

    def _encoder(self) -> Float[Tensor, "n_latents d_in_and_embedding"]:
        return torch.cat([self.W_enc, self.encoder_embedding], 1) if self.config.embedding else self.W_enc

    def _with_embedding(self, centred: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in_and_embedding"]:
        """Append the embedding of the timestep to rows, so that one product gives C e(t) too."""
        if not self.config.embedding:
            return centred
        return torch.cat([centred, self.features[self._rows(len(centred))].to(centred.dtype)], 1)

    def preactivations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_latents"]:
        """Return the dense output of the encoder before selection and ReLU; differentiable."""
        return F.linear(self._with_embedding(self.scaled(x) - self.b_pre), self._encoder(), self.b_enc)

    def scan(self, centred: Tensor, *, k: int, among: Tensor | None = None, k_among: int = 0) -> tuple[Top, Top | None]:
        """Encode, and return the k largest latents of each row, and the k_among largest in `among`."""
        rows = self._with_embedding(centred)
        return scan(rows, self._encoder(), self.b_enc, k=k, among=among, k_among=k_among)

    def decode_selected(self, centred: Tensor, chosen: Sequence[tuple[Selected, int]]) -> Float[Tensor, "bags d_in"]:
        """Decode selections of a batch, each with its number of parts, differentiably (`config.step`)."""
        if not self.config.embedding:
            return super().decode_selected(centred, chosen)
        b_pre = F.pad(self.b_pre, (0, self.config.embedding))
        return self._decode_by_step(self._with_embedding(centred), b_pre, self._encoder(), chosen)


def sinusoids(timesteps: Sequence[int], width: int) -> Float[Tensor, "timesteps width"]:
    """Return sines and cosines of timesteps at width / 2 frequencies, less their mean over the timesteps.

    The wavelengths rise geometrically from 2 pi to 2 pi `LONGEST`; the norm of a row is at most about 1 before the
    mean is subtracted.
    """
    half = width // 2
    rates = torch.exp(-math.log(LONGEST) * torch.arange(half, dtype=torch.float64) / max(half - 1, 1))
    angles = torch.tensor(timesteps, dtype=torch.float64)[:, None] * rates
    found = torch.cat([angles.sin(), angles.cos()], 1) / math.sqrt(max(half, 1))
    return (found - found.mean(0)).float()


def make(config: Config, d_in: int, *, seed: int, timesteps: Sequence[int]) -> TimestepTopK:
    """Make an untrained autoencoder for features of width `d_in` at these timesteps."""
    return TimestepTopK(config, d_in, seed=seed, timesteps=timesteps)
