"""Conversion of autoencoders to and from the formats of SAELens and dictionary_learning.

Scale and pre-bias are folded into the weights, so that the other library reconstructs features in their own unit: with
h the scaled pre-activation, its activation is h / s; decoder rows keep their norm; thresholds are divided by s. Options
of the other library (activation norms, rescaling by decoder norms) are folded when reading, or raise SchemaError.

dictionary_learning stores weights in `ae.pt`, a pickle. It is written as a state dict of tensors only, and read with
`weights_only=True`, which loads only tensors.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffprobe.core.artifact import open_to_readers, write_json_atomic
from diffprobe.core.errors import ConfigError, SchemaError, WeightsMissing, unknown
from diffprobe.probes.sae import batch_topk, jumprelu, topk
from diffprobe.probes.sae.base import KSAE


class UnscaledSAE(NamedTuple):
    """An autoencoder without input scale: x_hat = W_dec^T act(W_enc (x - b_dec) + b_enc) + b_dec."""

    W_enc: Float[Tensor, "n_latents d_in"]
    b_enc: Float[Tensor, " n_latents"]
    W_dec: Float[Tensor, "n_latents d_in"]
    b_dec: Float[Tensor, " d_in"]
    threshold: Float[Tensor, " n_latents"] | None
    """Activations up to the threshold are 0; None if the k largest are kept instead."""
    k: int


@torch.no_grad()
def fold(sae: KSAE) -> UnscaledSAE:
    """Fold the scale into the weights. Raises: ConfigError for an activation that the other libraries do not have."""
    if not sae.relu:
        raise ConfigError(
            f"'{sae.variant}' keeps negative activations; SAELens and dictionary_learning cannot represent them."
        )
    s = sae.scale.double()
    threshold = None
    if isinstance(sae, batch_topk.BatchTopK):
        if float(sae.threshold) < 0:
            raise ConfigError("this BatchTopK autoencoder has no threshold.", fix="train it for one step")
        threshold = sae.threshold.double().expand(sae.n_latents) / s
    elif isinstance(sae, jumprelu.JumpReLU):
        threshold = sae.threshold.double() / s
    parts = sae.W_enc, sae.b_enc.double() / s, sae.W_dec, sae.b_pre.double() / s
    W_enc, b_enc, W_dec, b_dec = (part.detach().float().clone() for part in parts)
    return UnscaledSAE(W_enc, b_enc, W_dec, b_dec, None if threshold is None else threshold.float().contiguous(), sae.k)


@torch.no_grad()
def unfold(plain: UnscaledSAE, variant: str) -> KSAE:
    """Make the autoencoder of a variant ("topk", "batch_topk", "jumprelu") from weights without input scale."""
    n_latents, d_in = plain.W_enc.shape
    module = {"topk": topk, "batch_topk": batch_topk, "jumprelu": jumprelu}[variant]
    sae: KSAE = module.make(module.Config(k=plain.k, n_latents=n_latents), d_in, seed=0)  # type: ignore[attr-defined]
    for name, value in (
        ("W_enc", plain.W_enc), ("b_enc", plain.b_enc), ("W_dec", plain.W_dec), ("b_pre", plain.b_dec)
    ):  # fmt: skip
        getattr(sae, name).copy_(value)
    if isinstance(sae, batch_topk.BatchTopK) and plain.threshold is not None:
        if plain.threshold.unique().numel() != 1:
            raise ConfigError("a BatchTopK autoencoder has one threshold; these weights contain several.")
        sae.threshold.copy_(plain.threshold[0])
    if isinstance(sae, jumprelu.JumpReLU) and plain.threshold is not None:
        sae.log_threshold.copy_(
            plain.threshold.double().clamp(min=1e-12).log()
        )  # a threshold of 0 or less keeps all positive values
    sae.initialised.fill_(True)
    return sae


def to_saelens(sae: KSAE, folder: Path | str, *, cell: str | None = None) -> Path:
    """Write `cfg.json` and `sae_weights.safetensors`, as `sae_lens.SAE.load_from_disk` reads them.

    TopK becomes "topk"; BatchTopK, Matryoshka and JumpReLU become "jumprelu" with their thresholds, as SAELens does
    itself. Raises: ConfigError.
    """
    plain, folder = fold(sae), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": plain.W_enc.T, "b_enc": plain.b_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec}
    settings: dict[str, Any] = {"architecture": "topk", "k": plain.k, "rescale_acts_by_decoder_norm": False}
    if plain.threshold is not None:
        settings, tensors["threshold"] = {"architecture": "jumprelu"}, plain.threshold
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    open_to_readers(folder / "sae_weights.safetensors")
    common = {
        "d_in": sae.d_in, "d_sae": sae.n_latents, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none", "metadata": {"hook_name": cell},
    }  # fmt: skip
    write_json_atomic(folder / "cfg.json", {**common, **settings})
    return folder


@torch.no_grad()
def from_saelens(folder: Path | str) -> KSAE:
    """Load an autoencoder of SAELens: "topk", "batchtopk" (its training form) or "jumprelu".

    Raises: WeightsMissing, SchemaError for another architecture, for normalised or reshaped activations.
    """
    settings = _read_settings(Path(folder) / "cfg.json")
    variants = {"topk": "topk", "batchtopk": "batch_topk", "jumprelu": "jumprelu"}
    architecture = str(settings.get("architecture"))
    if architecture not in variants:
        raise unknown("SAELens architecture", architecture, variants, SchemaError)
    for name in ("normalize_activations", "reshape_activations"):
        if settings.get(name, "none") not in ("none", None):
            raise SchemaError(f"'{folder}': {name} = {settings[name]} can't be folded into the weights.")
    tensors = load_file(_present(Path(folder) / "sae_weights.safetensors"))
    W_enc, W_dec = tensors["W_enc"].T.double(), tensors["W_dec"].double()
    b_enc, b_dec = tensors["b_enc"].double(), tensors["b_dec"].double()
    threshold = tensors.get("threshold")
    if "topk_threshold" in tensors:
        threshold = tensors["topk_threshold"].expand(W_enc.shape[0])
    if settings.get("rescale_acts_by_decoder_norm", False):
        norm = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norm[:, None], b_enc * norm, W_dec / norm[:, None]
    if not settings.get("apply_b_dec_to_input", True):
        b_enc = b_enc + W_enc @ b_dec
    W_enc, b_enc, W_dec, b_dec = (part.float() for part in (W_enc, b_enc, W_dec, b_dec))
    limit, k = None if threshold is None else threshold.float(), int(settings.get("k") or 1)
    return unfold(UnscaledSAE(W_enc, b_enc, W_dec, b_dec, limit, k), variants[architecture])


def to_dictionary_learning(sae: KSAE, folder: Path | str) -> Path:
    """Write `config.json` and `ae.pt`, as `dictionary_learning.utils.load_dictionary` reads them.

    TopK becomes "AutoEncoderTopK"; BatchTopK and Matryoshka "BatchTopKSAE"; JumpReLU "JumpReluAutoEncoder", which does
    not subtract a bias from the input: it is folded into the encoder bias. Raises: ConfigError.
    """
    plain, folder = fold(sae), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = "AutoEncoderTopK" if plain.threshold is None else "BatchTopKSAE"
    if isinstance(sae, jumprelu.JumpReLU) and plain.threshold is not None:
        name = "JumpReluAutoEncoder"
        b_enc = plain.b_enc.double() - plain.W_enc.double() @ plain.b_dec.double()
        tensors = {"W_enc": plain.W_enc.T, "b_enc": b_enc.float(), "W_dec": plain.W_dec, "b_dec": plain.b_dec}
        tensors["threshold"] = plain.threshold
    else:
        tensors = {"encoder.weight": plain.W_enc, "encoder.bias": plain.b_enc, "decoder.weight": plain.W_dec.T}
        tensors |= {"b_dec": plain.b_dec, "k": torch.tensor(plain.k, dtype=torch.int32)}
        tensors["threshold"] = torch.tensor(-1.0) if plain.threshold is None else plain.threshold[0].clone()
    torch.save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": sae.d_in, "dict_size": sae.n_latents, "k": plain.k}
    write_json_atomic(folder / "config.json", {"trainer": trainer, "buffer": {}})
    return folder


@torch.no_grad()
def from_dictionary_learning(folder: Path | str) -> KSAE:
    """Load an autoencoder of dictionary_learning: AutoEncoderTopK, (Matryoshka)BatchTopKSAE, JumpReluAutoEncoder.

    Raises: WeightsMissing, SchemaError for another class.
    """
    trainer = _read_settings(Path(folder) / "config.json").get("trainer", {})
    variants = {
        "AutoEncoderTopK": "topk", "BatchTopKSAE": "batch_topk", "MatryoshkaBatchTopKSAE": "batch_topk",
        "JumpReluAutoEncoder": "jumprelu",
    }  # fmt: skip
    name = str(trainer.get("dict_class"))
    if name not in variants:
        raise unknown("class of dictionary_learning", name, variants, SchemaError)
    tensors = torch.load(_present(Path(folder) / "ae.pt"), map_location="cpu", weights_only=True)
    b_dec, threshold = tensors["b_dec"], tensors.get("threshold")
    if "encoder.weight" in tensors:
        W_enc, b_enc, W_dec = tensors["encoder.weight"], tensors["encoder.bias"], tensors["decoder.weight"].T
    else:
        W_enc, b_enc, W_dec = tensors["W_enc"].T, tensors["b_enc"], tensors["W_dec"]
    if variants[name] == "jumprelu":
        b_enc = b_enc.double() + W_enc.double() @ b_dec.double()
    k = int(tensors["k"]) if "k" in tensors else int(trainer.get("k") or 1)
    if threshold is not None and threshold.ndim == 0:
        threshold = threshold.expand(W_enc.shape[0])
    W_enc, b_enc, W_dec, b_dec = (part.float() for part in (W_enc, b_enc, W_dec, b_dec))
    limit = None if variants[name] == "topk" else threshold
    return unfold(UnscaledSAE(W_enc, b_enc, W_dec, b_dec, limit, k), variants[name])


def _present(path: Path) -> Path:
    if not path.is_file():
        raise WeightsMissing(f"'{path.parent}' has no file '{path.name}'.")
    return path


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(_present(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SchemaError(f"'{path}' is not a readable JSON file: {error}.") from error
    if not isinstance(settings, dict):
        raise SchemaError(f"'{path}' is not a JSON object.")
    return settings
