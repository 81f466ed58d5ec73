"""The most similar latents of two runs: by decoder vectors where both read the same cell, else by their activations."""

import hashlib
import heapq
from collections.abc import Iterable, Mapping

import numpy as np

from diffprobe.analysis.latents.matching import Matches, SharedCodes, match_activations, match_decoders
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.explore_codes import ImageCodes, stream_codes
from diffprobe.evaluation.explore_runs import ExploredRun
from diffprobe.report.explorer.records import LatentMatch


def match_runs(run: ExploredRun, other: ExploredRun, n_images: int) -> tuple[list[LatentMatch], str]:
    """Return the most similar latent of `other` for each latent of `run`, and a sentence on the similarity.

    Runs of one cell and backbone are compared by the cosine of decoder vectors. Runs of other cells, also one of places
    and one of pooled features, are compared by the correlation of activations over shared images, where the activation
    of an image is the largest of its rows.

    Args:
        n_images: largest number of shared images, chosen by a hash of their keys.

    Raises: ConfigError for runs of other cells that share fewer than two images.
    """
    if run.reads_same_features == other.reads_same_features:
        decoders = [one.sae.W_dec.detach().cpu().numpy() for one in (run, other)]
        return _records(match_decoders(*decoders)), "Latents of both runs are matched by the cosine of decoder vectors."
    chosen = shared_keys(run, other, n_images)
    if len(chosen) < 2:
        raise ConfigError(
            f"the runs read different features and share {len(chosen)} images, so their latents cannot be matched.",
            f"first run: {', '.join(run.cells)}, split '{run.split}'",
            f"second run: {', '.join(other.cells)}, split '{other.split}'",
            fix="compare runs on the same images, or of one cell",
        )
    place = {key: i for i, key in enumerate(sorted(chosen))}
    first, second = (
        collect(stream_codes(one.sae, one.tables(), one.cells), place, one.sae.n_latents) for one in (run, other)
    )
    sentence = (
        "Latents of both runs are matched by the correlation of their activations over "
        f"{len(place):,} shared images, since the runs read different features."
    )
    if {cell.rpartition(":")[2] for cell in run.cells} != {cell.rpartition(":")[2] for cell in other.cells}:
        sentence += " Their features are pooled differently: the activation of an image is the largest of its places."
    return _records(match_activations(first, second)), sentence


def shared_keys(run: ExploredRun, other: ExploredRun, n_images: int) -> set[str]:
    """Return keys that both splits have: those that are among the `n_images` smallest hashes of either split."""
    first, second = (_smallest((key for table in one.tables() for key in table.keys), n_images) for one in (run, other))
    return first & second


def _smallest(keys: Iterable[str], n: int) -> set[str]:
    """Return the keys with the n smallest hashes; memory of n keys."""
    found = heapq.nsmallest(n, ((hashlib.blake2b(key.encode(), digest_size=8).digest(), key) for key in keys))
    return {key for _, key in found}


def collect(stream: Iterable[ImageCodes], place: Mapping[str, int], n_latents: int) -> SharedCodes:
    """Return the activations on the images of `place` (key -> row)."""
    rows, latents, values = [], [], []
    for codes in stream:
        row = np.array([place.get(key, -1) for key in codes.keys])
        activation = codes.code.values.cpu().numpy()
        i, column = np.nonzero((activation > 0) & (row >= 0)[:, None])
        rows.append(row[i].astype(np.int64))
        latents.append(codes.code.indices.cpu().numpy()[i, column].astype(np.int64))
        values.append(activation[i, column].astype(np.float64))
    return SharedCodes(
        row=np.concatenate(rows), latent=np.concatenate(latents), value=np.concatenate(values), n_latents=n_latents,
        n_images=len(place),
    )  # fmt: skip


def _records(matches: Matches) -> list[LatentMatch]:
    pairs = zip(matches.latent[:, 0].tolist(), matches.similarity[:, 0].tolist(), strict=True)
    return [
        LatentMatch(latent=latent, other=other, similarity=similarity)
        for latent, (other, similarity) in enumerate(pairs)
        if other >= 0
    ]
