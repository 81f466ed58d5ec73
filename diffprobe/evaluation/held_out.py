"""Samples of a split as a network denoises them: latents, conditioning inputs, and the group of each sample."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffprobe.core.errors import EmptyClass, unknown
from diffprobe.core.groups import SINGLE_SAMPLES

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.features.request import Request
    from diffprobe.scoring.intervention_network import HeldOut, InterventionNetwork
    from diffprobe.shards.index import ShardSet


@dataclass(frozen=True)
class EncodedSplit:
    """The encoded samples of a split, in shard order."""

    of_condition: "dict[str, HeldOut]"
    """The samples under each condition of the plan."""
    groups: list[Any]
    """The group of each sample: the id of its value, or its key where it has none or samples are independent."""
    attributes: "dict[str, Tensor]"
    """Attribute -> id of the value of each sample, int64 [sample]; -1 for none."""
    labels: "Tensor"
    """Class of each sample, int64 [sample]; -1 for none."""

    def __len__(self) -> int:
        return len(self.groups)


def group_of(shard_set: "ShardSet", group_attribute: str | None) -> str:
    """Return the attribute whose values are the groups: the one that is set, or that the data set names, or "sample".

    Raises: UnknownName for an attribute that the data set does not have.
    """
    group = group_attribute or shard_set.group or SINGLE_SAMPLES
    if group not in (SINGLE_SAMPLES, *shard_set.attributes):
        raise unknown("group_attribute", group, shard_set.attributes)
    return group


def encode_split(
    request: "Request", network: "InterventionNetwork", split: str, group: str, *, limit: int | None
) -> EncodedSplit:
    """Encode the images of a split, and build their conditioning inputs.

    Args:
        request: data and plan.
        split: one that the request reads, also one that is cut out of the training split.
        group: an attribute, or "sample".
        limit: number of samples, the first ones in shard order; None for all.
    Raises: EmptyClass for a split without a readable sample; ConfigError for samples without what the condition needs.
    """
    import torch

    from diffprobe.backbones.prompts import SampleMetadata, condition_inputs
    from diffprobe.features.request import request_texts
    from diffprobe.scoring.intervention_network import HeldOut
    from diffprobe.shards.stream import SampleStream, make_loader

    data = request.data
    stream = SampleStream(
        request.view, split, resolution=request.plan.resolution, fields=request.fields, on_error=data.on_error,
        limit=limit, caps=data.caps, verify=data.verify,
        require=request.required,
    )  # fmt: skip
    latents, keys, groups, labels = [], [], [], []
    ids: dict[str, list[Any]] = {name: [] for name in request.shard_set.attributes}
    inputs: dict[str, list[Any]] = {branch.condition: [] for branch in request.plan.branches}
    for batch in make_loader(stream, data.batch_size, data.num_workers):
        texts = SampleMetadata(**request_texts(request, batch, batch.captions))
        for branch in request.plan.branches:
            inputs[branch.condition] += condition_inputs(branch, texts)
        latents.append(network.encode_images(batch.images))
        labels.append(batch.label)
        keys += batch.keys
        for name, values in batch.attributes.items():
            ids[name].append(values)
        own = batch.attributes[group].tolist() if group != SINGLE_SAMPLES else [-1] * len(batch)
        groups += [value if value >= 0 else key for value, key in zip(own, batch.keys, strict=True)]
    if not keys:
        raise EmptyClass(f"split '{split}' of '{data.path}' has no readable sample.")
    encoded = torch.cat(latents)
    of_condition = {name: HeldOut(encoded, keys, found) for name, found in inputs.items()}
    attributes = {name: torch.cat(values) for name, values in ids.items() if values}
    return EncodedSplit(of_condition, groups, attributes, torch.cat(labels))
