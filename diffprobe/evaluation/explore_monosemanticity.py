"""The MonoSemanticity score of the explorer's latents, by an encoder of images that is at hand or that is named."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.latents.baselines import LinearCodes
from diffprobe.analysis.latents.monosemanticity import monosemanticity
from diffprobe.analysis.latents.permutation_tests import PermutationSettings
from diffprobe.core.errors import DiffprobeError
from diffprobe.evaluation.explore import Findings
from diffprobe.evaluation.explore_runs import ExploredRun
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.evaluation.image_embeddings import (
    ClipEncoder,
    ImageEncoder,
    LatentEncoder,
    PixelEncoder,
    embed_images,
)
from diffprobe.evaluation.latent_codes import autoencoder_codes, baseline_codes, random_dictionary
from diffprobe.evaluation.latent_numbers import SplitCodes
from diffprobe.evaluation.probe_runs import reason
from diffprobe.features.fetch_images import fetch_images
from diffprobe.report.explorer.records import Column

if TYPE_CHECKING:
    from PIL.Image import Image

_MISSING = "Monosemanticity is missing: "
_SETTINGS = PermutationSettings(most=1000)


def monosemanticity_numbers(
    run: ExploredRun, config: ExploreConfig, settings: PermutationSettings = _SETTINGS
) -> Findings:  # fmt: skip
    """Return the score of each latent on a sample of the shown split, its q, and what a random dictionary has.

    Args:
        run: the run.
        config: `encoder` and `n_embedded`.
        settings: permutations.

    Returns: nothing but a note with the reason, where the images are not at hand, or the backbone is not with
        `encoder=auto`.
    Raises: the errors of opening an encoder that is named.
    """
    if config.encoder == "none":
        return Findings()
    if run.features.images is None:
        return Findings(notes=[f"{_MISSING}the images are not at hand: {run.features.missing}"])
    try:
        encoder = make_encoder(run, config)
    except (DiffprobeError, OSError) as error:
        if config.encoder != "auto":
            raise
        return Findings(
            notes=[f"{_MISSING}the run's backbone is not at hand (encoder=pixels needs no model): {reason(error)}"]
        )

    def sample(dictionary: LinearCodes | None) -> SplitCodes:
        group, n = run.features.group, config.n_embedded
        if dictionary is None:
            return autoencoder_codes(run.sae, run.tables(), run.cells, group=group, max_images=n)
        return baseline_codes(dictionary, run.tables(), run.cells, group=group, max_images=n)

    codes = sample(None)
    shards = _shards(run, codes.codes.keys)
    in_order = sorted(shards, key=lambda key: (shards[key], key))  # so that few shards are opened for a batch
    embeddings = embed_images(in_order, lambda keys: _fetch(run, keys, shards), encoder)
    vectors = np.stack([embeddings[key] for key in codes.codes.keys])
    if not np.linalg.norm(vectors, axis=1).all():
        return Findings(notes=[f"{_MISSING}'{encoder.name}' gives some images the vector 0, which has no direction."])
    found = monosemanticity(codes.codes, vectors, codes.groups, settings)
    random = sample(random_dictionary(run.tables(), run.cells, n_latents=run.sae.n_latents, k=run.sae.k))
    beside = monosemanticity(random.codes, vectors, random.groups, replace(settings, most=19))
    controls = [("all pairs of images", found.chance)]
    if not np.isnan(beside.score).all():
        controls.append(("random dictionary (median)", float(np.nanmedian(beside.score))))
    columns = [
        Column(
            key="monosemanticity", title="mono-semanticity", values=_optional(found.score), controls=tuple(controls),
            help="Mean cosine of the embeddings of held-out images, weighted by the product of both activations "
            f"(Pach et al. 2025). Encoder: {encoder.name}.",
        ),
        Column(
            key="monosemanticity_q", title="q of mono-semanticity", kind="p", values=_optional(found.q),
            help="Benjamini-Hochberg over all latents, of the score between groups against embeddings permuted between "
            f"groups. Encoder: {encoder.name}.",
        ),
    ]  # fmt: skip
    note = f"Monosemanticity is of {codes.codes.n_images:,} images of '{run.split}', by this encoder: {encoder.name}."
    if not isinstance(encoder, ClipEncoder):
        note += " For it, alike means alike in colour and layout, not in meaning."
    return Findings(columns=columns, notes=[note])


def make_encoder(run: ExploredRun, config: ExploreConfig) -> ImageEncoder:
    """Return the encoder that the settings name: the VAE of the run's backbone, pixels, or a CLIP model.

    Raises: the errors of opening a model.
    """
    if config.encoder == "pixels":
        return PixelEncoder()
    if config.encoder not in ("auto", "vae_latents"):
        return ClipEncoder(config.encoder, config.device)
    from diffprobe.backbones.base import DTYPES, LoadOptions
    from diffprobe.backbones.device import choose_device
    from diffprobe.backbones.loading import load_backbone
    from diffprobe.backbones.plan import make_plan

    plan = make_plan(run.trained.config.backbone, run.trained.config.features)
    offload = plan.backbone.offload == "blocks"
    options = LoadOptions(dtype=DTYPES[plan.dtype], random_seed=plan.random_seed, offload_blocks=offload)
    backbone = load_backbone(plan.checkpoint, plan.family, plan.spec, plan.needed, options)
    backbone.to(choose_device(config.device))
    return LatentEncoder(backbone, plan.resolution, plan.checkpoint.name)


def _fetch(run: ExploredRun, keys: Sequence[str], shards: Mapping[str, str]) -> "Mapping[str, Image]":
    assert run.features.images is not None
    shard_set, fields = run.features.images
    return fetch_images(shard_set, keys, shards=shards, fields=fields, caps=run.trained.config.data.caps)


def _shards(run: ExploredRun, keys: Iterable[str]) -> dict[str, str]:
    """Return the shard of each image."""
    wanted = set(keys)
    pairs = (pair for table in run.tables() for pair in zip(table.keys, table.shards, strict=True))
    return {key: shard for key, shard in pairs if key in wanted}


def _optional(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in values.tolist())
