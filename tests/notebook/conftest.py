"""A study of 40 small images of two classes on a tiny backbone, with a classifier and an autoencoder of each kind."""

import pytest
from PIL import Image

from diffprobe.notebook.study import Study


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Return a folder of images in class folders: dark ones and light ones."""
    folder = tmp_path_factory.mktemp("photos") / "my photos"
    for number in range(40):
        path = folder / ("dark", "light")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (120 * (number % 2) + 3 * number, 90, 9)).save(path)
    return folder


@pytest.fixture(scope="session")
def study(photos, tiny_sd, tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    settings = [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", "features.taps=[mid_block,up_blocks.0]",
        "features.timesteps=[20]", f"features.store={root / 'stores'}", f"output={root / 'runs'}", "data.num_workers=0",
        "trainer.max_epochs=1", "logger=none",
    ]  # fmt: skip
    return Study(photos, settings, val=0.2, test=0.3, quiet=True)


@pytest.fixture(scope="session")
def linear(study):
    return study.train("linear")


@pytest.fixture(scope="session")
def sae(study):
    return study.train("topk", ["probe.cell=mid_block@t20", "probe.params.n_latents=16", "probe.params.k=4"])
