"""Random views of images: mirror images and crops, fixed by (seed, key, view) alone.

What happens to an image is drawn on the CPU generator, so a view does not depend on batch, order, rank, worker, device
or restarts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from diffprobe.config.views import ViewsConfig
from diffprobe.core.rng import derive_seed
from diffprobe.core.shapes import Images
from diffprobe.shards.batch import ImageBatch

RULES = 1
"""Version of the views; increased when a change of the code changes their pixels. Part of a store's identity."""
_MODES = {"black": "constant", "edge": "replicate", "reflect": "reflect"}
_FLIP, _AREA, _ASPECT, _X, _Y = range(5)
"""Columns of the random numbers of an image: a transform that is added or removed leaves those of the others alone."""


@dataclass(frozen=True, kw_only=True)
class BatchViews:
    """Makes the views of the batches of a stream, in the process that loads them.

    Attributes:
        views: what is changed.
        seed: seed of the views.
        number: number of the view; None for the view of the epoch.
    """

    views: ViewsConfig
    seed: int
    number: int | None = None

    def __call__(self, batch: ImageBatch, epoch: int) -> ImageBatch:
        """Return the view of a batch that is read in an epoch."""
        view = self.views.of_epoch(epoch) if self.number is None else self.number
        images = view_images(batch.images, keys=batch.keys, view=view, seed=self.seed, views=self.views)
        return replace(batch, images=images, view=view)


def view_images(images: Images, *, keys: Sequence[str], view: int, seed: int, views: ViewsConfig) -> Images:
    """Return one view of each image.

    Args:
        images: square, in [0, 1].
        keys: one per image.
        view: number of the view, from 0; all views are random ones.
        seed: seed of the views.
        views: what is changed.

    Raises: ValueError if the number of keys is not that of the images.
    """
    if len(keys) != len(images):
        raise ValueError(f"{len(images)} images have {len(keys)} keys.")
    if not views.changes_images:
        return images
    drawn = torch.stack([_numbers(seed, key, view) for key in keys])
    if views.crop_area is not None:
        size, centre = crop_parts(drawn, views)
        images = resample(images, size.to(images), centre.to(images))
    if views.padding:
        images = _padded_crops(images, drawn, views)
    mirrored = (drawn[:, _FLIP] < views.flip).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def view_keys(keys: Sequence[str], view: int) -> list[str]:
    """Return the keys that fix the noise of a view, where it is drawn anew for each.

    >>> view_keys(["cat"], 2)
    ['cat#view2']
    """
    return [f"{key}#view{view}" for key in keys]


def crop_parts(
    drawn: Float[Tensor, "batch 5"], views: ViewsConfig
) -> tuple[Float[Tensor, "batch 2"], Float[Tensor, "batch 2"]]:
    """Return size (share of the sides) and centre (-1 to 1) of the parts that are cropped, each as x, y.

    The share of the area is uniform, the aspect ratio log-uniform among those of `crop_aspect` with which the part fits
    into the image, and the place uniform (torchvision's RandomResizedCrop draws until a part fits).

    Args:
        drawn: uniform random numbers in [0, 1).
        views: settings with `crop_area`.
    """
    assert views.crop_area is not None
    low, high = views.crop_area
    area = low + drawn[:, _AREA] * (high - low)
    narrowest = area.log().clamp(min=math.log(views.crop_aspect[0]))
    widest = (-area.log()).clamp(max=math.log(views.crop_aspect[1]))
    aspect = (narrowest + drawn[:, _ASPECT] * (widest - narrowest)).exp()
    size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp(max=1)
    return size, (2 * drawn[:, [_X, _Y]] - 1) * (1 - size)


def resample(images: Images, size: Float[Tensor, "batch 2"], centre: Float[Tensor, "batch 2"]) -> Images:
    """Resize a part of each image to the size of the image: bicubic, clamped to [0, 1].

    Args:
        images: in [0, 1].
        size: width and height of the part as shares of the image's; above 1 the border is repeated outside.
        centre: x and y of the part's centre, where the image reaches from -1 to 1.
    """
    matrices = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
    matrices[:, 0, 0], matrices[:, 1, 1] = size[:, 0], size[:, 1]
    matrices[:, :, 2] = centre
    grid = affine_grid(matrices, list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)


def _numbers(seed: int, key: str, view: int) -> Float[Tensor, " 5"]:
    generator = torch.Generator("cpu").manual_seed(derive_seed("feature view", seed, key, view))
    return torch.rand(5, generator=generator, dtype=torch.float64)


def _padded_crops(images: Images, drawn: Float[Tensor, "batch 5"], views: ViewsConfig) -> Images:
    height, width = images.shape[2:]
    wide = pad(images, [views.padding] * 4, mode=_MODES[views.padding_mode])
    places = (drawn[:, [_X, _Y]] * (2 * views.padding + 1)).long().tolist()
    return torch.stack([image[:, y : y + height, x : x + width] for image, (x, y) in zip(wide, places, strict=True)])
