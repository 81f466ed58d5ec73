"""TopK: a sparse autoencoder that keeps the k largest latents of a sample.

Owns the module, its loss with AuxK, and its files. What a Trainer adds (schedules, dead-latent counters, metrics) is in
training/sae.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.probes.saving import load_probe, save_probe

KIND, SCHEMA_VERSION = "probe/sae/topk", 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """Keys of `probe=topk`, below `probe.params`."""

    k: int = 32
    """Latents kept a sample."""
    expansion: int = 8
    """Latents as a multiple of d_in; used where n_latents is not given. Revelio: 64."""
    n_latents: int | None = None
    """Number of latents."""
    k_aux: int | None = None
    """Dead latents that explain the residual in AuxK; None for d_in / 2."""
    aux_weight: float = 1 / 32
    """Weight of AuxK in the loss; 0 switches it off."""
    dead_after: int = 1_000_000
    """A latent is dead when it was not active for this many training samples."""

    def __post_init__(self) -> None:
        for name in ("k", "expansion", "dead_after"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} of probe 'topk' must be at least 1.")
        for name in ("n_latents", "k_aux"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} = {value} of probe 'topk' must be at least 1.")
        if self.aux_weight < 0:
            raise ConfigError(f"aux_weight = {self.aux_weight} of probe 'topk' must not be negative.")


class Code(NamedTuple):
    """The sparse code of some samples: the pair that everything downstream works on."""

    values: Float[Tensor, "batch k"]
    """Activations, >= 0, largest first."""
    indices: Int[Tensor, "batch k"]
    """Their latents. An entry whose value is 0 is not active."""


class StepOutput(NamedTuple):
    """What one training step gives."""

    loss: Float[Tensor, ""]
    """reconstruction + aux_weight * aux."""
    reconstruction: Float[Tensor, ""]
    """Squared error over the variance of the training set."""
    aux: Float[Tensor, ""]
    """Share of the residual that the dead latents leave; 0 without dead latents."""
    x_hat: Float[Tensor, "batch d_in"]
    """Reconstruction in the unit of the features."""
    code: Code
    """The code."""


class KSAE(nn.Module):
    """k-sparse autoencoder: x_hat = (W_dec^T topk(ReLU(W_enc (s x - b_pre) + b_enc)) + b_pre) / s.

    W_enc and W_dec hold a row a latent; decoder rows have unit norm; W_enc starts as a copy of W_dec. The scale s and
    b_pre come from the training set (`initialise`): scaled features have mean b_pre and d_in as expected squared
    distance from it. s is stored with the weights.

    Args:
        d_in: width of the features.
        n_latents: number of latents.
        k: latents kept a sample.
        seed: of the decoder's random directions.

    Raises: ConfigError if k exceeds n_latents.
    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders"; the pre-bias starts at the data's mean.
    """

    scale: Tensor
    initialised: Tensor

    def __init__(self, d_in: int, n_latents: int, k: int, *, seed: int = 0) -> None:
        super().__init__()
        if not 1 <= k <= n_latents:
            raise ConfigError(f"k = {k} must lie in 1..n_latents, and n_latents is {n_latents} (d_in {d_in}).")
        self.d_in, self.n_latents, self.k = d_in, n_latents, k
        generator = torch.Generator().manual_seed(seed)
        rows = F.normalize(torch.randn(n_latents, d_in, generator=generator), dim=1)
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.clone())  # a copy: tied at the start, free afterwards
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.b_pre = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def initialise(self, mean: Float[Tensor, " d_in"], variance: Float[Tensor, " d_in"]) -> None:
        """Set scale and pre-bias from the training set's mean and variance (float64 sums, divisor n)."""
        total = float(variance.sum())
        if not total > 0:
            raise ConfigError("the training features are constant: there is nothing for an autoencoder to explain.")
        scale = (self.d_in / total) ** 0.5
        self.scale.fill_(scale)
        self.b_pre.copy_(mean * scale)
        self.initialised.fill_(True)

    def preactivations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_latents"]:
        """Return the encoder's dense output before selection and ReLU."""
        return F.linear(x * self.scale - self.b_pre, self.W_enc, self.b_enc)

    def select(self, h: Float[Tensor, "batch n_latents"], k: int) -> Code:
        """Keep the k largest entries of each row, negative ones as 0."""
        values, indices = h.topk(k, dim=1)
        return Code(values.relu(), indices)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Return the sparse code of features, in their own unit."""
        return self.select(self.preactivations(x), self.k)

    def decode_scaled(self, code: Code) -> Float[Tensor, "batch d_in"]:
        """Return the weighted sum of decoder rows: scaled, without the pre-bias."""
        weights = code.values.to(self.W_dec.dtype)  # autocast gives bf16 activations; rows are summed in fp32
        return F.embedding_bag(code.indices, self.W_dec, per_sample_weights=weights, mode="sum")

    def decode(self, code: Code) -> Float[Tensor, "batch d_in"]:
        """Return the reconstruction in the unit of the features."""
        return (self.decode_scaled(code) + self.b_pre) / self.scale

    def forward(self, x: Float[Tensor, "batch d_in"]) -> tuple[Float[Tensor, "batch d_in"], Code]:
        """Return reconstruction and code."""
        code = self.encode(x)
        return self.decode(code), code

    def step(
        self,
        x: Float[Tensor, "batch d_in"],
        *,
        dead: Bool[Tensor, " n_latents"] | None = None,
        k_aux: int = 0,
        aux_weight: float = 0.0,
        reduce_mean: Callable[[Tensor], Tensor] = lambda scalar: scalar,
    ) -> StepOutput:
        """Compute the loss of a batch.

        reconstruction = mean |s (x - x_hat)|^2 / d_in, where d_in is the scaled training set's variance, so that it is
        the fvu in expectation, and the mean over processes is the value of the joint batch.

        Args:
            dead: latents that AuxK revives.
            k_aux: dead latents used at most; 0 for none.
            reduce_mean: takes the mean of a scalar over processes; the identity in one process.
        """
        h = self.preactivations(x)
        code = self.select(h, self.k)
        scaled_hat = self.decode_scaled(code) + self.b_pre
        residual = x * self.scale - scaled_hat
        reconstruction = residual.float().square().sum(1).mean() / self.d_in
        aux = h.new_zeros((), dtype=torch.float32)
        n_dead = 0 if dead is None else int(dead.sum())
        if dead is not None and n_dead > 0 and k_aux > 0 and aux_weight > 0:
            target = residual.detach().float()
            energy = reduce_mean(target.square().sum(1).mean()).clamp(min=1e-12)
            aux = self._miss_of_dead(h, target, dead, min(k_aux, n_dead)) / energy
        return StepOutput(reconstruction + aux_weight * aux, reconstruction, aux, scaled_hat / self.scale, code)

    def _miss_of_dead(
        self, h: Float[Tensor, "batch n_latents"], residual: Tensor, dead: Bool[Tensor, " n_latents"], k_aux: int
    ) -> Tensor:
        """Explain the detached residual by dead latents alone; no pre-bias, since x_hat already holds it."""
        code = self.select(h.masked_fill(~dead, torch.finfo(h.dtype).min), k_aux)
        return (residual - self.decode_scaled(code)).square().sum(1).mean()

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from the decoder's gradient what would only change the norm of a row. Call before the optimiser."""
        gradient = self.W_dec.grad
        if gradient is not None:
            gradient -= (gradient * self.W_dec).sum(1, keepdim=True) * self.W_dec

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Give every decoder row unit norm. Call after the optimiser, so that what is saved has it too."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12))

    def save_pretrained(self, folder: Path | str, *, cell: str | None = None) -> Path:
        """Write the weights and settings to a folder (safetensors and JSON)."""
        settings = {"d_in": self.d_in, "n_latents": self.n_latents, "k": self.k, "cell": cell}
        return save_probe(
            folder, kind=KIND, schema_version=SCHEMA_VERSION, settings=settings, tensors=self.state_dict()
        )

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "KSAE":
        """Read what `save_pretrained` wrote. Raises: SchemaError, WeightsMismatch."""
        settings, tensors = load_probe(folder, kind=KIND, schema_version=SCHEMA_VERSION)
        sae = cls(settings["d_in"], settings["n_latents"], settings["k"])
        try:
            sae.load_state_dict(tensors)
        except RuntimeError as error:
            raise WeightsMismatch(f"the weights in '{folder}' do not fit their settings.", str(error)) from error
        return sae


def make(config: Config, d_in: int, *, seed: int) -> KSAE:
    """Make the autoencoder that `config` describes for features of width `d_in`."""
    return KSAE(d_in, config.n_latents or config.expansion * d_in, config.k, seed=seed)
