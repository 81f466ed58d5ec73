"""Massive channels of a request's cells: the rule on training images, and how a manifest lists what it found.

The images are the first ones of the training split in shard order. They go through the backbone in batches of a size of
their own, in one process without workers, so that what is found does not depend on how features are extracted or read.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.backbones.massive import MassiveChannels, find_massive
from diffprobe.config.massive import MassiveConfig
from diffprobe.core.digest import canonical_json, digest_json
from diffprobe.core.errors import ConfigError, SchemaError, StoreIncomplete, StoreMismatch
from diffprobe.features.manifest import Manifest
from diffprobe.features.writer import MANIFEST

BATCH = 16
"""Images per batch when channels are found."""
RULES = 1
"""Raised when the way from images to massive channels changes what is found."""
KEY = "massive"
"""Key of the rule in `data` of a manifest, and of what it found in `recorded`."""
NOTED_CHANNELS = 8
"""Channels of a cell that a line of text names at most."""
_PER_CELL = ("taps", "timesteps")
"""Keys of a fingerprint that the cells have in their names."""

Massive = tuple[dict[str, MassiveChannels], list[str]]
"""Cell name -> its massive channels; and the keys of the images that they were found on."""


def rule_content(massive: MassiveConfig, split: str, holdout: Mapping[str, object] | None) -> dict[str, Any]:
    """Return what fixes the massive channels besides the backbone and the shards, as part of a store's identity.

    Args:
        massive: the setting.
        split: the training split.
        holdout: the rule that cuts a validation split out of it, if there is one.
    """
    content = {
        "rules": RULES, "treatment": massive.treatment, "ratio": massive.ratio, "images": massive.images,
        "split": split,
    }  # fmt: skip
    return content if holdout is None else {**content, "holdout": dict(holdout)}


def taken_content(treatment: str, folder: str) -> dict[str, Any]:
    """Return what fixes massive channels that another store lists, as part of a store's identity.

    Raises: as `read_channels`.
    """
    return {"rules": RULES, "treatment": treatment, "channels": digest_json(_listing(folder).recorded[KEY]["taps"])}


def read_channels(folder: str, cells: Iterable[str], fingerprint: Mapping[str, Any]) -> Massive:
    """Read the massive channels of some cells from another store of the same backbone.

    Args:
        folder: of the store.
        cells: names of the cells.
        fingerprint: of the backbone that reads them, see `ReadPlan.fingerprint`.

    Raises: StoreIncomplete without a store; StoreMismatch for one without treated channels, without a cell, or of
        another backbone; SchemaError for a damaged manifest.
    """
    manifest, asked = _listing(folder), list(cells)
    absent = [cell for cell in asked if cell not in manifest.cells]
    if absent:
        raise StoreMismatch(
            f"features.massive.channels_of={folder} has no channels of '{absent[0]}'.",
            f"its cells: {', '.join(manifest.cells)}",
        )
    here = json.loads(canonical_json({name: fingerprint[name] for name in fingerprint if name not in _PER_CELL}))
    other = [name for name, value in here.items() if manifest.backbone.get(name) != value]
    if other:
        raise StoreMismatch(
            f"features.massive.channels_of={folder} is of another backbone, or was read with other settings.",
            f"what differs: {', '.join(other)}",
            fix="a store of this backbone with the same settings of features",
        )
    return from_recorded(manifest.recorded, asked), [str(key) for key in manifest.recorded[KEY]["keys"]]


def _listing(folder: str) -> Manifest:
    """Return the manifest of a store that lists its massive channels."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise StoreIncomplete(f"features.massive.channels_of={folder} is not a feature store: it has no {MANIFEST}.")
    manifest = Manifest.read(path)
    if KEY not in manifest.data:
        raise StoreMismatch(
            f"features.massive.channels_of={folder}: no massive channels are treated there.",
            fix="a store that was extracted with features.massive",
        )
    from_recorded(manifest.recorded, manifest.cells)
    if not isinstance(manifest.recorded[KEY].get("keys"), list):
        raise SchemaError(f"'{path}' does not list the images of its massive channels.", fix="extract the store again")
    return manifest


def require_images(massive: MassiveConfig, split: str, n: int, limit: int | None) -> None:
    """Check that there are as many training images as asked for. Raises: ConfigError."""
    n_read = n if limit is None else min(n, limit)
    if n_read < massive.images:
        raise ConfigError(
            f"features.massive.images={massive.images}: {n_read} images of split '{split}' are read"
            f"{'' if n_read == n else f' (data.limit={limit})'}.",
            fix=f"features.massive.images={n_read}, or less",
        )


def channels_of(batches: Iterable[Mapping[str, Tensor]], massive: MassiveConfig) -> dict[str, MassiveChannels]:
    """Return cell name -> its massive channels.

    Args:
        batches: cell name -> magnitudes [batch, channels], see `DiffusionFeatures.magnitudes`.
        massive: the rule.

    Raises: ConfigError without an image.
    """
    sums: dict[str, Tensor] = {}
    n = 0
    for found in batches:
        n += len(next(iter(found.values())))
        for cell, values in found.items():
            total = values.double().sum(0).cpu()
            sums[cell] = sums[cell] + total if cell in sums else total
    if not n:
        raise ConfigError("massive channels: no image was read.")
    return {cell: find_massive((total / n).to(torch.float32), ratio=massive.ratio) for cell, total in sums.items()}


def to_recorded(found: Mapping[str, MassiveChannels], keys: list[str]) -> dict[str, Any]:
    """Return what a manifest records: the channels and the limit of each cell, by tap, and the keys of the images."""
    taps: dict[str, dict[str, Any]] = {}
    for cell, one in found.items():
        taps.setdefault(cell.partition("@")[0], {})[cell] = one.to_json()
    return {"taps": taps, "keys": keys}


def from_recorded(recorded: Mapping[str, Any], cells: Iterable[str]) -> dict[str, MassiveChannels]:
    """Read the massive channels of some cells from what a manifest recorded.

    Raises: SchemaError if they are not all there.
    """
    try:
        listed = {cell: one for cells in recorded[KEY]["taps"].values() for cell, one in cells.items()}
        return {cell: MassiveChannels.from_json(listed[cell]) for cell in cells}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SchemaError(
            f"the manifest does not list the massive channels of all cells ({type(error).__name__}: {error}).",
            fix="extract the store again",
        ) from error


def notes(found: Mapping[str, MassiveChannels], massive: MassiveConfig) -> list[str]:
    """Describe what was found, one line per cell with massive channels, and one line for the others.

    >>> found = {"a@t1": MassiveChannels({3: 25.0}, 2.0), "b@t1": MassiveChannels({}, 1.0)}
    >>> notes(found, MassiveConfig(treatment="drop"))
    ['massive channels of a@t1 (set to 0): 3 (25 x the median)', 'no massive channels at a ratio of 20: b@t1']
    """
    done = "set to 0" if massive.treatment == "drop" else "clipped"
    lines = []
    for cell, one in found.items():
        if one.channels:
            named = [f"{channel} ({value:.3g} x the median)" for channel, value in one.channels.items()]
            more = len(named) - NOTED_CHANNELS
            listed = ", ".join(named[:NOTED_CHANNELS]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"massive channels of {cell} ({done}): {listed}")
    none = [cell for cell, one in found.items() if not one.channels]
    return [*lines, *([f"no massive channels at a ratio of {massive.ratio:g}: {', '.join(none)}"] if none else [])]


def refuse_treated(data: Mapping[str, Any], what: str) -> None:
    """Refuse a store with treated channels where features of the untreated network are compared with it.

    Args:
        data: `data` of the store's manifest.
        what: who reads the network as it is, for the message.

    Raises: ConfigError.
    """
    if KEY in data:
        raise ConfigError(
            f"{what} reads the network as it is, the store was made with massive.treatment={data[KEY]['treatment']}.",
            fix="a store without features.massive",
        )
