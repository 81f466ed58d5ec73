"""Agreement of clusters with labels that they were learned without: NMI, AMI and ARI.

All are symmetric, ignore the numbers of clusters, and are 1 for equal partitions. NMI of independent partitions is
above 0 and grows with their numbers of parts; AMI and ARI are then 0 on average. Sources: Vinh et al., JMLR 11 (2010)
2837 (informations, normalised by the mean of the entropies); Hubert and Arabie, J. Classification 2 (1985) 193 (ARI).
"""

from collections.abc import Sequence

import numpy as np

from diffprobe.core.errors import ConfigError

AGREEMENTS = ("nmi", "ami", "ari")
"""Names of the measures."""


def cluster_agreement(clusters: Sequence[int], labels: Sequence[str]) -> dict[str, float]:
    """Return normalised and adjusted mutual information, and the adjusted Rand index.

    Args:
        clusters: cluster of each sample.
        labels: label of each sample.
    Returns: name -> value; `nmi` in 0..1, the others at most 1.
    Raises: ConfigError for sequences of other lengths, without samples, or labels with one value.

    >>> cluster_agreement([0, 0, 1, 1], ["b", "b", "a", "a"])
    {'nmi': 1.0, 'ami': 1.0, 'ari': 1.0}
    """
    if len(clusters) != len(labels) or not len(labels):
        raise ConfigError(f"{len(clusters)} clusters and {len(labels)} labels: one of each per sample, at least one.")
    if len(set(labels)) < 2:
        raise ConfigError(f"all labels are '{labels[0]}': an agreement needs at least 2 labels.")
    from sklearn.metrics import (
        adjusted_mutual_info_score,
        adjusted_rand_score,
        normalized_mutual_info_score,
    )  # heavy

    found, given = np.asarray(clusters), np.unique(np.asarray(labels), return_inverse=True)[1]
    values = (
        normalized_mutual_info_score(given, found),
        adjusted_mutual_info_score(given, found),
        adjusted_rand_score(given, found),
    )
    return {name: float(value) for name, value in zip(AGREEMENTS, values, strict=True)}
