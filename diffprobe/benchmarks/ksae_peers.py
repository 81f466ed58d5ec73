"""Sparse autoencoders of other libraries, each trained by its own code, for `diffprobe bench ksae`.

Each library trains its own TopK class with its own loss, bookkeeping and normalisation. All start from the weights of
our autoencoder and get features with our scale s applied (only our step contains that work). There is no auxiliary loss
and no warm-up, and Adam has the same learning rate. Libraries that clip gradients or normalise the decoder in another
way do so here too, which changes their fvu.

A library that is not installed, or cannot be imported, is listed with the reason and does not raise an error.
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
"""Length of a run whose schedule is constant over the measured steps."""


class Trainee(NamedTuple):
    """An autoencoder in training. Features and reconstructions are scaled."""

    step: Callable[[Tensor], object]
    """One training step: forward, backward, optimiser, normalisation."""
    reconstruct: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One training method of another library."""

    distribution: str
    """Name of its distribution package."""
    module: str
    make: Callable[[TopK, int], Trainee]
    """(our autoencoder, which supplies the weights; rows per batch) -> its autoencoder in training."""
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


def _sae_lens(sae: TopK, batch: int, *, sparse: bool = False) -> Trainee:
    """TopKTrainingSAE in `SAETrainer.step`: their forward, firing counts, clipping at norm 1, `torch.optim.Adam`.

    Decoder norms are free and multiplied into the pre-activations, their default; fvu falls faster in the first steps
    with free norms than with unit norms. aux_loss_coefficient is 0, and no latent is dead before step 1000. `sparse` is
    their `use_sparse_activations`: a COO tensor is decoded, which they recommend for float32 without autocast only. It
    runs without the factor of decoder norms, whose backward torch lacks for such tensors ("could not run aten::view");
    the initial function is the same.
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

    Their first step replaces the bias by the geometric median, with up to 100 passes over the batch; counting from 1
    skips it. auxk_alpha is 0. Their own loop casts to bfloat16 on a GPU only; here autocast is on for both.
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
    """SparseCoder in the order of their `Trainer.fit`, which itself needs a language model.

    Unit norm before the forward pass, which returns the fvu; their fused encoder's backward; firing mask; parallel
    gradient; the optimiser. `optimizer="adam"` of their three, since their default, a schedule-free sign descent, needs
    another learning rate; auxk_alpha is 0, their default. Decoding is their eager path: the Triton path needs a GPU.
    Their `fit` sets torch's float32 matrix products to "high" precision; here all methods use full float32.
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

    It has no pre-bias: features are centred with our fixed pre-bias, so the initial function is the same. The criterion
    is their mean square without a penalty. Norms are restored inside each forward pass. Their `train_sae_amp` is for
    float16 on a GPU; here their plain loop runs under autocast.
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
"""Name in the printed table -> method."""
