"""The sparse autoencoders of other libraries, each trained with its own code: what `diffprobe bench ksae` sets beside.

Each trains its own TopK class with its own loss, its own bookkeeping and its own normalisation. All start from the
weights of the autoencoder beside them and see its features in the unit in which it trains (its scale s applied, which
is work that only ours has inside the step). No auxiliary loss, Adam at the same rate, no warm-up. Where a library
clips gradients, or keeps decoder norms another way, it does so here too; its fvu differs by that.

A library that is absent is named, and so is one that is there and cannot be imported: no error.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffprobe.probes.sae.topk import TopK

LEARNING_RATE = 1e-3
_NEVER = 10**9
"""Steps of a run whose schedule is flat over the few that are measured."""


class Trainee(NamedTuple):
    """An autoencoder that is being trained. Features and reconstructions are in the scaled unit."""

    step: Callable[[Tensor], object]
    """One training step: forward, backward, optimiser, normalisation."""
    reconstruct: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way in which another library trains."""

    distribution: str
    """Its name where packages are installed from."""
    module: str
    make: Callable[[TopK, int], Trainee]
    """From the autoencoder that gives the weights, and the number of rows of a batch."""
    precisions: tuple[str, ...] = ("float32", "bfloat16")


class Unusable(ImportError):
    """A library that is not installed, or cannot be imported here; the message says which of the two, and why."""


def version(name: str) -> str | None:
    """Return the installed version of a peer's library; None where there is none. Imports nothing."""
    try:
        return metadata.version(PEERS[name].distribution)
    except metadata.PackageNotFoundError:
        return None


def prepare(name: str) -> None:
    """Import a peer's library. Raises: Unusable."""
    if version(name) is None:
        raise Unusable("not installed")
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels need a GPU, and it asks for none before it takes them
    try:
        with contextlib.redirect_stdout(sys.stderr):  # sparsify prints, and stdout is for the table
            import_module(PEERS[name].module)
    except Exception as error:  # whatever a broken installation raises: a RuntimeError of torchvision, for one
        raise Unusable(f"installed, but its import fails: {type(error).__name__}: {error}") from error


@torch.no_grad()
def _fill(*pairs: tuple[Tensor, Tensor]) -> None:
    for theirs, ours in pairs:
        if theirs.shape != ours.shape:
            raise RuntimeError(f"weights of shape {tuple(ours.shape)} do not fit theirs, {tuple(theirs.shape)}.")
        theirs.copy_(ours)


def _sae_lens(sae: TopK, batch: int, *, sparse: bool = False) -> Trainee:
    """TopKTrainingSAE in `SAETrainer.step`: their forward, firing counts, clipping at norm 1, `torch.optim.Adam`.

    Decoder norms are free and multiplied into the pre-activations, their default; the first steps lower the fvu more
    with free norms than with unit ones. aux_loss_coefficient is 0, and no latent is dead before step 1000. `sparse` is
    their `use_sparse_activations`: a COO tensor is decoded, which they advise for float32 without autocast alone. It is
    run without the factor of decoder norms, whose backward torch lacks for such tensors ("could not run aten::view");
    the start is the same function either way.
    """
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    settings = TopKTrainingSAEConfig(
        d_in=sae.d_in, d_sae=sae.n_latents, k=sae.k, aux_loss_coefficient=0.0, use_sparse_activations=sparse,
        rescale_acts_by_decoder_norm=not sparse,
    )  # fmt: skip
    theirs = TopKTrainingSAE(settings)
    pairs = (theirs.W_enc, sae.W_enc.T), (theirs.W_dec, sae.W_dec), (theirs.b_enc, sae.b_enc), (theirs.b_dec, sae.b_pre)
    _fill(*pairs)
    plan = SAETrainerConfig(
        total_training_samples=_NEVER * batch, train_batch_size_samples=batch, lr=LEARNING_RATE, lr_end=LEARNING_RATE
    )
    trainer = SAETrainer(plan, theirs, iter(()))

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return Trainee(step, theirs)


def _sae_lens_sparse(sae: TopK, batch: int) -> Trainee:
    """Train with `use_sparse_activations`; see `_sae_lens`."""
    return _sae_lens(sae, batch, sparse=True)


def _dictionary_learning(sae: TopK, batch: int) -> Trainee:
    """AutoEncoderTopK in `TopKTrainer.update`: parallel gradient, clipping at norm 1, Adam, unit norm, its counters.

    Their first step replaces the bias by the geometric median, with up to 100 passes over the batch: it is left out by
    counting from 1. auxk_alpha is 0. Their own loop casts to bfloat16 on a GPU only; here autocast is on for both.
    """
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=_NEVER, activation_dim=sae.d_in, dict_size=sae.n_latents, k=sae.k, layer=0, lm_name="none",
        lr=LEARNING_RATE, auxk_alpha=0.0, warmup_steps=0, device="cpu",
    )  # fmt: skip
    ae = trainer.ae
    _fill((ae.encoder.weight, sae.W_enc), (ae.encoder.bias, sae.b_enc), (ae.decoder.weight, sae.W_dec.T))
    _fill((ae.b_dec, sae.b_pre))
    return Trainee(lambda x: trainer.update(1, x), ae)


def _sparsify(sae: TopK, batch: int) -> Trainee:
    """SparseCoder in the order of their `Trainer.fit`, which itself wants a language model around it.

    Unit norm before the forward pass, which returns the fvu; their fused encoder's backward; firing mask; parallel
    gradient; the optimiser. `optimizer="adam"` of their three, since their default, a schedule-free sign descent, needs
    another rate; auxk_alpha is 0, their default. Decoding is their eager path: the Triton path needs a GPU.
    Their `fit` asks torch for float32 products of "high" precision; here float32 is float32 for all.
    """
    from sparsify import SparseCoder, SparseCoderConfig

    theirs = SparseCoder(sae.d_in, SparseCoderConfig(num_latents=sae.n_latents, k=sae.k), dtype=torch.float32)
    _fill((theirs.encoder.weight, sae.W_enc), (theirs.encoder.bias, sae.b_enc), (theirs.b_dec, sae.b_pre))
    _fill((theirs.W_dec, sae.W_dec))
    optimiser = torch.optim.Adam(theirs.parameters(), lr=LEARNING_RATE)
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

    return Trainee(step, lambda x: theirs(x).sae_out)


def _overcomplete(sae: TopK, batch: int) -> Trainee:
    """TopKSAE with its linear encoder in their `train_sae`: clipping at norm 1, dead-code tracker, Adam.

    It has no pre-bias: the features are given to it centred with ours, which stays as it is, and its start is the same
    function. The criterion is their mean square without a penalty. Norms are renewed inside each forward pass. Their
    `train_sae_amp` is for float16 on a GPU; here the plain loop runs under autocast.
    """
    from overcomplete.sae import TopKSAE, train_sae

    theirs = TopKSAE(sae.d_in, nb_concepts=sae.n_latents, top_k=sae.k, encoder_module="linear", device="cpu")
    encoder = theirs.encoder.final_block[0]
    _fill((encoder.weight, sae.W_enc), (encoder.bias, sae.b_enc), (theirs.dictionary._weights, sae.W_dec))
    optimiser, centre = torch.optim.Adam(theirs.parameters(), lr=LEARNING_RATE), sae.b_pre.detach().clone()

    def criterion(x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Any:
        return (x - x_hat).square().mean()

    def step(x: Tensor) -> None:
        train_sae(theirs, [x - centre], criterion, optimiser, nb_epochs=1, monitoring=0)

    def reconstruct(x: Tensor) -> Tensor:
        x_hat: Tensor = theirs.eval()(x - centre)[2] + centre
        return x_hat

    return Trainee(step, reconstruct)


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
"""All of them, by the name that the table shows."""
