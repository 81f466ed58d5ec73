"""Conversion of autoencoders to and from the formats of SAELens and dictionary_learning.

Scale and pre-bias are folded into the weights, so that the other library reconstructs features in their own unit: with
h the scaled pre-activation, its activation is h / s; decoder rows keep their norm; thresholds are divided by s. Options
of the other library (activation norms, rescaling by decoder norms) are folded when reading, or raise SchemaError. A
setting that changes the function and is missing, or is there twice with two values, raises SchemaError too.

dictionary_learning stores weights in `ae.pt`, a pickle. It is written as a state dict of tensors only, and read with
`weights_only=True`, which loads only tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.artifact import write_json_atomic
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import ConfigError, DiffprobeError, SchemaError, WeightsMissing, unknown
from diffprobe.core.foreign import naming
from diffprobe.core.json_file import read_json_object
from diffprobe.core.safetensors_file import load_safetensors
from diffprobe.probes.sae import batch_topk, jumprelu, topk
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.serialization import save_tensors

_SAELENS = {"topk": "topk", "batchtopk": "batch_topk", "jumprelu": "jumprelu"}
_LEARNING = {
    "AutoEncoderTopK": "topk", "BatchTopKSAE": "batch_topk", "MatryoshkaBatchTopKSAE": "batch_topk",
    "JumpReluAutoEncoder": "jumprelu",
}  # fmt: skip
"""Architecture or class of the other library -> variant here."""
_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


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
    """Make the autoencoder of a variant ("topk", "batch_topk", "jumprelu") from weights without input scale.

    Raises: SchemaError for a BatchTopK without one threshold of at least 0; ConfigError for a k beyond the latents.
    """
    n_latents, d_in = plain.W_enc.shape
    module = {"topk": topk, "batch_topk": batch_topk, "jumprelu": jumprelu}[variant]
    sae: KSAE = module.make(module.Config(k=plain.k, n_latents=n_latents), d_in, seed=0)  # type: ignore[attr-defined]
    for name, value in (
        ("W_enc", plain.W_enc), ("b_enc", plain.b_enc), ("W_dec", plain.W_dec), ("b_pre", plain.b_dec)
    ):  # fmt: skip
        getattr(sae, name).copy_(value)
    if isinstance(sae, batch_topk.BatchTopK) and plain.threshold is not None:
        if plain.threshold.unique().numel() != 1:
            raise SchemaError("a BatchTopK autoencoder has one threshold; these weights contain several.")
        if float(plain.threshold[0]) < 0:
            raise SchemaError("the threshold of this BatchTopK autoencoder is negative: it was not trained.")
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
    with atomic_file(folder / "sae_weights.safetensors") as temporary:
        save_tensors(tensors, temporary)
    common = {
        "d_in": sae.d_in, "d_sae": sae.n_latents, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none", "metadata": {"hook_name": cell},
    }  # fmt: skip
    write_json_atomic(folder / "cfg.json", {**common, **settings})
    return folder


@torch.no_grad()
def from_saelens(folder: Path | str) -> KSAE:
    """Load an autoencoder of SAELens: "topk", "batchtopk" (its training form) or "jumprelu".

    Files of all its versions are read: k is in `k` since version 6, before in `activation_fn_kwargs`. The k of a
    JumpReLU, which is the target of its training only, is in no file; it is 1 here.

    Raises: WeightsMissing; SchemaError for another architecture, for normalised or reshaped activations, for settings
        that are missing or contradict each other, for weights that do not fit.
    """
    path = Path(folder) / "cfg.json"
    settings = read_json_object(_present(path))
    architecture = _saelens_architecture(settings, path)
    _check_saelens(settings, path)
    with _reading(Path(folder) / "sae_weights.safetensors") as weights:
        tensors = load_safetensors(weights)
        if "scaling_factor" in tensors and bool((tensors["scaling_factor"] == 1).all()):
            del tensors["scaling_factor"]  # some versions wrote it in any case
        limit = {"topk": (), "batchtopk": ("topk_threshold",), "jumprelu": ("threshold",)}[architecture]
        W_enc, b_enc, W_dec, b_dec = _weights(tensors, weights, also=limit, others=())
        _check_sizes(settings, W_dec, path, width="d_in", latents="d_sae")
        k = 1 if architecture == "jumprelu" else _saelens_k(settings, path)
        threshold = tensors[limit[0]].float().expand(len(W_dec)) if limit else None
        if settings.get("rescale_acts_by_decoder_norm", False):  # missing: a version without that option
            norm = W_dec.norm(dim=1)
            W_enc, b_enc, W_dec = W_enc * norm[:, None], b_enc * norm, W_dec / norm[:, None]
        if not settings["apply_b_dec_to_input"]:
            b_enc = b_enc + W_enc @ b_dec
        W_enc, b_enc, W_dec, b_dec = (part.float() for part in (W_enc, b_enc, W_dec, b_dec))
        return unfold(UnscaledSAE(W_enc, b_enc, W_dec, b_dec, threshold, k), _SAELENS[architecture])


def _saelens_architecture(settings: Mapping[str, Any], path: Path) -> str:
    """Return the architecture; early versions write a TopK as "standard" with the activation "topk"."""
    architecture = settings.get("architecture")
    activation = _one(
        settings, ("activation_fn", "activation_fn_str"), path, "topk" if architecture == "topk" else None
    )
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    if not isinstance(architecture, str) or architecture not in _SAELENS:
        raise _with_place(unknown("SAELens architecture", str(architecture), _SAELENS, SchemaError), path)
    fitting = ("topk",) if architecture == "topk" else ("relu", "batchtopk", None)
    if activation not in fitting:
        raise SchemaError(f"'{path}': architecture '{architecture}' with the activation '{activation}'.")
    return architecture


def _check_saelens(settings: Mapping[str, Any], path: Path) -> None:
    """Check the settings that change what an autoencoder computes. Raises: SchemaError."""
    required = [name for name in ("apply_b_dec_to_input", "normalize_activations") if name not in settings]
    if required:
        raise SchemaError(
            f"'{path}' lacks {', '.join(required)}, without which the autoencoder is unknown.",
            fix="add them to the file as they were when it was trained (SAELens itself assumes true and none)",
        )
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "finetuning_scaling_factor"):
        if not isinstance(settings.get(name, False), bool):
            raise SchemaError(f"'{path}': {name} is {str(settings[name])[:80]}.", "allowed: true, false")
    if settings.get("finetuning_scaling_factor"):
        raise SchemaError(f"'{path}': finetuning_scaling_factor can't be folded into the weights.")
    for name in ("normalize_activations", "reshape_activations"):
        if settings.get(name) not in ("none", None, False):
            raise SchemaError(f"'{path}': {name} = {str(settings[name])[:80]} can't be folded into the weights.")


def _saelens_k(settings: Mapping[str, Any], path: Path) -> int:
    given = settings.get("activation_fn_kwargs") or {}
    if not isinstance(given, dict) or set(given) - {"k"}:
        raise SchemaError(f"'{path}': activation_fn_kwargs is {str(given)[:80]}.", "allowed: k")
    return _k([settings.get("k"), given.get("k")], path, "k or activation_fn_kwargs.k")


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
    with atomic_file(folder / "ae.pt") as temporary:
        torch.save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, temporary)
    trainer = {"dict_class": name, "activation_dim": sae.d_in, "dict_size": sae.n_latents, "k": plain.k}
    write_json_atomic(folder / "config.json", {"trainer": trainer, "buffer": {}})
    return folder


@torch.no_grad()
def from_dictionary_learning(folder: Path | str) -> KSAE:
    """Load an autoencoder of dictionary_learning: AutoEncoderTopK, (Matryoshka)BatchTopKSAE, JumpReluAutoEncoder.

    Raises: WeightsMissing; SchemaError for another class, for settings that are missing or contradict each other, for
        weights that do not fit.
    """
    path = Path(folder) / "config.json"
    trainer = read_json_object(_present(path)).get("trainer")
    if not isinstance(trainer, dict):
        raise SchemaError(f"'{path}' has no object 'trainer'.")
    name = str(trainer.get("dict_class"))
    if name not in _LEARNING:
        raise _with_place(unknown("class of dictionary_learning", name, _LEARNING, SchemaError), path)
    variant = _LEARNING[name]
    with _reading(Path(folder) / "ae.pt") as weights:
        tensors = _state_dict(weights)
        if "encoder.weight" in tensors:
            names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
            tensors |= {new: tensors.pop(old) for new, old in names.items() if old in tensors}
            tensors |= {new: tensors[new].T for new in ("W_enc", "W_dec") if new in tensors}
        limit = () if variant == "topk" else ("threshold",)
        W_enc, b_enc, W_dec, b_dec = _weights(tensors, weights, also=limit, others=("k", "threshold", "group_sizes"))
        _check_sizes(trainer, W_dec, path, width="activation_dim", latents="dict_size")
        threshold = tensors["threshold"].float().expand(len(W_dec)) if limit else None
        if variant == "jumprelu":
            b_enc, k = b_enc + W_enc @ b_dec, 1
        else:
            stored = float(tensors["k"]) if "k" in tensors else None
            k = _k([stored, trainer.get("k")], path, "trainer.k, or k in ae.pt")
        W_enc, b_enc, W_dec, b_dec = (part.float() for part in (W_enc, b_enc, W_dec, b_dec))
        return unfold(UnscaledSAE(W_enc, b_enc, W_dec, b_dec, threshold, k), variant)


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict of tensors that are not larger than their file. Raises: SchemaError."""
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise SchemaError(f"'{path}' is not a state dict of tensors.")
    size = path.stat().st_size
    large = [name for name, value in found.items() if value.numel() * value.element_size() > size]
    if large:
        raise SchemaError(f"'{path}' has {size:,} bytes and claims to hold more: {', '.join(map(str, large[:3]))}.")
    return {str(name): value for name, value in found.items()}


def _weights(
    tensors: Mapping[str, Tensor], path: Path, *, also: Sequence[str], others: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return encoder [latents, width], its bias, decoder and its bias in float64.

    Args:
        also: further tensors that are needed, with one number or one per latent.
        others: names of tensors that may be there.
    Raises: SchemaError for missing, unknown, misshapen, complex or non-finite tensors.
    """
    missing = [name for name in (*_WEIGHTS, *also) if name not in tensors]
    more = [name for name in tensors if name not in (*_WEIGHTS, *also, *others)]
    if missing or more:
        raise SchemaError(
            f"'{path}' does not have the tensors of this autoencoder.",
            *([f"missing: {', '.join(missing)}"] if missing else []),
            *([f"unknown: {', '.join(more[:5])}"] if more else []),
        )
    latents, width = (*tensors["W_dec"].shape, 0, 0)[:2]
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "W_dec": ((latents, width),), "b_enc": ((latents,),), "b_dec": ((width,),),
        "W_enc": ((width, latents),),
        **dict.fromkeys(also, ((), (1,), (latents,))),
    }  # fmt: skip
    for name, allowed in shapes.items():
        value = tensors[name]
        if tuple(value.shape) not in allowed or 0 in value.shape or value.is_complex():
            raise SchemaError(
                f"'{path}': {name} is {value.dtype} {tuple(value.shape)}; allowed: {', '.join(map(str, allowed))}."
            )
        if not bool(torch.isfinite(value).all()):
            raise SchemaError(f"'{path}': {name} has NaN or infinity.")
    return tensors["W_enc"].T.double(), tensors["b_enc"].double(), tensors["W_dec"].double(), tensors["b_dec"].double()


def _check_sizes(settings: Mapping[str, Any], W_dec: Tensor, path: Path, *, width: str, latents: str) -> None:
    for name, found in ((latents, W_dec.shape[0]), (width, W_dec.shape[1])):
        if settings.get(name, found) != found:
            raise SchemaError(f"'{path}': {name} is {str(settings[name])[:80]}, the weights have {found}.")


def _one(settings: Mapping[str, Any], names: Sequence[str], path: Path, default: str | None) -> object:
    """Return the value of a setting with several spellings. Raises: SchemaError if they differ."""
    found = {name: settings[name] for name in names if settings.get(name) is not None}
    if len({str(value) for value in found.values()}) > 1:
        raise SchemaError(f"'{path}' contradicts itself: {', '.join(f'{key}={x}' for key, x in found.items())}.")
    return next(iter(found.values()), default)


def _k(given: Sequence[object], path: Path, places: str) -> int:
    """Return k from the places where it may be. Raises: SchemaError if it is nowhere, or not a whole number."""
    found = [value for value in given if value is not None]
    if not found:
        raise SchemaError(f"'{path}' does not say how many latents are kept: {places}.")
    for value in found:
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 1 and value == value // 1
        if not whole:
            raise SchemaError(f"'{path}': k is {str(value)[:80]}.", "allowed: a whole number of at least 1")
    if len(set(found)) > 1:
        raise SchemaError(f"'{path}' contradicts itself: k is {' and '.join(map(str, found))}.", f"in: {places}")
    return int(found[0])  # type: ignore[call-overload, no-any-return]


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """Turn whatever is raised over the weights into an error that names the file."""
    try:
        with naming(path, "an autoencoder that can be read", error=SchemaError):
            yield _present(path)
    except SchemaError as error:
        raise error if str(path.parent) in error.what else _with_place(error, path) from error


def _with_place(error: DiffprobeError, path: Path) -> DiffprobeError:
    return type(error)(f"'{path}': {error.what}", *error.details, fix=error.fix)


def _present(path: Path) -> Path:
    if not path.is_file():
        raise WeightsMissing(f"'{path.parent}' has no file '{path.name}'.")
    return path
