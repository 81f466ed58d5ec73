"""A request for features: backbone, data and cells as configured, and the manifest of the store that serves it.

Shared by extract.py, live.py and stored.py, so that all three derive the same manifest.
"""

import copy
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path

from diffprobe.backbones.cell import Cell
from diffprobe.backbones.cpu_kernels import KernelChoice
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.noise import NoiseSchedule
from diffprobe.backbones.plan import ReadPlan, make_plan
from diffprobe.config.compose import setting_text
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.core.errors import ConfigError
from diffprobe.features.column_table import ColumnTable, check_names, read_columns
from diffprobe.features.manifest import Manifest, ShardEntry
from diffprobe.features.missing_values import check_table, check_values, needed_columns
from diffprobe.shards.annotation import Fields
from diffprobe.shards.holdout import Holdout, open_view
from diffprobe.shards.index import ShardSet
from diffprobe.shards.views import RULES, BatchViews

_MODEL = (
    "path", "revision", "random_weights", "random_seed", "dtype", "denoiser_weights", "single_file_config",
    "lora", "part", "clean_input",
)  # fmt: skip
"""Keys of `backbone` that change features by more than rounding."""
_DATA = ("path", "train_split", "val_split", "test_split", "val_fraction", "val_group", "limit", "on_error")
"""Keys of `data` that choose the samples."""
_READING = ("source", "placement", "shuffle", "verify")
"""Keys of `features` that change how features are read, but not the store."""
_VERSIONS = ("diffusers", "torch", "transformers", "webdataset", "Pillow")


class Request:
    """A request for features; shards and backbone are opened on first use.

    Args:
        splits: splits to read; those of `data` if None.

    Attributes:
        splits: the splits of the shards that are read; a validation split by `data.val_fraction` is part of the
            training split, and a store holds both together.
        image_view: number of the view that is read of each image; None for the images themselves.
    """

    image_view: int | None = None

    def __init__(
        self,
        backbone: BackboneConfig,
        data: DataConfig,
        features: FeaturesConfig,
        splits: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.data, self.features = backbone, data, features
        named = (data.train_split, data.val_split, data.test_split) if splits is None else splits
        self.splits = tuple(dict.fromkeys(map(data.source_of, named)))

    def __getstate__(self) -> dict[str, object]:  # a spawned process opens the backbone itself
        opened = ("shard_set", "view", "plan", "columns", "extractor", "manifest")
        return {name: value for name, value in vars(self).items() if name not in opened}

    @cached_property
    def shard_set(self) -> ShardSet:
        """The shard set of `data.path`."""
        return ShardSet.load(self.data.path, storage_patience=self.data.storage_patience)

    @cached_property
    def view(self) -> ShardSet:
        """The shard set with the splits that the run reads (see `holdout.open_view`)."""
        return open_view(self.data, self.shard_set)

    @cached_property
    def holdout(self) -> Holdout | None:
        """The rule of a validation split that is cut out of the training split."""
        return Holdout.of(self.data, self.shard_set)

    @cached_property
    def plan(self) -> ReadPlan:
        """The plan of the backbone's forward pass; made without weights."""
        return make_plan(self.backbone, self.features)

    @cached_property
    def columns(self) -> ColumnTable | None:
        """The table of `features.columns`, None without one.

        Raises: ConfigError, ShardError, see `read_columns` and `check_names`; ConfigError for missing=leave_out.
        """
        if self.features.columns is None:
            return None
        table = read_columns(self.features.columns)
        check_names(table, self.shard_set.attributes, needed_columns(self.plan.branches))
        if self.features.missing == "leave_out":
            raise ConfigError(
                "features.missing=leave_out reads the annotations of the samples, not the table of features.columns.",
                fix="features.missing=empty, or a table with all samples",
            )
        return table

    @cached_property
    def extractor(self) -> DiffusionFeatures:
        """The frozen backbone with its taps."""
        return DiffusionFeatures.from_plan(self.plan)

    def of_views(self) -> "list[Request]":
        """Return a request of the training split for each of `features.views.n` views; [] without views or that split.

        What is opened already is shared.
        """
        split, found = self.data.source_of(self.data.train_split), []
        for number in range(self.features.views.n or 0) if split in self.splits else ():
            other = copy.copy(self)
            vars(other).update(vars(self))  # with what is opened, which a copy leaves out
            vars(other).pop("manifest", None)
            other.image_view, other.splits = number, (split,)
            found.append(other)
        return found

    def load_extractor(self, *, images: bool, kernels: KernelChoice | None = None) -> None:
        """Load the backbone now; without `images`, for cached latents only, the VAE is not loaded.

        Args:
            kernels: library of linear layers; None takes what `backbone.cpu_kernels` gives.
        """
        vars(self)["extractor"] = DiffusionFeatures.from_plan(self.plan, images=images, kernels=kernels)

    def share_extractor(self, other: "Request") -> None:
        """Take the loaded backbone of a request for the same cells."""
        vars(self)["extractor"] = other.extractor

    @property
    def fields(self) -> Fields:
        """The names of the parts of a sample. Raises: ConfigError, see `ShardSet.fields_for`."""
        return self.shard_set.fields_for(self.data.fields)

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest of a store that serves this request."""
        shard_set, plan = self.shard_set, self.plan
        shards = [shard for split in self.splits for shard in shard_entries(shard_set, split, self.data.limit)]
        return Manifest(
            backbone=plan.fingerprint,
            cells=plan.widths,
            data={
                "shard_set": shard_set.digest,
                "fields": asdict(self.fields),
                "on_error": self.data.on_error,
                **({} if self.features.missing == "refuse" else {"missing": self.features.missing}),
                **({} if self.columns is None else {"columns": self.columns.digest(self._joined)}),
                **self._view_content,
            },
            shards=tuple(shards),
            recorded={
                "backbone": self.backbone.path,
                "revision": self.backbone.revision,
                "commit": commit_of(plan.checkpoint.folder),
                "denoiser_weights": self.backbone.denoiser_weights,
                "single_file_config": self.backbone.single_file_config,
                "lora": self.backbone.lora,
                **({} if self.columns is None else {"columns": dict(map(self._origin, self._joined))}),
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

    @property
    def batch_views(self) -> BatchViews | None:
        """What makes the views of training images; None where they are read as they are."""
        views = self.features.views
        return BatchViews(views=views, seed=self.features.seed, number=self.image_view) if views.active else None

    @property
    def _view_content(self) -> dict[str, object]:
        """What fixes the view of each image, as part of a manifest; {} for the images themselves."""
        if self.image_view is None:
            return {}
        return {"view": {"rules": RULES, "number": self.image_view, **self.features.views.content()}}

    @property
    def _joined(self) -> tuple[str, ...]:
        """The columns of the table that the conditions name."""
        return () if self.columns is None else self.columns.used(needed_columns(self.plan.branches))

    def _origin(self, column: str) -> tuple[str, str]:
        assert self.columns is not None
        return column, self.columns.source_of(column)

    @property
    def required(self) -> tuple[str, ...]:
        """Columns without which a sample is left out."""
        return needed_columns(self.plan.branches) if self.features.missing == "leave_out" else ()

    def check_values(self, splits: Sequence[str] | None = None) -> None:
        """Check from the index that the samples have what the condition needs, unless `features.missing` handles it.

        Args:
            splits: splits to check; those of the request if None.

        Of a table of columns the number of its rows is compared with that of the samples; a sample that it lacks
        though it has enough rows is found when that sample is read.

        Raises: ConfigError with the number of samples per split and the first one.
        """
        if self.features.missing == "refuse":
            asked, table = splits or self.splits, self.columns
            columns = [name for name in needed_columns(self.plan.branches) if name not in self._joined]
            check_values(self.shard_set, asked, columns, data=self.data, fields=self.fields)
            if table is not None:
                check_table(self.shard_set, asked, {name: table.columns[name] for name in self._joined}, data=self.data)

    def narrowed(self, cells: Sequence[str]) -> "Request":
        """Return the request for the taps and timesteps of some cells only, so that the backbone computes no others."""
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
        """The command that creates the store, with all settings that differ from the defaults."""
        parts = [
            *_overrides(
                "backbone",
                self.backbone,
                _MODEL,
            ),
            *_overrides("data", self.data, _DATA),
            *_overrides("data.caps", self.data.caps, list(type(self.data.caps).__dataclass_fields__)),
            *_overrides("data.fields", self.data.fields, list(type(self.data.fields).__dataclass_fields__)),
            *_overrides(
                "features",
                self.features,
                [name for name in type(self.features).__dataclass_fields__ if name not in (*_READING, "views")],
            ),
            *_overrides("features.views", self.features.views, list(type(self.features.views).__dataclass_fields__)),
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
    """Return the commit of a checkpoint in the hub's cache, which is its folder's name; None for other folders."""
    return folder.name if folder is not None and folder.parent.name == "snapshots" else None


def shard_entries(shard_set: ShardSet, split: str, limit: int | None) -> list[ShardEntry]:
    """List the shards of a split with their number of samples, for the first `limit` samples in shard order."""
    entries, left = [], limit
    for shard in shard_set.shards_of(split):
        n = shard.n_samples if left is None else min(left, shard.n_samples)
        if n:
            entries.append(ShardEntry(file=shard.file, split=split, n=n, sha256=shard.sha256))
        left = None if left is None else left - n
    return entries


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
