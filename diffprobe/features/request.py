"""A request for features: backbone, data and cells as configured, and the manifest of the store that would serve it.

Shared by extract.py, live.py and stored.py, so that the three can't disagree on what was asked for.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path

from diffprobe.backbones.cell import Cell
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.noise import NoiseSchedule
from diffprobe.backbones.plan import ReadPlan, make_plan
from diffprobe.config.compose import setting_text
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.core.errors import UnknownName, unknown
from diffprobe.features.manifest import Manifest, ShardEntry
from diffprobe.shards.annotation import Fields
from diffprobe.shards.index import ShardSet

_READING = ("source", "placement", "shuffle")
"""Keys of `features` that say how features are read; a store is the same with any of their values."""
_VERSIONS = ("diffusers", "torch", "transformers", "webdataset", "Pillow")


class Request:
    """What is asked for. Nothing is opened before it is needed.

    Args:
        splits: splits to read; those of `data` if None.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        data: DataConfig,
        features: FeaturesConfig,
        splits: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.data, self.features = backbone, data, features
        named = (data.train_split, data.val_split, data.test_split) if splits is None else splits
        self.splits = tuple(dict.fromkeys(named))

    def __getstate__(self) -> dict[str, object]:  # a process that is spawned opens the backbone itself
        opened = ("shard_set", "plan", "extractor", "manifest")
        return {name: value for name, value in vars(self).items() if name not in opened}

    @cached_property
    def shard_set(self) -> ShardSet:
        """The shard set of `data.path`."""
        return ShardSet.load(self.data.path)

    @cached_property
    def plan(self) -> ReadPlan:
        """What the backbone will be read for; no weights are loaded for it."""
        return make_plan(self.backbone, self.features)

    @cached_property
    def extractor(self) -> DiffusionFeatures:
        """The frozen backbone with its taps."""
        return DiffusionFeatures.from_plan(self.plan)

    def load_extractor(self, *, images: bool) -> None:
        """Load the backbone now; without `images` for kept latents alone, so that the VAE stays on disk."""
        vars(self)["extractor"] = DiffusionFeatures.from_plan(self.plan, images=images)

    @property
    def fields(self) -> Fields:
        """The names of the parts of a sample. Raises: ConfigError, see `ShardSet.fields_for`."""
        return self.shard_set.fields_for(self.data.fields)

    @cached_property
    def manifest(self) -> Manifest:
        """What a store must be to serve this request."""
        shard_set, plan = self.shard_set, self.plan
        shards = [shard for split in self.splits for shard in shard_entries(shard_set, split, self.data.limit)]
        return Manifest(
            backbone=plan.fingerprint,
            cells=plan.widths,
            data={"shard_set": shard_set.digest, "fields": asdict(self.fields), "on_error": self.data.on_error},
            shards=tuple(shards),
            recorded={
                "backbone": self.backbone.path,
                "revision": self.backbone.revision,
                "commit": commit_of(plan.checkpoint.folder),
                "denoiser_weights": self.backbone.denoiser_weights,
                "timesteps": timestep_notes(plan.schedule, plan.timesteps),
                "snr": [[ratio, plan.spec.schedule.nearest(ratio, "")] for ratio in self.features.snr],
                "taps": {tap.path: {"channels": tap.channels, "size": list(tap.size)} for tap in plan.taps},
                "data": shard_set.name,
                "licence": shard_set.licence,
                "classes": list(shard_set.classes),
                "attributes": {name: list(values) for name, values in shard_set.attributes.items()},
                "versions": {name: metadata.version(name) for name in _VERSIONS},
            },
        )

    def narrowed(self, cells: Sequence[str]) -> "Request":
        """Return the request for the taps and timesteps of some cells only, so that the backbone runs no further."""
        chosen = [Cell.parse(cell) for cell in cells]
        features = replace(
            self.features,
            taps=tuple(dict.fromkeys(cell.tap for cell in chosen)),
            timesteps=tuple(dict.fromkeys(cell.timestep for cell in chosen)),
            snr=(),
        )
        return Request(self.backbone, self.data, features, self.splits)

    @property
    def command(self) -> str:
        """The command that makes the store, to paste: everything that differs from the defaults."""
        parts = [
            *_overrides(
                "backbone",
                self.backbone,
                ("path", "revision", "random_weights", "random_seed", "dtype", "denoiser_weights", "clean_input"),
            ),
            *_overrides("data", self.data, ("path", "train_split", "val_split", "test_split", "limit", "on_error")),
            *_overrides("data.fields", self.data.fields, list(type(self.data.fields).__dataclass_fields__)),
            *_overrides(
                "features",
                self.features,
                [name for name in type(self.features).__dataclass_fields__ if name not in _READING],
            ),
        ]
        return " ".join(["diffprobe extract", *parts])


def timestep_notes(schedule: NoiseSchedule, timesteps: Sequence[int]) -> dict[str, dict[str, float | None]]:
    """Return sigma (noise to signal) and SNR (of variances) of some timesteps, by number; None where it is infinite."""
    return {
        str(t): {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        for t in timesteps
        for numbers in [{"sigma": schedule.sigma(t), "snr": schedule.snr(t)}]
    }


def commit_of(folder: Path | None) -> str | None:
    """Return the commit of a checkpoint that lies in the hub's cache, which names its folders by it; None elsewhere."""
    return folder.name if folder is not None and folder.parent.name == "snapshots" else None


def shard_entries(shard_set: ShardSet, split: str, limit: int | None) -> list[ShardEntry]:
    """List the shards of a split with the samples taken from each: the first `limit` of the split in shard order."""
    entries, left = [], limit
    for shard in shard_set.shards_of(split):
        n = shard.n_samples if left is None else min(left, shard.n_samples)
        if n:
            entries.append(ShardEntry(file=shard.file, split=split, n=n, sha256=shard.sha256))
        left = None if left is None else left - n
    return entries


def choose_cells(asked: Sequence[str] | None, available: Sequence[str]) -> tuple[str, ...]:
    """Return the full names of the cells asked for (all if None), each once.

    `mid_block@t100` is enough where it is unambiguous. `mid_block@t*`, in short `mid_block`, stands for all timesteps
    of the tap; where they were read under several conditions it needs one: `mid_block@t*:caption`.

    Raises: UnknownName listing the cells there are.
    """
    if asked is None:
        return tuple(available)
    chosen: list[str] = []
    for name in asked:
        tap, joker, rest = name.partition("@t*")
        if not joker and "@" in name:
            found = [cell for cell in available if cell == name or cell.startswith(f"{name}:")]
            too_many = len(found) > 1
        else:
            found = [cell for cell in available if _is_of(Cell.parse(cell), tap, rest)]
            too_many = len({Cell.parse(cell).condition for cell in found}) > 1
        if too_many:
            raise UnknownName(f"cell '{name}' fits several cells.", f"given: {', '.join(found)}")
        if not found:
            raise unknown("cell", name, available)
        chosen += found
    return tuple(dict.fromkeys(chosen))


def _is_of(cell: Cell, tap: str, rest: str) -> bool:
    """Say whether a cell is of a tap, and has the condition and pooling that `rest` names, as far as it does."""
    return cell.tap == tap and f":{cell.condition}:{cell.pool}:".startswith(f"{rest}:")


def _overrides(group: str, config: object, names: Sequence[str]) -> list[str]:
    fields = type(config).__dataclass_fields__  # type: ignore[attr-defined]
    parts = []
    for name in names:
        value = getattr(config, name)
        if value == fields[name].default:
            continue
        text = f"[{','.join(map(setting_text, value))}]" if isinstance(value, tuple) else setting_text(value)
        parts.append(shlex.quote(f"{group}.{name}={text}"))
    return parts
