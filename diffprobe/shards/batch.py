"""Batches of images: samples of one size as tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from diffprobe.core.errors import ShardError
from diffprobe.shards.decode import Sample
from diffprobe.shards.index import ShardSet


@dataclass
class ImageBatch:
    """A batch of captioned images.

    Attributes:
        images: RGB in [0, 1].
        keys: key of each sample.
        label: index into `ShardSet.classes`, -1 for none.
        captions: caption of each sample, "" for none.
        attributes: attribute name -> index into `ShardSet.attributes[name]`, -1 for none.
        view: number of the random view that `images` are (`views.view_images`); None for the images themselves.
    """

    images: Float[Tensor, "batch 3 height width"]
    keys: list[str]
    label: Int[Tensor, " batch"]
    captions: list[str]
    attributes: dict[str, Int[Tensor, " batch"]]
    view: int | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ImageBatch":
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ImageBatch":
        """Return the batch in page-locked memory; called by a DataLoader with `pin_memory=True`."""
        return self._map(lambda tensor: tensor.pin_memory())

    def __getstate__(self) -> dict[str, Any]:
        """Return the content with all ids in one tensor: a tensor that a loader worker sends takes a descriptor."""
        ids = torch.stack([self.label, *self.attributes.values()])
        names = list(self.attributes)
        plain = {"images": self.images, "keys": self.keys, "captions": self.captions, "view": self.view}
        return {**plain, "names": names, "ids": ids}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.images, self.keys, self.captions = state["images"], state["keys"], state["captions"]
        self.view = state["view"]
        self.label, *columns = state["ids"].unbind()
        self.attributes = dict(zip(state["names"], columns, strict=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ImageBatch":
        attributes = {name: change(ids) for name, ids in self.attributes.items()}
        return ImageBatch(change(self.images), self.keys, change(self.label), self.captions, attributes, self.view)


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """Convert an 8-bit RGB image to a tensor in [0, 1].

    >>> to_tensor(Image.new("RGB", (2, 1), (255, 0, 51)))[:, 0, 0]
    tensor([1.0000, 0.0000, 0.2000])
    """
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def collate(samples: Sequence[Sample], shard_set: ShardSet) -> ImageBatch:
    """Return samples of one size as a batch. Raises: ShardError for no sample or unequal sizes."""
    if len({sample.image.size for sample in samples}) != 1:
        found = ", ".join(f"{sample.key} {sample.image.size}" for sample in samples[:5]) or "(no sample)"
        raise ShardError(
            "a batch needs samples of equal size.", f"found: {found}", fix="set the resolution of the stream"
        )
    attributes = {
        name: torch.tensor([ids.get(sample.attributes.get(name, ""), -1) for sample in samples])
        for name, ids in shard_set.attribute_ids.items()
    }
    return ImageBatch(
        images=torch.stack([to_tensor(sample.image) for sample in samples]),
        keys=[sample.key for sample in samples],
        label=torch.tensor([sample.label for sample in samples]),
        captions=[sample.caption for sample in samples],
        attributes=attributes,
    )
