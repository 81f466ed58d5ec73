"""Dictionaries of other libraries for the leaderboard: their TopK classes, each trained by its own step.

Differences from `ksae_peers.py`, which compares steps: auxiliary losses are on, with their defaults, the step size can
be set, and the weights can be taken out. Sparsify's default optimiser, a schedule-free sign descent, would need another
step size; its Adam is used. Libraries that are not installed are listed with the reason.
"""

import contextlib
import os
import sys
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor

from diffprobe.benchmarks.timed_dictionaries import MakeTraining, Training
from diffprobe.probes.sae.convert import UnscaledSAE
from diffprobe.probes.sae.topk import TopK

_NEVER = 10**9
"""Length of a run whose own schedule is constant."""


@dataclass(frozen=True, kw_only=True)
class PeerLibrary:
    """A library that trains dictionaries."""

    distribution: str
    """Name of its distribution package."""
    module: str
    make: MakeTraining

    def reason_it_is_absent(self) -> str | None:
        """Import the library, and return why it cannot be used; None if it can."""
        try:
            metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return "not installed (diffprobe[peers])"
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels need a GPU, which it does not check
        try:
            with contextlib.redirect_stdout(sys.stderr):  # sparsify prints on import, and stdout is for the table
                import_module(self.module)
        except Exception as error:  # a broken installation can raise anything
            return f"installed, but its import fails: {type(error).__name__}: {error}"
        return None

    @property
    def version(self) -> str:
        """Version that is installed."""
        return metadata.version(self.distribution)


@torch.no_grad()
def _fill(*pairs: tuple[Tensor, Tensor]) -> None:
    for theirs, ours in pairs:
        theirs.copy_(ours)


def _unscaled(parts: tuple[Tensor, Tensor, Tensor, Tensor], k: int) -> UnscaledSAE:
    """Copy encoder, its bias, decoder rows and pre-bias."""
    W_enc, b_enc, W_dec, b_dec = (part.detach().clone() for part in parts)
    return UnscaledSAE(W_enc, b_enc, W_dec, b_dec, None, k)


def _sae_lens(sae: TopK, batch: int, seed: int) -> Training:
    """TopKTrainingSAE in `SAETrainer.step`. Decoder norms are free, and multiplied into the pre-activations."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    theirs = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=sae.d_in, d_sae=sae.n_latents, k=sae.k))
    _fill((theirs.W_enc, sae.W_enc.T), (theirs.W_dec, sae.W_dec), (theirs.b_enc, sae.b_enc), (theirs.b_dec, sae.b_pre))
    plan = SAETrainerConfig(total_training_samples=_NEVER * batch, train_batch_size_samples=batch, lr=1.0, lr_end=1.0)
    trainer = SAETrainer(plan, theirs, iter(()))

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    def weights() -> UnscaledSAE:
        norm = theirs.W_dec.detach().norm(dim=1)
        W_enc, W_dec = theirs.W_enc.detach().T * norm[:, None], theirs.W_dec.detach() / norm[:, None]
        return _unscaled((W_enc, theirs.b_enc * norm, W_dec, theirs.b_dec), sae.k)

    return Training(step, trainer.optimizer, weights, theirs)


def _dictionary_learning(sae: TopK, batch: int, seed: int) -> Training:
    """AutoEncoderTopK in `TopKTrainer.update`, counting steps from 1: step 0 would replace the bias."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=_NEVER, activation_dim=sae.d_in, dict_size=sae.n_latents, k=sae.k, layer=0, lm_name="none", lr=1.0,
        warmup_steps=0, seed=seed, device="cpu",
    )  # fmt: skip
    ae, done = trainer.ae, [0]
    _fill((ae.encoder.weight, sae.W_enc), (ae.encoder.bias, sae.b_enc), (ae.decoder.weight, sae.W_dec.T))
    _fill((ae.b_dec, sae.b_pre))

    def step(x: Tensor) -> None:
        done[0] += 1
        trainer.update(done[0], x)

    def weights() -> UnscaledSAE:
        return _unscaled((ae.encoder.weight, ae.encoder.bias, ae.decoder.weight.T, ae.b_dec), sae.k)

    return Training(step, trainer.optimizer, weights, ae)


def _sparsify(sae: TopK, batch: int, seed: int) -> Training:
    """SparseCoder in the order of their `Trainer.fit`, which itself needs a language model."""
    from sparsify import SparseCoder, SparseCoderConfig

    theirs = SparseCoder(sae.d_in, SparseCoderConfig(num_latents=sae.n_latents, k=sae.k), dtype=torch.float32)
    _fill((theirs.encoder.weight, sae.W_enc), (theirs.encoder.bias, sae.b_enc), (theirs.b_dec, sae.b_pre))
    _fill((theirs.W_dec, sae.W_dec))
    optimiser = torch.optim.Adam(theirs.parameters(), lr=1.0)

    def step(x: Tensor) -> None:
        theirs.set_decoder_norm_to_unit_norm()
        out = theirs(x=x, y=x, dead_mask=None, total_variance=(x - x.mean(0)).pow(2).sum())
        out.fvu.backward()
        theirs.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()

    def weights() -> UnscaledSAE:
        return _unscaled((theirs.encoder.weight, theirs.encoder.bias, theirs.W_dec, theirs.b_dec), sae.k)

    return Training(step, optimiser, weights, lambda x: theirs(x).sae_out)


def _overcomplete(sae: TopK, batch: int, seed: int) -> Training:
    """TopKSAE with its linear encoder in `train_sae`; it has no pre-bias, so features are centred with our first one.

    The criterion is their mean square without a penalty.
    """
    from overcomplete.sae import TopKSAE, train_sae

    theirs = TopKSAE(sae.d_in, nb_concepts=sae.n_latents, top_k=sae.k, encoder_module="linear", device="cpu")
    encoder = theirs.encoder.final_block[0]
    _fill((encoder.weight, sae.W_enc), (encoder.bias, sae.b_enc), (theirs.dictionary._weights, sae.W_dec))
    optimiser, centre = torch.optim.Adam(theirs.parameters(), lr=1.0), sae.b_pre.detach().clone()

    def criterion(x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Any:
        return (x - x_hat).square().mean()

    def step(x: Tensor) -> None:
        train_sae(theirs, [x - centre], criterion, optimiser, nb_epochs=1, monitoring=0)

    def weights() -> UnscaledSAE:
        return _unscaled((encoder.weight, encoder.bias, theirs.get_dictionary(), centre), sae.k)

    def reconstruct(x: Tensor) -> Tensor:
        x_hat: Tensor = theirs.eval()(x - centre)[2] + centre
        return x_hat

    return Training(step, optimiser, weights, reconstruct)


LIBRARIES = {
    "SAELens": PeerLibrary(distribution="sae-lens", module="sae_lens", make=_sae_lens),
    "dictionary_learning": PeerLibrary(
        distribution="dictionary-learning", module="dictionary_learning", make=_dictionary_learning
    ),
    "sparsify": PeerLibrary(distribution="eai-sparsify", module="sparsify", make=_sparsify),
    "overcomplete": PeerLibrary(distribution="overcomplete", module="overcomplete", make=_overcomplete),
}
"""Name in the table -> library."""
