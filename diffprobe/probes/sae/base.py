"""KSAE, the base class of the sparse autoencoders: parameters, initialisation, training step, saving and loading.

A variant implements the selection of latents (`select`, `encode`) and the weights of the loss terms. Schedules,
counters of dead latents and metrics are in `training/sae.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffprobe.config.parse import parse, to_tree
from diffprobe.core.errors import ConfigError, SchemaError, WeightsMismatch
from diffprobe.core.facts_html import facts_html
from diffprobe.core.foreign import naming
from diffprobe.core.registry import probes
from diffprobe.probes.sae.initialization import blend_datapoints, geometric_median, random_rows
from diffprobe.probes.sae.kernels.dense_step import Chosen, dense_step
from diffprobe.probes.sae.kernels.sparse_step import Top, join, rows_to_bags, scan, sparse_step
from diffprobe.probes.sae.kernels.squared_error import squared_error
from diffprobe.probes.sae.types import SINGLE_PROCESS, Code, Collective, Config, Reads, Selected, StepOutput
from diffprobe.probes.serialization import SETTINGS, kind_of, load_probe, require_sizes, save_probe

KIND, SCHEMA_VERSION = "probe/sae/", 3


class KSAE(nn.Module):
    """Base of the sparse autoencoders: x_hat = (W_dec^T select(W_enc (s x - b_pre) + b_enc) + b_pre) / s.

    W_enc and W_dec have one row per latent; decoder rows have unit norm; W_enc starts as a copy of W_dec. The scale s
    and b_pre come from the training set (`initialise`): the expected squared distance of scaled features from their
    mean is d_in. s is saved with the weights.

    Args:
        config: settings of the variant.
        d_in: width of the features.
        seed: seed of the random directions.
        rows: latents of which this object has the weights; None for all (`sharded.py` has parts).

    Raises: ConfigError if k exceeds the number of latents.
    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders"; here the pre-bias starts at the mean.
    """

    variant: ClassVar[str]
    relu: ClassVar[bool] = True
    """Whether negative pre-activations are set to 0."""
    keeps_k: ClassVar[bool] = True
    """Whether each sample has k latents, outside training too; False where a threshold decides."""
    reads: ClassVar[Reads] = "rows"
    """What it reads besides the rows."""
    scale: Tensor
    initialised: Tensor

    def __init__(self, config: Config, d_in: int, *, seed: int = 0, rows: range | None = None) -> None:
        super().__init__()
        self.config, self.d_in, self.d_out, self.seed = config, d_in, d_in, seed
        self.n_latents, self.k = config.n_latents or config.expansion * d_in, config.k
        if self.k > self.n_latents:
            raise ConfigError(
                f"k = {self.k} is out of range: 1..n_latents, with n_latents = {self.n_latents} (d_in {d_in})."
            )
        self.k_aux = config.k_aux or max(d_in // 2, 1)
        self.rows = range(self.n_latents) if rows is None else rows
        directions = random_rows(self.n_latents, d_in, seed=seed, rows=rows)
        self.W_dec = nn.Parameter(directions)
        self.W_enc = nn.Parameter(directions.clone())  # equal at the start, trained separately
        self.b_enc = nn.Parameter(torch.zeros(len(self.rows)))
        self.b_pre = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        state = "" if bool(self.initialised) else ", not trained"
        return f"{self.n_latents} latents for {self.d_in} features, k={self.k}{state}"

    def _repr_html_(self) -> str:
        facts = {"latents": f"{self.n_latents:,}", "features": self.d_in, "active per row (k)": self.k}
        return facts_html(f"sparse autoencoder, {self.variant}", {**facts, "trained": bool(self.initialised)})

    @property
    def make_arguments(self) -> dict[str, Any]:
        """Further arguments of the file's `make`, which are saved with the weights."""
        return {}

    @property
    def centre(self) -> Float[Tensor, " d_out"]:
        """Bias of the reconstruction, in the unit of the features, float64."""
        return (self.b_pre / self.scale).detach().double()

    def at(self, timesteps: Int[Tensor, " batch"] | int) -> "KSAE":
        """Return the autoencoder for rows of these timesteps, one per row or one for all: itself, unless it reads them.

        Raises: BadTimestep for a timestep that it was not trained on.
        """
        return self

    @property
    def level_weights(self) -> tuple[float, ...]:
        """Weight of each level of the reconstruction in the loss."""
        return (1.0,)

    @property
    def main_level(self) -> int:
        """Index of the level that is the reconstruction of the autoencoder; the others are additional loss terms."""
        return 0

    @property
    def needs_rows(self) -> bool:
        """Whether `initialise` needs samples in addition to mean and variance."""
        return self.config.pre_bias == "geometric_median" or self.config.datapoint_blend > 0

    @torch.no_grad()
    def initialise(
        self,
        mean: Float[Tensor, " d_in"],
        variance: Float[Tensor, " d_in"],
        rows: Float[Tensor, "samples d_in"] | None = None,
    ) -> None:
        """Set scale, pre-bias and dictionary from the mean and variance of the training set (divisor n).

        Args:
            rows: samples in the unit of the features; required if `needs_rows`.

        Raises: ConfigError if the features are constant, or if required rows are missing.
        """
        total = float(variance.sum())
        if not total > 0:
            raise ConfigError("the training features are constant; an autoencoder needs features that vary.")
        if self.needs_rows and (rows is None or rows.shape[0] == 0):
            raise ConfigError(f"probe '{self.variant}' with these settings is initialised from samples; 0 were given.")
        scale, config = (self.d_in / total) ** 0.5, self.config
        self.scale.fill_(scale)
        centre = geometric_median(rows) if config.pre_bias == "geometric_median" and rows is not None else mean
        self.b_pre.copy_(centre * scale)
        if config.datapoint_blend > 0 and rows is not None:
            centred = rows * self.scale - self.b_pre
            blend, first = config.datapoint_blend, self.rows.start
            self.W_dec.copy_(blend_datapoints(self.W_dec, centred, blend, seed=self.seed, first=first))
            self.W_enc.copy_(self.W_dec)
        self.initialised.fill_(True)

    def scaled(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Return scaled features in the precision of the weights. Raises: ConfigError for another width."""
        if not isinstance(x, Tensor):
            raise ConfigError(
                f"features must be a tensor; got a {type(x).__name__}.",
                fix="torch.as_tensor(features, dtype=torch.float32)",
            )
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ConfigError(
                f"features of shape {tuple(x.shape)} do not fit an autoencoder of width {self.d_in}.",
                f"allowed: [batch, {self.d_in}]",
            )
        return x.to(self.W_enc.dtype) * self.scale

    def preactivations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_latents"]:
        """Return the dense output of the encoder before selection and ReLU; differentiable."""
        return F.linear(self.scaled(x) - self.b_pre, self.W_enc, self.b_enc)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Return the sparse code of features given in their own unit, without gradients (`step` is for training)."""
        raise NotImplementedError

    def select(
        self, centred: Tensor, *, among: Int[Tensor, " some"] | None, k_among: int, collective: Collective
    ) -> tuple[Selected, Top | None]:
        """Select the latents of a training batch, and the k_among largest latents in `among`, in one encoder pass."""
        raise NotImplementedError

    def decode_scaled(self, code: Code) -> Float[Tensor, "batch d_out"]:
        """Return the weighted sum of decoder rows, in scaled units and without the pre-bias."""
        weights = code.values.to(self.W_dec.dtype)
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
        collective: Collective = SINGLE_PROCESS,
    ) -> StepOutput:
        """Return the loss of a batch. The gradients equal those of the dense computation; the cost is that of the
        selected latents, or with `config.step` dense that of products with all of them.

        reconstruction = mean |s (x - x_hat)|^2 / d_in. d_in is the variance of the scaled training set, so the expected
        value is the fvu, and the mean over processes is the value of the global batch.

        Args:
            dead: latents that AuxK revives: they reconstruct the detached residual, without a pre-bias.
            collective: reductions over the processes that share the global batch.
        """
        x = self.scaled(x)
        centred = self.centred(x)
        return self._approximate(x, centred, centred, dead, collective)

    def _approximate(
        self, target: Tensor, target_centred: Tensor, centred: Tensor, dead: Tensor | None, collective: Collective
    ) -> StepOutput:
        """Return the loss of approximating a target from selected latents.

        Args:
            target, target_centred: scaled values [batch, d_out], with and without their bias, which is detached.
            centred: scaled input [batch, d_in] without its bias, which is detached.
            dead, collective: see `step`.
        """
        n, levels = centred.shape[0], len(self.level_weights)
        among, k_among = self._dead(dead)
        selected, revived = self.select(centred.detach(), among=among, k_among=k_among, collective=collective)
        chosen = [(selected, levels)]
        if revived is not None:
            chosen.append((Selected(revived, torch.zeros_like(revived.indices)), 1))
        decoded = self.decode_selected(centred, chosen)
        parts = decoded[: n * levels].view(n, levels, self.d_out)
        guess = decoded[n * levels :] if revived is not None else None
        values = selected.top.values.relu() if self.relu else selected.top.values
        kept = (selected.part >= 0) & (selected.part <= self.main_level)
        return self.finish(
            target, target_centred, parts, guess, _trim(values * kept, selected.top.indices, kept), collective
        )

    def scan(
        self, centred: Tensor, *, k: int, among: Int[Tensor, " some"] | None = None, k_among: int = 0
    ) -> tuple[Top, Top | None]:
        """Encode, and return the k largest latents of each sample and the k_among largest in `among`, by `scan`."""
        return scan(centred, self.W_enc, self.b_enc, k=k, among=among, k_among=k_among)

    def decode_selected(
        self, centred: Float[Tensor, "batch d_in"], chosen: Sequence[tuple[Selected, int]]
    ) -> Float[Tensor, "bags d_out"]:
        """Decode selections of a batch, each with its number of parts, differentiably (`config.step`)."""
        return self._decode_by_step(centred, self.b_pre, self.W_enc, chosen)

    def _decode_by_step(
        self, centred: Tensor, b_pre: Tensor, W_enc: Tensor, chosen: Sequence[tuple[Selected, int]]
    ) -> Tensor:
        """Decode selections that were made from W_enc centred + b_enc: by `sparse_step`, or by `dense_step`."""
        weights = b_pre, W_enc, self.b_enc, self.W_dec
        if self.config.step == "dense":
            parts = [Chosen(*selected.top, selected.part, self._spans(n_parts)) for selected, n_parts in chosen]
            return dense_step(centred, *weights, parts, relu=self.relu)
        bags = join([rows_to_bags(*selected.top, selected.part, n_parts) for selected, n_parts in chosen])
        decoded, _ = sparse_step(centred, *weights, bags, relu=self.relu)
        return decoded

    def _spans(self, n_parts: int) -> tuple[range, ...]:
        """Return which rows of the weights each part of a selection can be of."""
        return (range(len(self.rows)),) * n_parts

    def centred(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Return scaled features minus the pre-bias, which is detached."""
        return x - self.b_pre.detach()

    def finish(
        self,
        x: Float[Tensor, "batch d_out"],
        centred: Float[Tensor, "batch d_out"],
        parts: Float[Tensor, "batch levels d_out"],
        guess: Float[Tensor, "batch d_out"] | None,
        code: Code,
        collective: Collective,
    ) -> StepOutput:
        """Return the loss from its parts.

        Args:
            x, centred: scaled features, with and without the pre-bias; where it differs from the input, the target.
            parts: what each level adds to the reconstruction.
            guess: reconstruction of the residual by the dead latents; None without dead latents.
            code, collective: see `step`.
        """
        n = max(x.shape[0], 1)
        errors, residual = squared_error(centred, self._decoder_bias, parts)
        losses = errors / n / self.variance_of(x, collective)
        main, aux = self.main_level, x.new_zeros(())
        if guess is not None:
            target = residual[:, main]
            energy = collective.mean(target.square().sum() / n).clamp(min=1e-12)
            aux = (target - guess).square().sum() / n / energy
        loss = self.config.aux_weight * aux
        for weight, level in zip(self.level_weights, losses, strict=True):
            loss = loss + weight * level
        others = {f"level_{i}": losses[i].detach() for i in range(len(losses)) if i != main}
        return StepOutput(loss, losses[main], aux, code, others)

    @property
    def _decoder_bias(self) -> Tensor:
        """The parameter that is added to the decoded latents."""
        return self.b_pre

    def variance_of(self, x: Float[Tensor, "batch d_in"], collective: Collective) -> Tensor | float:
        """Return the divisor of the squared error: the variance of the scaled training set."""
        return float(self.d_out)

    def _dead(self, dead: Tensor | None) -> tuple[Tensor | None, int]:
        if dead is None or self.config.aux_weight == 0:
            return None, 0
        among = dead.nonzero().squeeze(1)
        return (among, min(self.k_aux, among.numel())) if among.numel() else (None, 0)

    def begin_step(self) -> None:
        """Prepare the weights for a training step; to be called before `step`."""

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Remove from the decoder's gradient the part parallel to each row; to be called before the optimiser step."""
        gradient = self.W_dec.grad
        if gradient is None:
            return
        # On a CPU in blocks that fit into its cache: allocating the whole product costs more than computing it.
        rows = max(1, (1 << 20) // self.d_in) if gradient.device.type == "cpu" else self.n_latents
        for g, w in zip(gradient.split(rows), self.W_dec.split(rows), strict=True):
            g.addcmul_(w, (g * w).sum(1, keepdim=True), value=-1)

    def end_step(self) -> None:
        """Scale decoder rows to unit norm; to be called after the optimiser step."""
        self.normalise_decoder()

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Scale every decoder row to unit norm."""
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_(min=1e-12))

    def save_pretrained(self, folder: Path | str, *, cell: str | None = None) -> Path:
        """Save weights (safetensors) and settings (JSON) to a folder, and return the folder."""
        kind, settings = KIND + self.variant, self.saved_settings(cell)
        return save_probe(
            folder, kind=kind, schema_version=SCHEMA_VERSION, settings=settings, tensors=self.state_dict()
        )

    def saved_settings(self, cell: str | None) -> dict[str, Any]:
        """Return the settings that are saved with the weights."""
        settings = {"d_in": self.d_in, "cell": cell, "config": to_tree(self.config)}
        return settings | ({"make_arguments": self.make_arguments} if self.make_arguments else {})

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "KSAE":
        """Load what `save_pretrained` saved: any variant from `KSAE`, only its own from the class of a variant.

        Raises: WeightsMissing, SchemaError, WeightsMismatch.
        """
        kind = kind_of(folder)
        wanted = KIND + getattr(cls, "variant", kind.removeprefix(KIND))
        if not kind.startswith(KIND) or kind != wanted:
            raise SchemaError(
                f"'{folder}' contains a '{kind}', expected '{wanted if cls is not KSAE else KIND + '...'}'."
            )
        settings, tensors = load_probe(folder, kind=kind, schema_version=SCHEMA_VERSION)
        module = probes("sae").load(kind.removeprefix(KIND))
        with naming(Path(folder) / SETTINGS, f"the settings of a probe '{kind}'", error=SchemaError):
            config, d_in = parse(module.Config, settings["config"], at="config"), settings["d_in"]
            more = dict(settings.get("make_arguments", {}))
            sizes = {name: size for name, size in more.items() if not isinstance(size, list)}
            require_sizes(folder, tensors, d_in=d_in, n_latents=config.n_latents or config.expansion * d_in, **sizes)
            sae: KSAE = module.make(config, d_in, seed=0, **more)
        try:
            sae.load_state_dict(tensors)
        except RuntimeError as error:
            raise WeightsMismatch(f"the weights in '{folder}' do not fit their settings.", str(error)) from error
        return sae


def _trim(values: Tensor, indices: Tensor, kept: Tensor) -> Code:
    """Drop the columns after the last one that is kept for any sample."""
    columns = kept.any(0).nonzero()
    width = int(columns[-1]) + 1 if len(columns) else 1
    return Code(values[:, :width].detach(), indices[:, :width])
