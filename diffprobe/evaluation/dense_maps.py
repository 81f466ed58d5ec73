"""Images with dense truth, and the maps that are read of them: cells of the model, and what is read beside them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffprobe.config.schema import ProbeConfig, RunConfig
from diffprobe.core.errors import ConfigError, SplitLeak
from diffprobe.evaluation.dense_settings import DenseEvaluation
from diffprobe.runs.extract import backbone_and_features

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.features.request import Request
    from diffprobe.shards.class_maps import DenseSample

OWN, SHUFFLED, LATENTS, RANDOM = "own", "shuffled_truth", "vae_latents", "random_weights"
"""The rung of the cells, the control that is fitted on its chosen cell, and those that need the model."""
BY_PLACE, COLOURS = "mean_by_position", "colours"
"""The control that sees no image, and that of the nearest mean colour."""
Maps = Callable[[Sequence["DenseSample"]], "dict[str, Tensor]"]
"""Samples -> cell -> maps, (samples, channels, height, width). The only cell of a control that has none is ""."""


@dataclass(frozen=True, kw_only=True)
class DenseImages:
    """The images of a split."""

    samples: "list[DenseSample]"
    groups: list[str]
    """Group of each image."""


def splits_of(config: DenseEvaluation) -> dict[str, str]:
    """Return train, val and test -> the split of the data."""
    return {"train": config.data.train_split, "val": config.data.val_split, "test": config.data.test_split}


def request_rungs(config: DenseEvaluation) -> "dict[str, Request | None]":
    """Return rung -> the features that it reads, that of the cells first; None for rungs without their own.

    Raises: UnknownTap, BadTimestep, WeightsMissing; ConfigError for a model without a VAE whose latents are asked for;
        the errors of opening the shards.
    """
    from diffprobe.features.request import Request
    from diffprobe.runs.provenance import require_splits

    splits = tuple(splits_of(config).values())
    request = Request(config.backbone, config.data, config.features, splits)
    require_splits(config.data, request.shard_set)
    request.check_values()
    _ = request.plan
    rungs: dict[str, Request | None] = {OWN: request}
    for control in config.read_beside:
        rungs[control] = None
        if control in (LATENTS, RANDOM):  # refuses a model without a VAE
            run = RunConfig(
                backbone=config.backbone, data=config.data, features=config.features,
                control="vae_latents" if control == LATENTS else "random_weights",
                probe=ProbeConfig(kind="classifier", name="linear"),
            )  # fmt: skip
            backbone, features = backbone_and_features(run)
            made = Request(backbone, config.data, features, splits)
            _ = made.plan
            rungs[control] = made
    return rungs


def gather(
    config: DenseEvaluation, request: "Request", split: str, samples: "Iterable[DenseSample]", least: int
) -> DenseImages:
    """Return the images of a split with their groups. Raises: ConfigError for fewer than `least`."""
    found = list(samples)
    if len(found) < least:
        raise ConfigError(f"split '{split}' of '{config.data.path}' has {len(found)} images; {least} are needed.")
    group = request.shard_set.group
    groups = [(one.sample.attributes.get(group) if group else None) or one.sample.key for one in found]
    return DenseImages(samples=found, groups=groups)


def check_groups(images: Mapping[str, DenseImages]) -> None:
    """Raises: SplitLeak for a group in two splits."""
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted(set(images[one].groups) & set(images[other].groups))
        if both:
            raise SplitLeak(f"dense truth: group '{both[0]}' has images in the {one} split and in the {other} split.")


def maps_of(rung: str, request: "Request") -> Maps:
    """Return what reads the maps of a rung; `request` is that of the rung, or of the cells where it has none."""
    from torch.nn.functional import pad, unfold

    from diffprobe.backbones.library_logging import quiet_libraries
    from diffprobe.features.extract import to_features
    from diffprobe.shards.batch import collate

    if rung in (OWN, LATENTS, RANDOM):
        with quiet_libraries():
            request.load_extractor(images=True)

        def cells(samples: "Sequence[DenseSample]") -> "dict[str, Tensor]":
            batch = collate([one.sample for one in samples], request.shard_set)
            batch = batch.to(request.extractor.device)
            if rung == LATENTS:
                return {"": request.extractor.encode(batch.images)}
            return to_features(request, batch).features

        return cells

    def values(samples: "Sequence[DenseSample]") -> "dict[str, Tensor]":
        found = collate([one.sample for one in samples], request.shard_set).images.float()
        if rung == BY_PLACE:
            return {"": found[:, :1] * 0}
        if rung == COLOURS:
            return {"": found}
        around = unfold(pad(found, (1, 1, 1, 1), mode="replicate"), kernel_size=3)
        return {"": around.unflatten(2, found.shape[-2:])}

    return values


def in_batches(samples: "Sequence[DenseSample]", size: int) -> "Iterator[Sequence[DenseSample]]":
    """Yield the samples in order, `size` at a time."""
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
