"""A reader of generated scenes for tests: it sees two channels of the image, and nothing else."""

import numpy as np

from diffprobe.shards.scenes.spec import FACTORS
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()


class StubReader:
    """Reads the texture from the red channel, the colour from the green one, and the same of everything else."""

    resolution = 32

    def read(self, images: np.ndarray) -> dict[str, np.ndarray]:
        red, green = (images[..., channel].mean((1, 2)) > 127 for channel in (0, 1))
        shown = {"texture": red, "colour": green}
        return {
            name: np.eye(len(SPEC.names(name)))[shown.get(name, np.zeros(len(images), bool)).astype(int)]
            for name in FACTORS
        }
