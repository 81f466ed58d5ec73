"""The reading of latents of the planted run, and of tiny pooled ones, against the same numbers from the store."""

import dataclasses

import numpy as np
import pytest

from diffprobe.core.errors import TooFewGroups
from diffprobe.evaluation.explore_runs import open_explored
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.evaluation.latent_codes import autoencoder_codes
from diffprobe.evaluation.latent_numbers import latent_numbers
from diffprobe.evaluation.latent_use_inputs import open_latents
from diffprobe.evaluation.latent_use_reading import Reading, read_latents
from diffprobe.evaluation.latent_use_settings import LatentUseEvaluation


@pytest.fixture(scope="module")
def config(planted_use, tmp_path_factory):
    return LatentUseEvaluation(
        experiment="x", run=str(planted_use), limit=10, group_attribute="family", device="cpu",
        output=str(tmp_path_factory.mktemp("reading")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def read(config):
    return read_latents(config, open_latents(config))


@pytest.mark.slow
def test_the_numbers_are_those_of_the_store(config, read) -> None:
    """The features of the running denoiser are those that were stored: same noise, same precision."""
    _, reading, codes = read
    run = open_explored(config.run, ExploreConfig(device="cpu"))
    splits = [
        autoencoder_codes(run.sae, run.features.table(split), run.cells, group="family") for split in ("train", "test")
    ]
    values = {"class": run.features.classes, "shade": run.features.attributes["shade"]}
    splits = [dataclasses.replace(one, targets={name: one.targets[name] for name in values}) for one in splits]
    expected = latent_numbers(*splits, values)
    columns = {column.key: column.values for column in expected.columns}
    assert reading.best_values == expected.best_values and reading.n == 24
    for found, wanted in ((reading.auroc, columns["auroc"]), (reading.auroc_q, columns["auroc_q"])):
        assert [value is None for value in found] == [value is None for value in wanted]
        assert np.allclose([v for v in found if v is not None], [v for v in wanted if v is not None], atol=0.02)
    assert codes.untouched.shape == (10, 1) and codes.n_places == 256


def test_held_out_samples_are_limited_apart_from_those_that_are_denoised(config) -> None:
    short = dataclasses.replace(config, read_limit=12, limit=6)
    held_out, reading, codes = read_latents(short, open_latents(short))
    assert len(held_out) == 12 and reading.n == 12 and len(codes.untouched) == 6
    with pytest.raises(TooFewGroups, match="1 group"):
        few = dataclasses.replace(config, limit=2)
        read_latents(few, open_latents(few))


def test_the_first_latents_are_those_of_the_largest_auroc() -> None:
    reading = Reading(
        auroc=(0.6, None, 0.9, 0.8), auroc_q=(0.5, None, 0.01, 0.06), best_values=("a=x", "", "b=y", "a=z"), n=1,
        notes=(),
    )  # fmt: skip
    assert reading.first(2) == (2, 3) and reading.first(9) == (0, 2, 3) and reading.first(1, {"a"}) == (3,)
    assert reading.passes(0.05) == [False, False, True, False]
