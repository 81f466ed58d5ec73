"""What a run costs before it is started: denoiser passes and optimiser steps, counted on paper.

A pass is one image at one timestep and noise draw under one condition. Nothing is loaded but the index of the data;
where the data of a published set are missing, its published counts stand in.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffprobe.config.controls import has_one_cell
from diffprobe.config.schema import DataConfig, RunConfig
from diffprobe.core.errors import ConfigError, DiffprobeError
from diffprobe.core.registry import DATASETS
from diffprobe.runs.plan import training_of

_WITH_STEPS = ("sae", "classifier", "caption")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one or several runs."""

    passes: int = 0
    """Denoiser passes of extraction, or of all epochs where features are live."""
    steps: int = 0
    """Optimiser steps; 0 for probes that have a solver or a closed form."""
    published: bool = False
    """Whether the number of images is that of the published set, since the data are not here."""
    unknown: bool = False
    """Whether the number of images of a run is not known, so that its cost is left out."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            passes=self.passes + other.passes,
            steps=self.steps + other.steps,
            published=self.published or other.published,
            unknown=self.unknown or other.unknown,
        )


def total(costs: Iterable[Cost]) -> Cost:
    """Return the cost of several runs."""
    found = Cost()
    for cost in costs:
        found = found + cost
    return found


def run_cost(config: RunConfig, *, extracts: bool) -> Cost:
    """Return the cost of one run.

    Args:
        config: the run.
        extracts: whether the store of its features has to be written; without effect for live features.
    """
    images, published = _images(config.data)
    if images is None:
        return Cost(unknown=True)
    train, val, test = (images.get(name, 0) for name in ("train", "val", "test"))
    epochs, steps = _epochs_and_steps(config, train)
    passes = 0
    if config.features.source == "live":
        # train also before the first step, for statistics, and after the last, for the distance from a minimum, which a
        # classifier on views does not measure; val after every epoch and at the end
        more = 1 if config.probe.kind == "classifier" and config.features.views.active else 2
        passes = _per_image(config) * ((epochs + more) * train + (epochs + 1) * val + test)
    elif extracts:
        passes = _per_image(config) * ((1 + (config.features.views.n or 0)) * train + val + test)
    return Cost(passes=passes, steps=steps, published=published)


def _per_image(config: RunConfig) -> int:
    """Return the denoiser passes of one image; 0 where no denoiser is run."""
    features = config.features
    if has_one_cell(config.control) or config.backbone.path == "pixels" or config.backbone.part != "denoiser":
        return 0
    return (len(features.timesteps) + len(features.snr)) * features.draws * (2 if features.unconditional else 1)


def _epochs_and_steps(config: RunConfig, train: int) -> tuple[int, int]:
    trainer = config.trainer
    kind = training_of(config.probe.kind)
    if config.probe.kind not in _WITH_STEPS or config.probe.name in kind.WITHOUT_GRID or config.probe.name == "ridge":
        return 1, 0
    train *= config.features.views.per_epoch
    batches = max(1, math.ceil(train / (config.data.batch_size * trainer.devices * trainer.num_nodes)))
    steps = trainer.max_epochs * batches
    if trainer.max_steps >= 0:
        steps = min(steps, trainer.max_steps)
    return math.ceil(steps / batches), steps


def _images(data: DataConfig) -> tuple[Mapping[str, int] | None, bool]:
    """Return the images of train, val and test, None if they are not known; and whether they are published counts."""
    try:
        return _indexed(data), False
    except DiffprobeError:
        counts = _published(data)
    if counts is None:
        return None, False
    limit = math.inf if data.limit is None else data.limit
    return {name: int(min(n, limit)) for name, n in counts.items()}, True


def _indexed(data: DataConfig) -> dict[str, int]:
    from diffprobe.shards.index import ShardSet

    shards = ShardSet.load(data.path, storage_patience=0)
    limit = math.inf if data.limit is None else data.limit
    named = {"train": data.train_split, "val": data.val_split, "test": data.test_split}
    counts = {
        role: int(min(sum(shard.n_samples for shard in shards.shards_of(split)), limit))
        for role, split in named.items()
        if split in shards.splits()
    }
    if data.val_fraction is not None:
        val = round(counts.get("train", 0) * data.val_fraction)
        counts |= {"train": counts.get("train", 0) - val, "val": val}
    return counts


def _published(data: DataConfig) -> dict[str, int] | None:
    name = Path(data.path).name
    if name not in DATASETS.names():
        return None
    counts = DATASETS.load(name).CARD.counts
    return dict(counts) or None


def hours(cost: Cost, *, passes_s: float | None, steps_s: float | None) -> float | None:
    """Return the hours of a cost at stated speeds; None if the speed of something that it has is not given.

    Args:
        passes_s: denoiser passes per second.
        steps_s: optimiser steps per second.
    Raises: ConfigError for a speed that is not above 0.

    >>> hours(Cost(passes=7200), passes_s=2.0, steps_s=None), hours(Cost(passes=1, steps=1), passes_s=2.0, steps_s=None)
    (1.0, None)
    """
    seconds = 0.0
    for amount, speed, option in ((cost.passes, passes_s, "--passes-s"), (cost.steps, steps_s, "--steps-s")):
        if speed is not None and not 0 < speed < math.inf:
            raise ConfigError(f"{option} {speed} is out of range: more than 0, and finite.")
        if amount and speed is None:
            return None
        seconds += amount / speed if amount and speed else 0.0
    return seconds / 3600
