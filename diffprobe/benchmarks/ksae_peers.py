"""Sparse autoencoders of other libraries, each trained by its own code, for `diffprobe bench ksae`.

Each library trains its own TopK class with its own loss, bookkeeping and normalisation. All start from the weights of
our autoencoder and get features with our scale s applied (only our step contains that work). Adam, its rate and the
schedule are those of the `Plan`; by default the rate is constant and no auxiliary loss is used.
Libraries that clip gradients or normalise the decoder in another way do so here too, which changes their fvu.
`train_peer` trains on given rows and returns an autoencoder of ours.

A library that is not installed, or cannot be imported, is listed with the reason and does not raise an error.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, unknown
from diffprobe.probes.sae import topk
from diffprobe.probes.sae.convert import UnscaledSAE, unfold
from diffprobe.probes.sae.topk import TopK

_NEVER = 10**9
"""Length of a run whose schedule is constant over the measured steps."""
_TIMED = 5
"""Steps that are timed; the fastest gives the number of steps that fit into a time."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and at which rate a library trains."""

    batch: int
    """Rows per step."""
    steps: int | None = None
    """Steps of the run; None for an endless one at a constant rate."""
    learning_rate: float = 1e-3
    """Adam's learning rate."""
    warmup: float = 0.0
    """Share of the run in which the rate rises linearly."""
    decay: float = 0.0
    """Share of the run, at its end, in which the rate falls linearly to 0."""
    aux: bool = False
    """Whether each library adds its auxiliary loss at its default weight and for the latents that it counts as dead."""

    def __post_init__(self) -> None:
        shares = 0 <= self.warmup and 0 <= self.decay and self.warmup + self.decay <= 1
        if self.batch < 1 or (self.steps is not None and self.steps < 1) or not self.learning_rate > 0 or not shares:
            raise ConfigError(
                f"invalid plan of a training: {self}.",
                "allowed: batch and steps at least 1, a positive learning rate, warmup and decay of at most 1 together",
            )

    @property
    def warmup_steps(self) -> int:
        """Steps in which the rate rises; 0 for an endless run."""
        return round(self.warmup * (self.steps or 0))

    @property
    def decay_steps(self) -> int:
        """Steps in which the rate falls; 0 for an endless run."""
        return min(round(self.decay * (self.steps or 0)), (self.steps or 0) - self.warmup_steps)

    def factor(self, step: int) -> float:
        """Return the factor of the rate at a step, counted from 0, for a library that leaves the schedule to others."""
        rise = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        fall = ((self.steps or 0) - step) / self.decay_steps if self.decay_steps else 1.0
        return min(1.0, rise, fall)


class Trainee(NamedTuple):
    """An autoencoder in training. Features and reconstructions are scaled."""

    step: Callable[[Tensor], object]
    """One training step: forward, backward, optimiser, normalisation."""
    reconstruct: Callable[[Tensor], Tensor]
    weights: Callable[[], UnscaledSAE]
    """Its present weights, for scaled features, with decoder rows of any norm."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One training method of another library."""

    distribution: str
    """Name of its distribution package."""
    module: str
    make: Callable[[TopK, Plan], Trainee]
    """(our autoencoder, which supplies the weights; plan) -> its autoencoder in training."""
    precisions: tuple[str, ...] = ("float32", "bfloat16")


class Unusable(ImportError):
    """A library that is not installed or cannot be imported; the message gives the reason."""


def version(name: str) -> str | None:
    """Return the installed version of a library, None if it is not installed. Imports nothing."""
    try:
        return metadata.version(PEERS[name].distribution)
    except metadata.PackageNotFoundError:
        return None


def prepare(name: str) -> None:
    """Import a library. Raises: Unusable."""
    if version(name) is None:
        raise Unusable("not installed")
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels need a GPU, which it does not check
    try:
        with contextlib.redirect_stdout(sys.stderr):  # sparsify prints on import, and stdout is for the table
            import_module(PEERS[name].module)
    except Exception as error:  # a broken installation can raise anything, for example a RuntimeError of torchvision
        raise Unusable(f"installed, but its import fails: {type(error).__name__}: {error}") from error


@torch.no_grad()
def _fill(*pairs: tuple[Tensor, Tensor]) -> None:
    for theirs, ours in pairs:
        if theirs.shape != ours.shape:
            raise RuntimeError(
                f"weights of shape {tuple(ours.shape)} do not fit the shape {tuple(theirs.shape)} of the library."
            )
        theirs.copy_(ours)


def _plain(k: int, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> UnscaledSAE:
    """Return copies of weights with one row per latent."""
    W_enc, b_enc, W_dec, b_dec = (part.detach().float().clone() for part in (W_enc, b_enc, W_dec, b_dec))
    return UnscaledSAE(W_enc, b_enc, W_dec, b_dec, None, k)


def weights_of(sae: TopK) -> UnscaledSAE:
    """Return the weights of our autoencoder, for scaled features."""
    return _plain(sae.k, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_pre)


def _sae_lens(sae: TopK, plan: Plan, *, sparse: bool = False) -> Trainee:
    """TopKTrainingSAE in `SAETrainer.step`: their forward, firing counts, clipping at norm 1, `torch.optim.Adam`.

    Decoder norms are free and multiplied into the pre-activations, their default; fvu falls faster in the first steps
    with free norms than with unit norms. aux_loss_coefficient is 0 or its default; no latent is dead before step 1000.
    The schedule is theirs: warm-up, constant, linear decay. `sparse` is their `use_sparse_activations`: a COO tensor is
    decoded, which they recommend for float32 without autocast only. It runs without the factor of decoder norms, whose
    backward torch lacks for such tensors ("could not run aten::view"); the initial function is the same.
    """
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    settings = TopKTrainingSAEConfig(
        d_in=sae.d_in, d_sae=sae.n_latents, k=sae.k, use_sparse_activations=sparse,
        rescale_acts_by_decoder_norm=not sparse, **({} if plan.aux else {"aux_loss_coefficient": 0.0}),
    )  # fmt: skip
    theirs = TopKTrainingSAE(settings)
    pairs = (theirs.W_enc, sae.W_enc.T), (theirs.W_dec, sae.W_dec), (theirs.b_enc, sae.b_enc), (theirs.b_dec, sae.b_pre)
    _fill(*pairs)
    settings_of_run = SAETrainerConfig(
        total_training_samples=(plan.steps or _NEVER) * plan.batch, train_batch_size_samples=plan.batch,
        lr=plan.learning_rate, lr_end=plan.learning_rate, lr_warm_up_steps=plan.warmup_steps,
        lr_decay_steps=plan.decay_steps,
    )  # fmt: skip
    trainer = SAETrainer(settings_of_run, theirs, iter(()))

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    def weights() -> UnscaledSAE:
        norm = theirs.W_dec.norm(dim=1, keepdim=True) if not sparse else torch.ones(1, 1)
        return _plain(
            sae.k, theirs.W_enc.T * norm, theirs.b_enc * norm[:, 0], theirs.W_dec / norm, theirs.b_dec
        )  # fmt: skip

    return Trainee(step, theirs, weights)


def _sae_lens_sparse(sae: TopK, plan: Plan) -> Trainee:
    """Train with `use_sparse_activations`; see `_sae_lens`."""
    return _sae_lens(sae, plan, sparse=True)


def _dictionary_learning(sae: TopK, plan: Plan) -> Trainee:
    """AutoEncoderTopK in `TopKTrainer.update`: parallel gradient, clipping at norm 1, Adam, unit norm, its counters.

    Their first step replaces the bias by the geometric median, with up to 100 passes over the batch; counting from 1
    skips it. auxk_alpha is 0 or its default, with their window of 10,000,000 rows. The schedule is theirs: warm-up,
    constant, linear decay; its first step has rate 0. Their own loop casts to bfloat16 on a GPU only; here autocast is
    on for both.
    """
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=plan.steps or _NEVER, activation_dim=sae.d_in, dict_size=sae.n_latents, k=sae.k, layer=0,
        lm_name="none", lr=plan.learning_rate, warmup_steps=plan.warmup_steps, device="cpu",
        # their check asks for a step between both parts
        decay_start=max(plan.steps - plan.decay_steps, plan.warmup_steps + 1) if plan.steps and plan.decay else None,
        **({} if plan.aux else {"auxk_alpha": 0.0}),
    )  # fmt: skip
    ae = trainer.ae
    _fill((ae.encoder.weight, sae.W_enc), (ae.encoder.bias, sae.b_enc), (ae.decoder.weight, sae.W_dec.T))
    _fill((ae.b_dec, sae.b_pre))
    count = iter(range(1, _NEVER))
    return Trainee(
        lambda x: trainer.update(next(count), x),
        ae,
        lambda: _plain(sae.k, ae.encoder.weight, ae.encoder.bias, ae.decoder.weight.T, ae.b_dec),
    )


def _sparsify(sae: TopK, plan: Plan) -> Trainee:
    """SparseCoder in the order of their `Trainer.fit`, which itself needs a language model.

    Unit norm before the forward pass, which returns the fvu; their fused encoder's backward; firing mask; parallel
    gradient; the optimiser. `optimizer="adam"` of their three, since their default, a schedule-free sign descent, needs
    another learning rate; their schedule of Adam is a warm-up and a decay over the rest of the run, here those of the
    plan. auxk_alpha is 0, their default. Decoding is their eager path: the Triton path needs a GPU.
    Their `fit` sets torch's float32 matrix products to "high" precision; here all methods use full float32.
    """
    from sparsify import SparseCoder, SparseCoderConfig

    theirs = SparseCoder(sae.d_in, SparseCoderConfig(num_latents=sae.n_latents, k=sae.k), dtype=torch.float32)
    _fill((theirs.encoder.weight, sae.W_enc), (theirs.encoder.bias, sae.b_enc), (theirs.b_dec, sae.b_pre))
    _fill((theirs.W_dec, sae.W_dec))
    optimiser = torch.optim.Adam(theirs.parameters(), lr=plan.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, plan.factor)
    fired = torch.zeros(sae.n_latents, dtype=torch.bool)

    def step(x: Tensor) -> None:
        theirs.set_decoder_norm_to_unit_norm()
        out = theirs(x=x, y=x, dead_mask=None, total_variance=(x - x.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        theirs.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        scheduler.step()

    def weights() -> UnscaledSAE:
        return _plain(sae.k, theirs.encoder.weight, theirs.encoder.bias, theirs.W_dec, theirs.b_dec)

    return Trainee(step, lambda x: theirs(x).sae_out, weights)


def _overcomplete(sae: TopK, plan: Plan) -> Trainee:
    """TopKSAE with its linear encoder in their `train_sae`: clipping at norm 1, dead-code tracker, Adam.

    It has no pre-bias: features are centred with our fixed pre-bias, so the initial function is the same. The criterion
    is their mean square without a penalty, for which they have no auxiliary loss; `train_sae` takes any scheduler.
    Norms are restored inside each forward pass. Their `train_sae_amp` is for float16 on a GPU; here their plain loop
    runs under autocast.
    """
    from overcomplete.sae import TopKSAE, train_sae

    theirs = TopKSAE(sae.d_in, nb_concepts=sae.n_latents, top_k=sae.k, encoder_module="linear", device="cpu")
    encoder = theirs.encoder.final_block[0]
    _fill((encoder.weight, sae.W_enc), (encoder.bias, sae.b_enc), (theirs.dictionary._weights, sae.W_dec))
    optimiser, centre = torch.optim.Adam(theirs.parameters(), lr=plan.learning_rate), sae.b_pre.detach().clone()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, plan.factor)

    def criterion(x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Any:
        return (x - x_hat).square().mean()

    def step(x: Tensor) -> None:
        train_sae(theirs, [x - centre], criterion, optimiser, scheduler, nb_epochs=1, monitoring=0)

    def reconstruct(x: Tensor) -> Tensor:
        x_hat: Tensor = theirs.eval()(x - centre)[2] + centre
        return x_hat

    def weights() -> UnscaledSAE:
        return _plain(sae.k, encoder.weight, encoder.bias, theirs.get_dictionary(), centre)

    return Trainee(step, reconstruct, weights)


PEERS = {
    "sae-lens": Peer(distribution="sae-lens", module="sae_lens", make=_sae_lens),
    "sae-lens, sparse": Peer(
        distribution="sae-lens", module="sae_lens", make=_sae_lens_sparse, precisions=("float32",)
    ),
    "dictionary-learning": Peer(
        distribution="dictionary-learning", module="dictionary_learning", make=_dictionary_learning
    ),
    "sparsify": Peer(distribution="eai-sparsify", module="sparsify", make=_sparsify),
    "overcomplete": Peer(distribution="overcomplete", module="overcomplete", make=_overcomplete),
}
"""Name in the printed table -> method."""


def row_order(n_rows: int, batch: int, *, seed: int) -> Iterator[Int[Tensor, " batch"]]:
    """Yield the rows of each batch without end: all rows once per epoch, permuted anew; of each epoch whole batches.

    Depends on the arguments only, so that all libraries see the same rows in the same order.
    Raises: ConfigError for fewer rows than a batch.
    """
    if n_rows < batch:
        raise ConfigError(f"{n_rows} rows are less than a batch of {batch}.", fix=f"a batch of at most {n_rows}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n_rows, generator=generator)[: n_rows // batch * batch].split(batch)


def run_steps(trainee: Trainee, scaled: Float[Tensor, "rows d_in"], plan: Plan, *, seed: int) -> float:
    """Train for the steps of a plan on scaled rows in `row_order`, and return the seconds of all steps."""
    order, spent = row_order(len(scaled), plan.batch, seed=seed), 0.0
    for _ in range(plan.steps or 0):
        x = scaled[next(order)]
        started = time.perf_counter()
        trainee.step(x)
        spent += time.perf_counter() - started
    return spent


@torch.no_grad()
def as_ours(trainee: Trainee, scale: Tensor) -> TopK:
    """Return the present state of an autoencoder in training as one of ours, for features in their own unit.

    It is the same function; its decoder rows have the norms that the library gave them.
    """
    sae = unfold(trainee.weights(), "topk")
    if not isinstance(sae, TopK):
        raise TypeError(f"a TopK expected, got a {type(sae).__name__}")
    sae.scale.copy_(scale)
    return sae


def train_peer(
    name: str,
    rows: Float[Tensor, "rows d_in"],
    *,
    k: int,
    n_latents: int,
    plan: Plan,
    seconds: float | None = None,
    seed: int = 0,
) -> TopK:
    """Train the autoencoder of another library on rows in their own unit; return it in our format, on the CPU.

    Args:
        name: key of PEERS.
        rows: training rows; scale and initial pre-bias come from all of them.
        k, n_latents: size of the dictionary.
        plan: batch, rate, schedule and steps.
        seconds: time for the steps, in place of `plan.steps`: as many steps as fit at the speed of the fastest of the
            first few, which a copy takes.
        seed: seed of the initial dictionary and of the order of the rows.
    Raises: ConfigError for an unknown library, a size that does not fit, steps and seconds together or neither;
        Unusable for a library that is not installed.
    """
    if name not in PEERS:
        raise unknown("library", name, PEERS)
    if (plan.steps is None) == (seconds is None) or (seconds is not None and not seconds > 0):
        raise ConfigError(
            f"steps={plan.steps} and seconds={seconds} of a training: one of both is needed, and seconds are positive."
        )
    prepare(name)
    sae = topk.make(topk.Config(k=k, n_latents=n_latents, aux_weight=0.0), rows.shape[1], seed=seed)
    sae.initialise(rows.mean(0), rows.var(0, correction=0))
    scaled = rows.float() * sae.scale
    if seconds is not None:
        one = replace(plan, steps=1)
        tried = PEERS[name].make(sae, replace(plan, steps=_NEVER))
        fastest = min(run_steps(tried, scaled, one, seed=seed) for _ in range(_TIMED))
        plan = replace(plan, steps=max(round(seconds / fastest), 1))
    trainee = PEERS[name].make(sae, plan)
    run_steps(trainee, scaled, plan, seed=seed)
    return as_ours(trainee, sae.scale)
