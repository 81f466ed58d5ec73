"""Load a frozen transformers model from the config and safetensors files of one part, and from nothing else.

transformers would follow an index to pickles, take an attention implementation from the config (and fetch it from the
hub), and load adapters from the same folder. Here it gets a config of known settings and tensors in memory.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.network_size import bounded
from diffprobe.backbones.part_config import CONFIG, network_settings, read_part_config
from diffprobe.backbones.weights import describe_tensors, read_tensors
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.foreign import naming

_BASES = ("PreTrainedConfig", "PretrainedConfig")
"""The base class of all configs, since and before transformers 5."""
_DENIED = {
    "attn_implementation", "experts_implementation", "torch_dtype", "dtype", "transformers_weights", "fusion_config",
    "distributed_config", "kernel_config", "gguf_file", "torchscript", "use_return_dict", "return_dict",
    "output_attentions", "output_hidden_states", "name_or_path", "architectures",
}  # fmt: skip
"""Settings that choose code, files, precision or the form of the output: those are chosen here."""
_ALWAYS = ("use_attention_mask", "tie_word_embeddings")
"""Settings that pipelines or models read although no class of configs declares them."""


def model_class(folder: Path) -> Any:
    """Return transformers' class of bare models for the model_type in a folder's config.

    Raises: WeightsMissing; WeightsMismatch for a type that transformers does not have.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    path = folder / CONFIG
    name = read_part_config(path).get("model_type")
    if not isinstance(name, str) or name not in CONFIG_MAPPING or CONFIG_MAPPING[name] not in MODEL_MAPPING:
        raise WeightsMismatch(
            f"'{path}': model_type is {str(name)[:80]}, which is not a model of transformers.",
            "code that comes with a checkpoint is never run",
        )
    found = MODEL_MAPPING[CONFIG_MAPPING[name]]
    return found[0] if isinstance(found, tuple) else found


@dataclass(frozen=True)
class LanguageModel:
    """The language model of a checkpoint that holds more: a head, an encoder of images, layers that are not run.

    Attributes:
        key: of its configuration inside that of the whole; None if they are one.
        layers: how many of its layers are read, from the first; None reads all.
    """

    key: str | None = None
    layers: int | None = None

    def rename(self, name: str) -> str | None:
        """Return the name of a stored tensor in the bare language model; None for one that is not read."""
        found = _INNER.fullmatch(name)
        if found is None or (self.layers is not None and found[2] is not None and int(found[2]) >= self.layers):
            return None
        return found[1]

    def settings(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of the language model with the layers that are read."""
        inner = found.get(self.key or "")
        own = dict(inner) if isinstance(inner, dict) else dict(found)
        n = own.get("num_hidden_layers")
        if self.layers is not None and isinstance(n, int) and n > self.layers:
            own["num_hidden_layers"] = self.layers
            if isinstance(kinds := own.get("layer_types"), list):
                own["layer_types"] = kinds[: self.layers]
        return own


_INNER = re.compile(
    r"(?:language_model\.model\.|model\.language_model\.|model\.|language_model\.)?"
    r"(embed_tokens\..+|norm\..+|layers\.(\d+)\..+)"
)
"""Names of a language model's tensors, as checkpoints of several versions of transformers store them."""


def load_transformer(
    kind: Any,
    folder: Path,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    declared_only: bool = True,
    inner: LanguageModel | None = None,
) -> Any:
    """Load a frozen transformers model from the folder of one part.

    Args:
        kind: the model's class.
        dtype: precision of the weights, however they are stored.
        attention: implementation of the attention; None takes PyTorch's where the class has it, else "eager".
        declared_only: see `make_text_config`.
        inner: the language model that is read alone.
    Raises: WeightsMissing; WeightsMismatch if config and weights do not fit; RunFailed if memory does not suffice.
    """
    config, n_numbers = _make_config(kind, folder, declared_only, inner)
    implementation = attention or ("sdpa" if getattr(kind, "_supports_sdpa", False) else "eager")
    tensors = read_tensors(folder, dtype=dtype, rename=inner.rename if inner else str)
    model = _fill(kind, config, folder, tensors, n_numbers, dtype=dtype, attn_implementation=implementation)
    return model.eval().requires_grad_(False)


def match_transformer(kind: Any, folder: Path, *, inner: LanguageModel | None = None) -> Any:
    """Compare a transformers model with the headers of its weights, which are not read.

    Args: see `load_transformer`.
    Returns: the model on the meta device.
    Raises: WeightsMissing; WeightsMismatch if config and weights do not fit.
    """
    config, n_numbers = _make_config(kind, folder, inner is None, inner)
    tensors = describe_tensors(folder, rename=inner.rename if inner else str)
    return _fill(kind, config, folder, tensors, n_numbers, device_map="meta")


def _make_config(kind: Any, folder: Path, declared_only: bool, inner: LanguageModel | None = None) -> tuple[Any, int]:
    """Make the config of a model, and count the numbers that the model has by it."""
    path = folder / CONFIG
    config = make_text_config(kind.config_class, path, declared_only=declared_only, inner=inner)
    with naming(path, f"a configuration of {kind.__name__}"), bounded(_numbers(config), path), quiet_libraries():
        with torch.device("meta"):
            bare = kind(config)
    return config, sum(x.numel() for x in bare.parameters())


def _fill(kind: Any, config: Any, folder: Path, tensors: dict[str, Tensor], n_numbers: int, **options: object) -> Any:
    """Make a model of tensors. Raises: WeightsMismatch if it needs others."""
    stored = sum(x.numel() for x in tensors.values())
    if n_numbers > stored:
        raise WeightsMismatch(
            f"the weights in '{folder}' do not fit its config.",
            f"missing: the config has {n_numbers:,} numbers, the files {stored:,}",
        )
    with naming(folder, f"a folder with the weights of {kind.__name__}"), quiet_libraries():
        model, report = kind.from_pretrained(
            None, config=config, state_dict=tensors, local_files_only=True, output_loading_info=True, **options
        )
    faults = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if faults:
        raise WeightsMismatch(f"the weights in '{folder}' do not fit its config.", f"missing: {', '.join(faults[:5])}")
    return model


def make_text_config(kind: Any, path: Path, *, declared_only: bool = True, inner: LanguageModel | None = None) -> Any:
    """Make a transformers config of class `kind` from a file. A config of a whole CLIP has that of its text inside.

    Args:
        declared_only: take only the settings that the class declares; otherwise also older names that it translates,
            but still none that choose code, files, precision or form of the output. Configs written before
            transformers 5 need this for the base of their rotary embeddings, `rope_theta`.
        inner: the language model that the config is made of.
    Raises: WeightsMissing, WeightsMismatch.
    """
    found = network_settings(read_part_config(path))
    nested = found.get(getattr(kind, "base_config_key", "") or "")
    if inner is not None:
        found = inner.settings(found)
    elif isinstance(nested, dict):
        found = nested
    declared, denied = _declared(kind), _of_all(kind) | _DENIED
    kept = {k: v for k, v in found.items() if k in declared or (not declared_only and k not in denied)}
    for name, part in getattr(kind, "sub_configs", {}).items():  # a whole CLIP: the configs of its text and its vision
        if isinstance(inner := kept.get(name), dict):
            kept[name] = {key: inner[key] for key in inner if key in _declared(part)}
    with naming(path, f"a configuration of {kind.__name__}"):
        return kind(**kept)


def _declared(kind: Any) -> set[str]:
    """Return the settings that a class of configs has of its own, not those of all configs."""
    names = {*getattr(kind, "attribute_map", {}), *_ALWAYS}
    for parent in kind.__mro__:
        if parent.__name__ in _BASES:
            break
        names |= _settings_of(parent)
    return {name for name in names if not name.startswith("_")}


def _of_all(kind: Any) -> set[str]:
    return {name for parent in kind.__mro__ if parent.__name__ in _BASES for name in _settings_of(parent)}


def _settings_of(parent: type) -> set[str]:
    names = set(parent.__dict__.get("__annotations__", {}))  # transformers 5: fields
    code = getattr(parent.__dict__.get("__init__"), "__code__", None)  # transformers 4: arguments
    return names | set(code.co_varnames[1 : code.co_argcount] if code is not None else ())


def _numbers(config: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(config).items() if isinstance(value, int)}
