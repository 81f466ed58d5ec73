"""Scenes in all cells of a tiny model at once."""

from pathlib import Path

import numpy as np
import pytest

from diffprobe.backbones.families import sd_unet
from diffprobe.core.errors import WeightsMismatch
from diffprobe.evaluation.certificates.scene_features import SceneReader
from diffprobe.evaluation.scene_cells import CONTROLS, SceneCells
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()


class Count:
    n = 0

    def update(self, n: int) -> None:
        self.n += n


@pytest.mark.slow
def test_each_cell_is_what_the_reader_of_one_cell_reads(tiny_sd: Path) -> None:
    scenes = sample(SPEC, 3, range(70))  # more than one batch
    cells = SceneCells(
        SPEC, str(tiny_sd), taps=["mid_block", "up_blocks.0"], timesteps=[20, 500], pool="grid2", noise_seed=1,
        device="cpu",
    )  # fmt: skip
    bar = Count()
    found = cells.read(scenes, bar)  # type: ignore[arg-type]
    assert bar.n == 70 and len(cells.cells) == 4 and set(found) == {*cells.cells, *CONTROLS.values()}
    for cell in ("mid_block@t500:empty:grid2", "up_blocks.0@t20:empty:grid2"):
        one = SceneReader(SPEC, str(tiny_sd), cell, resolution=32, noise_seed=1).read(scenes)
        assert found[cell].shape == one.shape and found[cell] == pytest.approx(one, abs=1e-4)
    for part, control in (("vae", "vae_latents"), (None, "raw_pixels")):
        cell = CONTROLS[control]
        backbone, options = ("pixels", {}) if part is None else (str(tiny_sd), {"part": part})
        one = SceneReader(SPEC, backbone, cell, resolution=32, noise_seed=0, **options).read(scenes)
        assert found[cell] == pytest.approx(one, abs=1e-4)
    assert all(values.dtype == np.float32 for values in found.values())


def test_a_model_of_another_resolution_is_refused(tmp_path: Path) -> None:
    model = str(sd_unet.tiny(tmp_path, channels=(8,), resolution=16))
    with pytest.raises(WeightsMismatch, match="16 pixels"):
        SceneCells(SPEC, model, taps=["mid_block"], timesteps=[20], pool="mean", noise_seed=0, device="cpu")
