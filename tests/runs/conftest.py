"""Runs on tiny real things."""

import pytest

from diffprobe.config.compose import load_run


@pytest.fixture
def run(request, tiny_sd, tiny_shards, tmp_path_factory, tmp_path):
    """Make a judged config of two cells; the store is shared by the tests of a file."""
    stores = tmp_path_factory.getbasetemp() / f"{request.path.stem}-stores"

    def make(*settings):
        return load_run(
            None,
            [
                f"backbone.path={tiny_sd}",
                "backbone.device=cpu",
                f"data.path={tiny_shards}",
                "data.batch_size=4",
                "features.taps=[mid_block,up_blocks.0]",
                "features.timesteps=[20]",
                f"features.store={stores}",
                "trainer.max_epochs=2",
                "trainer.enable_progress_bar=false",
                f"output={tmp_path}",
                *settings,
            ],
        )

    return make
