"""LoRA files: read, compared with a backbone, and added to its weights when it is loaded.

A LoRA stores for a layer two factors; the layer's weights become W + weight * alpha / rank * up @ down. After that it
costs nothing. Every tensor of a file has to belong to the backbone: a file of another model is refused, not used in
part. The names of tensors are in `lora_names.py`.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffprobe.backbones.lora_names import DENOISER, parse_key, targets
from diffprobe.core.digest import digest_file_once
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from diffprobe.core.safetensors_file import open_safetensors

_SHOWN = 4
_METADATA = "lora_adapter_metadata"
"""Key in the header of a file under which diffusers keeps the settings of PEFT, as JSON."""
_OTHER_SCALES = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "lora_bias")
"""Settings of PEFT that change the update in other ways than rank and alpha."""


@dataclass(frozen=True)
class Update:
    """The update of one module, by the file's header.

    Attributes:
        module: name of the module as in the file, see `lora_names.targets`.
        down, up: names of the factors' tensors.
        alpha: name of the tensor with its scale, or the scale itself; None takes the rank, which is a scale of 1.
        shapes: of both factors, `down` first.
    """

    module: str
    down: str
    up: str
    alpha: str | float | None
    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    def fits(self, weight: Tensor) -> bool:
        """Whether the product of the factors has the shape of a layer's weight, a convolution's kernel flattened."""
        (rank, *inner), (outer, *up) = self.shapes
        is_product = math.prod(up) == rank and outer == weight.shape[0]
        return is_product and math.prod(inner) == math.prod(weight.shape[1:])


@dataclass(frozen=True)
class Lora:
    """A LoRA file and the weight that it is added with.

    Attributes:
        file: the safetensors file.
        weight: factor of its update, finite and not 0.
    """

    file: Path
    weight: float = 1.0

    @cached_property
    def digest(self) -> str:
        """The file's sha256 and the weight: what fixes the update."""
        return f"{digest_file_once(self.file)}@{self.weight!r}"

    @cached_property
    def updates(self) -> dict[str, list[Update]]:
        """The updates by part (`denoiser`, `text_encoder`, ...), from the header alone. Raises: WeightsMismatch."""
        return _read_updates(self.file)


def find_lora(setting: str) -> Lora:
    """Read the setting `backbone.lora`: FILE or FILE@WEIGHT.

    Raises: WeightsMissing if there is no such file; ConfigError for a weight that is not a finite number, or is 0.
    """
    name, weight = setting, 1.0
    if not Path(setting).expanduser().is_file() and "@" in Path(setting).name:
        name, _, text = setting.rpartition("@")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight) or weight == 0:
            raise ConfigError(
                f"backbone.lora={setting}: '{text}' is not a weight.",
                "allowed: a finite number other than 0, which would have no effect",
                fix=f"backbone.lora={name}@1.0",
            )
    path = Path(name).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsMissing(
            f"the LoRA '{name}' {what}.", fix="set backbone.lora to a safetensors file, or FILE@WEIGHT"
        )
    if path.suffix != ".safetensors":
        raise WeightsMissing(
            f"the LoRA '{name}' is not a safetensors file; pickles are never read.", fix="convert it to safetensors"
        )
    return Lora(path, weight)


def _read_updates(file: Path) -> dict[str, list[Update]]:
    tensors: dict[tuple[str, str, bool], dict[str, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    unread: list[str] = []
    with open_safetensors(file, error=WeightsMismatch, fix="copy or download the file again") as stored:
        metadata = stored.metadata() or {}
        for name in stored.keys():
            key, shape = parse_key(name), tuple(stored.get_slice(name).get_shape())
            halves = None if key is None else tensors.setdefault((key.part, key.module, key.flat), {})
            if key is None or halves is None or key.half in halves:
                unread.append(name)
            else:
                halves[key.half], shapes[name] = name, shape
    lonely = [name for halves in tensors.values() if not {"down", "up"} <= set(halves) for name in halves.values()]
    if unread or lonely or not tensors:
        raise WeightsMismatch(
            f"'{file}' is not a LoRA that can be read.",
            *_listed("tensors that are not those of a LoRA", unread),
            *_listed("halves of an update without the other one", lonely),
            *([] if unread or lonely else ["it has no tensors"]),
            "allowed: lora_down and lora_up, lora_A and lora_B, with alpha; LoHa, LoKr, DoRA and others are not read",
        )
    settings = _peft_settings(metadata, file)
    found: dict[str, list[Update]] = {}
    for (part, module, _), halves in tensors.items():
        down, up = halves["down"], halves["up"]
        alpha = halves.get("alpha", _peft_alpha(settings, down, shapes[down][0] if shapes[down] else 1))
        found.setdefault(part, []).append(Update(module, down, up, alpha, (shapes[down], shapes[up])))
        if min(len(shapes[down]), len(shapes[up])) < 2 or math.prod((*shapes[down], *shapes[up])) == 0:
            raise WeightsMismatch(f"'{file}': {down} {shapes[down]} and {up} {shapes[up]} are not two factors.")
        if isinstance(alpha, str) and math.prod(shapes[alpha]) != 1:
            raise WeightsMismatch(f"'{file}': {alpha} has shape {shapes[alpha]}; it is one number.")
    return found


def _peft_settings(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    """Return PEFT's settings in a header, by `part.name`. Raises: WeightsMismatch for an update of another kind."""
    if _METADATA not in metadata:
        return {}
    try:
        found = json.loads(metadata[_METADATA])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise WeightsMismatch(f"'{file}': {_METADATA} in its header is not a JSON object.")
    other = [key for key, value in found.items() if key.rpartition(".")[2] in _OTHER_SCALES and value]
    if other:
        raise WeightsMismatch(
            f"'{file}' has updates of another kind than up @ down * alpha / rank.",
            *_listed("settings of PEFT that are not supported", other),
        )
    return found


def _peft_alpha(settings: Mapping[str, Any], key: str, rank: int) -> float | None:
    """Return the alpha of an update by PEFT's settings; they hold its quotient with their own rank."""
    part = key.partition(".")[0]
    alpha, own = settings.get(f"{part}.lora_alpha"), settings.get(f"{part}.r")
    if not isinstance(alpha, int | float) or not isinstance(own, int | float) or not own:
        return None
    return rank * alpha / own


def _listed(title: str, names: Collection[str]) -> list[str]:
    first = ", ".join(list(names)[:_SHOWN])
    return [f"{title}, {len(names)}: {first}{', ...' if len(names) > _SHOWN else ''}"] if names else []


def check_lora(lora: Lora, denoiser: nn.Module, texts: Collection[str], *, name: str, needed: Collection[str]) -> None:
    """Check a LoRA against a backbone from headers alone, but for what only the loaded text encoders show.

    Args:
        denoiser: the whole denoiser, on the meta device.
        texts: names of the text encoders' parts.
        name: of the backbone, for messages.
        needed: modules of the denoiser that run until the deepest tap.
    Raises: WeightsMismatch for a LoRA of another model; ConfigError if it changes nothing that is run.
    """
    require_fit(lora, {DENOISER: denoiser, **dict.fromkeys(texts)}, name=name)
    own = {id(module) for _, module in _changed(lora, DENOISER, denoiser)}
    runs = {path for path, module in denoiser.named_modules() if id(module) in own} & set(needed)
    if not runs and not set(lora.updates) - {DENOISER}:
        raise ConfigError(
            f"the LoRA '{lora.file}' has no effect on these taps.",
            f"it changes {len(own)} layers of the denoiser, all of them after the deepest tap",
            fix="remove backbone.lora, or read a deeper tap",
        )


def fuse(lora: Lora, networks: Mapping[str, nn.Module], whole: nn.Module, *, name: str) -> None:
    """Add a LoRA to the weights of loaded networks, in place; modules that were pruned are left out.

    Args:
        networks: the loaded networks, the denoiser as `denoiser`, text encoders by the names of their parts.
        whole: the denoiser before it was pruned, on the meta device.
        name: of the backbone, for messages.
    Raises: WeightsMismatch for a LoRA of another model, or with NaN or infinity.
    """
    complete = {**networks, DENOISER: whole}
    require_fit(lora, complete, name=name)
    with open_safetensors(lora.file, error=WeightsMismatch) as stored, torch.no_grad():
        for part in lora.updates:
            loaded = dict(networks[part].named_modules())
            paths = {id(module): path for path, module in complete[part].named_modules()}
            for update, module in _changed(lora, part, complete[part]):
                target: Any = loaded.get(paths[id(module)])
                if isinstance(target, nn.Linear | nn.Conv2d):  # not a module that was pruned
                    _add(lora, update, stored, target.weight)


def require_fit(lora: Lora, networks: Mapping[str, nn.Module | None], *, name: str) -> None:
    """Check that every update of a LoRA fits a layer.

    Args:
        networks: whole networks, on the meta device too: the denoiser as `denoiser`, text encoders by their parts; None
            for one whose layers are not compared.
        name: of the backbone, for messages.
    Raises: WeightsMismatch, with the first tensors that do not fit and their shapes.
    """
    foreign = [update.down for part, own in lora.updates.items() if part not in networks for update in own]
    present = {part: network for part, network in networks.items() if network is not None}
    faults = [fault for part, network in present.items() for fault in _faults(lora.updates.get(part, []), network)]
    if foreign or faults:
        n = sum(map(len, lora.updates.values()))
        raise WeightsMismatch(
            f"the LoRA '{lora.file}' is not one for backbone '{name}': {len(faults) + len(foreign)} of {n} updates "
            "do not fit.",
            *faults[:_SHOWN],
            *_listed("of a part that the backbone does not have", foreign),
            fix="name the backbone that the LoRA was trained on: backbone.path=FOLDER",
        )


def _add(lora: Lora, update: Update, stored: Any, weight: Tensor) -> None:
    down, up = (stored.get_tensor(key).float().flatten(1) for key in (update.down, update.up))
    rank = down.shape[0]
    alpha = float(stored.get_tensor(update.alpha)) if isinstance(update.alpha, str) else update.alpha
    scale = lora.weight * (1.0 if alpha is None else alpha / rank)
    change = (scale * (up @ down)).reshape(weight.shape)
    if not bool(torch.isfinite(change).all()):
        raise WeightsMismatch(f"'{lora.file}': the update of {update.module} has NaN or infinity.")
    weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


def _changed(lora: Lora, part: str, network: nn.Module) -> Iterator[tuple[Update, nn.Module]]:
    """Yield the updates of a part with their modules."""
    known = targets(network)
    for update in lora.updates.get(part, []):
        yield update, known[update.module]


def _faults(updates: Collection[Update], network: nn.Module) -> list[str]:
    """List the updates that do not fit a network: module missing, or another shape, or changed twice."""
    known, found, seen = targets(network), [], set[int]()
    for update in updates:
        module: Any = known.get(update.module)
        if module is None:
            found.append(f"{update.down}: the backbone has no such layer")
        elif not update.fits(module.weight):
            down, up = (list(shape) for shape in update.shapes)
            found.append(f"{update.down} {down}, {update.up} {up}: the layer has {list(module.weight.shape)}")
        elif id(module) in seen:
            found.append(f"{update.down}: another tensor of the file changes the same layer")
        seen.add(id(module))
    return found
