"""MonoSemanticity of the explorer: by the run's own VAE, by pixels, by CLIP; and what is said without images."""

import dataclasses

import numpy as np
import pytest

from diffprobe.analysis.latents.monosemanticity import monosemanticity
from diffprobe.core.errors import DiffprobeError
from diffprobe.evaluation.explore_monosemanticity import monosemanticity_numbers
from diffprobe.evaluation.explore_runs import open_explored
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.evaluation.image_embeddings import PixelEncoder
from diffprobe.evaluation.latent_codes import autoencoder_codes
from diffprobe.features.fetch_images import fetch_images
from tests.evaluation.planted_run import planted_run, planted_tables


def config(**settings):
    return ExploreConfig(device="cpu", split="train", **settings)


def test_the_score_is_that_of_the_encoder(small_sae):
    run = open_explored(str(small_sae), config())
    found = monosemanticity_numbers(run, config(encoder="pixels"))
    score, q = found.columns
    codes = autoencoder_codes(run.sae, run.tables(), run.cells)
    shard_set, fields = run.features.images
    images = fetch_images(shard_set, codes.codes.keys, fields=fields)
    vectors = PixelEncoder()([images[key] for key in codes.codes.keys])
    expected = monosemanticity(codes.codes, vectors, codes.groups)
    np.testing.assert_allclose(np.array(score.values, dtype=float), expected.score, atol=1e-6)
    np.testing.assert_allclose(np.array(q.values, dtype=float), expected.q, atol=1e-6)
    assert dict(score.controls)["all pairs of images"] == pytest.approx(expected.chance)
    assert "random dictionary (median)" in dict(score.controls)
    assert "pixels, 16 x 16" in score.help and "pixels, 16 x 16" in found.notes[0]


def test_the_vae_of_the_run_is_the_default_and_clip_can_be_named(small_sae, tiny_clip):
    run = open_explored(str(small_sae), config())
    by_vae = monosemanticity_numbers(run, config(n_embedded=8))
    assert "VAE latents" in by_vae.columns[0].help and "8 images" in by_vae.notes[0]
    assert by_vae == monosemanticity_numbers(run, config(encoder="vae_latents", n_embedded=8))
    by_clip = monosemanticity_numbers(run, config(encoder=str(tiny_clip), n_embedded=8))
    assert "CLIP" in by_clip.columns[0].help and by_clip.columns[0].values != by_vae.columns[0].values
    assert "not in meaning" in by_vae.notes[0] and "not in meaning" not in by_clip.notes[0]


def test_without_images_or_a_backbone_there_is_a_reason(small_sae):
    assert "they were moved" in monosemanticity_numbers(planted_run(planted_tables(12)), config()).notes[0]
    run = open_explored(str(small_sae), config())
    backbone = dataclasses.replace(run.trained.config.backbone, path="gone/model")
    trained = dataclasses.replace(run.trained, config=dataclasses.replace(run.trained.config, backbone=backbone))
    gone = dataclasses.replace(run, trained=trained)
    found = monosemanticity_numbers(gone, config())
    assert not found.columns and "backbone is not at hand" in found.notes[0]
    for encoder in ("vae_latents", "gone/clip"):
        with pytest.raises(DiffprobeError, match="gone"):
            monosemanticity_numbers(gone, config(encoder=encoder))
    assert not monosemanticity_numbers(run, config(encoder="none")).notes
