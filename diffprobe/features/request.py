"""A request for features: backbone, data and cells as configured, and the manifest of the store that serves it.

Shared by extract.py, live.py and stored.py, so that all three derive the same manifest.
"""

import copy
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from diffprobe.backbones.cell import Cell
from diffprobe.backbones.cpu_kernels import KernelChoice
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.noise import NoiseSchedule
from diffprobe.backbones.plan import ReadPlan, make_plan
from diffprobe.config.compose import setting_text
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.core.errors import ConfigError
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.column_table import ColumnTable, check_names, read_columns
from diffprobe.features.manifest import Manifest, ShardEntry
from diffprobe.features.massive_channels import (
    BATCH,
    Massive,
    channels_of,
    read_channels,
    require_images,
    rule_content,
    taken_content,
    to_recorded,
)
from diffprobe.features.massive_channels import KEY as MASSIVE
from diffprobe.features.missing_values import check_table, check_values, needed_columns
from diffprobe.shards.annotation import Fields
from diffprobe.shards.batch import ImageBatch
from diffprobe.shards.holdout import Holdout, open_view
from diffprobe.shards.index import ShardSet
from diffprobe.shards.stream import SampleStream, make_loader
from diffprobe.shards.views import RULES, BatchViews, view_keys

_MODEL = (
    "path", "revision", "random_weights", "random_seed", "dtype", "denoiser_weights", "single_file_config",
    "lora", "part", "clean_input", "quantize",
)  # fmt: skip
"""Keys of `backbone` that change features by more than rounding."""
_DATA = ("path", "train_split", "val_split", "test_split", "val_fraction", "val_group", "limit", "on_error")
"""Keys of `data` that choose the samples."""
_READING = ("source", "placement", "shuffle", "verify")
"""Keys of `features` that change how features are read, but not the store."""
_BLOCKS = ("views", "massive")
"""Keys of `features` that have keys of their own."""
_VERSIONS = ("diffusers", "torch", "transformers", "webdataset", "Pillow")


class Request:
    """A request for features; shards and backbone are opened on first use.

    Args:
        splits: splits to read; those of `data` if None.
        cached_only: whether a checkpoint of the hub is taken from its cache alone; nothing is downloaded then.

    Attributes:
        splits: the splits of the shards that are read; a validation split by `data.val_fraction` is part of the
            training split, and a store holds both together.
        image_view: number of the view that is read of each image; None for the images themselves.
    """

    image_view: int | None = None
    _massive: Massive | None = None

    def __init__(
        self,
        backbone: BackboneConfig,
        data: DataConfig,
        features: FeaturesConfig,
        splits: Sequence[str] | None = None,
        *,
        cached_only: bool = False,
    ) -> None:
        self._cached_only = cached_only
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
        return make_plan(self.backbone, self.features, cached_only=self._cached_only)

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
        return self._loaded()

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
        vars(self)["extractor"] = self._loaded(images=images, kernels=kernels)

    @property
    def is_loaded(self) -> bool:
        """Whether the backbone is loaded."""
        return "extractor" in vars(self)

    def share_extractor(self, other: "Request") -> None:
        """Take the loaded backbone of a request for the same cells."""
        vars(self)["extractor"] = other.extractor

    @property
    def massive(self) -> Massive | None:
        """The massive channels of the cells, with the keys of the images; None before they are found or given.

        Raises: the errors of `read_channels` for `features.massive.channels_of`.
        """
        source = self.features.massive.channels_of
        if self._massive is None and source is not None:
            self._massive = read_channels(source, self.plan.widths, self.plan.fingerprint)
        return self._massive

    @massive.setter
    def massive(self, found: Massive) -> None:
        """Set them; the manifest is made anew."""
        self._massive = found
        vars(self).pop("manifest", None)  # it lists them

    def _loaded(self, *, images: bool = True, kernels: KernelChoice | None = None) -> DiffusionFeatures:
        """Load the backbone, and find the massive channels if they are treated and not known yet."""
        massive, data = self.features.massive, self.data
        unknown = massive.active and self.massive is None
        if unknown:
            shards = self.view.shards_of(data.train_split)
            require_images(massive, data.train_split, sum(shard.n_samples for shard in shards), data.limit)
        extractor = DiffusionFeatures.from_plan(self.plan, images=images or unknown, kernels=kernels)
        if unknown:
            self.massive = self._find_massive(extractor)
        if self.massive is not None:
            extractor.treat(self.massive[0])
        return extractor

    def _find_massive(self, extractor: DiffusionFeatures) -> Massive:
        """Find the massive channels on the first training images. Raises: ConfigError if there are too few."""
        massive, data, split = self.features.massive, self.data, self.data.train_split
        stream = SampleStream(
            self.view, split, resolution=self.plan.resolution, fields=self.fields, on_error=data.on_error,
            limit=data.limit, caps=data.caps, require=self.required, verify=data.verify,
        )  # fmt: skip
        keys: list[str] = []

        def magnitudes() -> Iterator[dict[str, Tensor]]:
            for batch in make_loader(stream, BATCH, 0):
                n = min(len(batch.keys), massive.images - len(keys))
                found = extractor.magnitudes(batch.images, **request_texts(self, batch, batch.captions))
                keys.extend(batch.keys[:n])
                yield {cell: values[:n] for cell, values in found.items()}
                if len(keys) == massive.images:
                    return

        channels = channels_of(magnitudes(), massive)
        require_images(massive, split, len(keys), None)  # faulty ones are left out
        return channels, keys

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
                **self._massive_content,
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
                "versions": {name: metadata.version(name) for name in (*_VERSIONS, *self._quantizer)},
                **({} if self.massive is None else {MASSIVE: to_recorded(*self.massive)}),
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
    def _quantizer(self) -> tuple[str, ...]:
        """The library of quantised weights, where they are asked for and it is installed."""
        asked = self.backbone.quantize != "none" and find_spec("torchao") is not None
        return ("torchao",) if asked else ()

    @property
    def _massive_content(self) -> dict[str, object]:
        """The rule that finds massive channels, or those taken over, as part of a manifest; {} where they are kept."""
        massive = self.features.massive
        if not massive.active:
            return {}
        if massive.channels_of is not None:
            return {MASSIVE: taken_content(massive.treatment, massive.channels_of)}
        holdout = None if self.holdout is None else asdict(self.holdout)
        return {MASSIVE: rule_content(massive, self.data.train_split, holdout)}

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
        request = Request(self.backbone, self.data, features, self.splits)
        if self.massive is not None:
            request.massive = ({cell: self.massive[0][cell] for cell in request.plan.widths}, self.massive[1])
        return request

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
                [name for name in type(self.features).__dataclass_fields__ if name not in (*_READING, *_BLOCKS)],
            ),
            *_overrides("features.views", self.features.views, list(type(self.features.views).__dataclass_fields__)),
            *_overrides(
                "features.massive", self.features.massive, list(type(self.features.massive).__dataclass_fields__)
            ),
        ]
        return " ".join(["diffprobe extract", *parts])


def sample_texts(shard_set: ShardSet, samples: ImageBatch | FeatureBatch, captions: Sequence[str]) -> dict[str, Any]:
    """Return the metadata of a batch's samples as keyword arguments of `DiffusionFeatures`.

    `columns` holds `caption`, `class_name` and the attributes; None where a sample has no value.
    """
    columns: dict[str, list[str | None]] = {
        "caption": [caption or None for caption in captions],
        "class_name": _named(shard_set.classes, samples.label),
    }
    for name, ids in samples.attributes.items():
        columns.setdefault(name, _named(shard_set.attributes[name], ids))
    labels = samples.label.tolist()
    return {"keys": samples.keys, "captions": columns["caption"], "labels": labels, "columns": columns}


def request_texts(
    request: Request, samples: ImageBatch | FeatureBatch, captions: Sequence[str], *, view: int | None = None
) -> dict[str, Any]:
    """Return `sample_texts` with the columns of `features.columns`, joined by key.

    Args:
        view: number of the view of the images, where `features.views` may draw the noise anew for each.
    """
    texts, table = sample_texts(request.shard_set, samples, captions), request.columns
    if table is not None:
        texts["columns"] |= {name: table.values(name, samples.keys) for name in table.columns}
    if view is not None and request.features.views.redraw_noise:
        texts["keys"] = view_keys(samples.keys, view)
    return texts


def _named(names: Sequence[str], ids: Tensor) -> list[str | None]:
    return [names[i] if i >= 0 else None for i in ids.tolist()]


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
