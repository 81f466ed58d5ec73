"""Features of rendered scenes in all cells of a model at once, and their VAE latents and pixels as controls."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffprobe.backbones.cell import Cell
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families.pixels import reduced_pixels
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.parts import LATENTS, reduced_latents
from diffprobe.backbones.prompt_plan import PIXELS
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.progress import Bar
from diffprobe.evaluation.certificates.scene_features import rendered
from diffprobe.shards.scenes.factors import Scenes
from diffprobe.shards.scenes.spec import RESOLUTIONS, WorldSpec

CONDITION = "empty"
"""Condition under which scenes are read."""
CONTROLS = {"vae_latents": Cell(LATENTS, 0).name, "raw_pixels": Cell(PIXELS, 0).name}
"""Name of a control -> its cell, of scenes and of generated images alike."""


class SceneCells:
    """Reads scenes under the empty prompt, as `SceneReader` reads one cell.

    Args:
        spec: of the world.
        model: folder or name of a model with a VAE.
        taps, timesteps, pool: of the cells; see `DiffusionFeatures.from_pretrained`.
        noise_seed: seed of the noise.
        device: torch device.

    Raises: WeightsMismatch for a model of another resolution than scenes have; UnknownTap, BadTimestep, WeightsMissing.
    """

    def __init__(
        self, spec: WorldSpec, model: str, *, taps: Sequence[str], timesteps: Sequence[int], pool: str, noise_seed: int,
        device: str = "auto",
    ) -> None:  # fmt: skip
        self.spec = spec
        with quiet_libraries():
            self._extractor = DiffusionFeatures.from_pretrained(
                model, taps=taps, timesteps=timesteps, condition=CONDITION, pool=pool, seed=noise_seed, device=device
            )
        if self._extractor.resolution not in RESOLUTIONS:
            raise WeightsMismatch(
                f"'{model}' reads images of {self._extractor.resolution} pixels; scenes have "
                f"{' or '.join(map(str, RESOLUTIONS))}.",
                fix="a model of the world of scenes",
            )
        self.cells = [cell.name for cell in self._extractor.cells]

    def read(self, scenes: Scenes, bar: Bar) -> dict[str, NDArray[np.float32]]:
        """Return cell -> features, shape (scenes, d), with the cells of `CONTROLS`.

        The noise depends on seed and index of a scene, so that both members of a pair have the same.
        """
        parts: dict[str, list[NDArray[np.float32]]] = {}
        for images, keys in rendered(self.spec, scenes, self._extractor.resolution):
            latents = self._extractor.encode(images)
            found = self._extractor.from_latents(latents, keys=keys)
            found[CONTROLS["vae_latents"]] = reduced_latents(latents).flatten(1)
            found[CONTROLS["raw_pixels"]] = reduced_pixels(images).flatten(1)
            for cell, values in found.items():
                parts.setdefault(cell, []).append(values.float().cpu().numpy())
            bar.update(len(keys))
        return {cell: np.concatenate(values) for cell, values in parts.items()}
