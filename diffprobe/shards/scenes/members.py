"""The files of a sample: image, annotation, and the dense truth (`mask.png`, `depth.png`, `points.json`)."""

import io
import json
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from diffprobe.shards.scenes.captions import captions_of, values_of
from diffprobe.shards.scenes.render import Rendered
from diffprobe.shards.scenes.spec import PARTS, WorldSpec

PALETTE = ((236, 236, 230), (60, 170, 190), (110, 80, 66), (224, 110, 60), (246, 200, 150), (250, 226, 190),
           (122, 70, 160), (70, 140, 70))  # fmt: skip
"""Colour of each part in `mask.png`, for people; programs read the ids."""


def members_of(
    spec: WorldSpec, rendered: Rendered, *, further: Sequence[dict[str, str]] | None = None
) -> Iterator[dict[str, bytes]]:
    """Yield the files of each scene by extension.

    Args:
        further: attributes of each scene besides its factors.
    """
    scenes = rendered.scenes
    texts = captions_of(spec, scenes)
    for row in range(len(scenes)):
        values = values_of(spec, scenes, row)
        role = spec.roles[int(scenes.factors["role"][row])]
        attributes = {**values, "hat": role.hat, "tool": role.tool, **(further[row] if further else {})}
        record = {
            "attributes": attributes,
            "caption": texts[row][0],
            "captions": list(texts[row]),
            "class_name": role.name,
            "label": int(scenes.factors["role"][row]),
            "scene": {
                "index": int(scenes.indices[row]),
                "seed": scenes.seed,
                "version": spec.version,
                "world": spec.worlds[scenes.world],
                **{name: int(numbers[row]) for name, numbers in scenes.offsets.items()},
            },
        }
        places = {name: [float(x), float(y)] for name, (x, y) in ((n, p[row]) for n, p in rendered.points.items())}
        yield {
            "png": _encode(rendered.images[row]),
            "json": json.dumps(record, sort_keys=True).encode(),
            "mask.png": _encode(rendered.parts[row], palette=True),
            "depth.png": _encode(rendered.depth[row]),
            "points.json": json.dumps(places, sort_keys=True).encode(),
        }


def _encode(pixels: NDArray[np.uint8], *, palette: bool = False) -> bytes:
    from PIL import Image

    image = Image.fromarray(pixels)
    if palette:
        assert len(PALETTE) == len(PARTS)
        image = Image.frombytes("P", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
        image.putpalette([channel for colour in PALETTE for channel in colour])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
