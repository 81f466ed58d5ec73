"""Clusters of subjects by their latents, without labels: k-means, k by silhouette, named by the nearest descriptors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from diffprobe.analysis.audit.descriptors import cosines
from diffprobe.core.errors import ConfigError

LEAST_SUBJECTS = 4
"""Fewer subjects are not clustered."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Subjects that are similar to each other."""

    subjects: tuple[int, ...]
    """Numbers of the subjects."""
    words: tuple[str, ...]
    """Descriptors that are more similar to these subjects than to the others, the most distinctive first."""


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """A partition of the subjects."""

    clusters: tuple[Cluster, ...]
    """The clusters, largest first."""
    silhouette: float
    """Mean silhouette of the partition, -1..1."""
    tried: dict[int, float]
    """Number of clusters -> its silhouette."""


def cluster_subjects(
    subjects: Float64[np.ndarray, "subjects d"], bank: Float64[np.ndarray, "words d"], words: Sequence[str], *,
    most: int = 8, n_words: int = 3, seed: int = 0,
) -> Clustering:  # fmt: skip
    """Partition subjects by the direction of their centred latents.

    Args:
        subjects, bank: latents averaged over templates and seeds and centred by the same mean.
        words: descriptors, the rows of the bank; may be empty.
        most: largest number of clusters that is tried, from 2.
        n_words: descriptors that name a cluster.

    Raises: ConfigError for fewer than `LEAST_SUBJECTS` subjects, or `most` below 2.
    """
    if len(subjects) < LEAST_SUBJECTS or most < 2:
        raise ConfigError(
            f"clusters of {len(subjects)} subjects, at most {most}: at least {LEAST_SUBJECTS} subjects and 2 clusters."
        )
    from sklearn.cluster import KMeans  # heavy
    from sklearn.metrics import silhouette_score

    rows = subjects / np.maximum(np.linalg.norm(subjects, axis=1, keepdims=True), 1e-300)
    best = np.zeros(len(rows), dtype=np.int64)
    tried: dict[int, float] = {}
    for k in range(2, min(most, len(rows) - 1) + 1):
        found = KMeans(n_clusters=k, n_init=10, random_state=seed).fit_predict(rows)
        if len(np.unique(found)) < 2:
            continue  # latents that coincide
        score = float(silhouette_score(rows, found))
        if not tried or score > max(tried.values()):
            best = found
        tried[k] = score
    names = cosines(subjects, bank) if len(words) else np.zeros((len(subjects), 0))
    members = sorted((np.flatnonzero(best == label) for label in np.unique(best)), key=lambda one: (-len(one), one[0]))
    clusters = []
    for one in members:
        others = np.setdiff1d(np.arange(len(rows)), one)
        distinct = names[one].mean(0) - (names[others].mean(0) if len(others) else 0.0)
        order = np.argsort(-distinct, kind="stable")[:n_words]
        clusters.append(Cluster(subjects=tuple(int(i) for i in one), words=tuple(words[i] for i in order)))
    return Clustering(clusters=tuple(clusters), silhouette=max(tried.values(), default=0.0), tried=tried)
