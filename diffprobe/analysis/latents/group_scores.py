"""How far the activation of a latent for a class is from what labels permuted by group give, without permuting.

The sum of ranks over the images of a class has a known mean and variance under the permutations of
`probes/group_permutation.py`: groups of one class are drawn without replacement, and within a group of several classes
its images are. Classes that are constant in groups and classes that vary in them can so be compared: the images of a
group are not counted as independent. For groups of one image z is that of the Mann-Whitney test with ties.
"""

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.latents.rank_scores import check_labels, rank_gains, weighted_counts
from diffprobe.analysis.latents.sparse_codes import SparseCodes
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def group_z(codes: SparseCodes, labels: Ints, groups: Groups, n_classes: int) -> Floats:
    """Return by how many standard deviations the ranks of each class exceed those of permuted labels.

    Args:
        codes: activations of images.
        labels: class of each image, 0..n_classes-1, none missing, (images,).
        groups: group of each image.
        n_classes: number of classes.

    Returns: (latents, classes); 0 where no permutation changes the sum.
    Raises: ConfigError for other numbers of labels or groups.
    """
    from scipy.sparse import csr_array  # heavy

    check_labels(codes, labels, n_classes)
    if len(groups.ids) != codes.n_images:
        raise ConfigError(f"{len(groups.ids)} groups for {codes.n_images} images.")
    n_latents, ids = codes.n_latents, groups.ids
    gains = rank_gains(codes)
    mean = weighted_counts(codes.latent, gains, n_latents) / max(codes.n_images, 1)
    of_class = np.zeros((groups.n, n_classes))
    np.add.at(of_class, (ids, labels), 1.0)
    size = of_class.sum(1)
    whole = of_class.max(1) == size
    shape = (n_latents, groups.n)
    sums, squares = (csr_array((part, (codes.latent, ids[codes.row])), shape=shape) for part in (gains, gains**2))
    for part in (sums, squares):
        part.sum_duplicates()
    mixed = np.where(whole, 0.0, 1.0)
    # groups of one class: their sums of centred ranks are drawn without replacement
    n_whole, members = int(whole.sum()), (of_class > 0) & whole[:, None]
    n_drawn = members.sum(0).astype(np.float64)
    centre = mean[:, None]
    total = np.asarray(sums @ whole.astype(np.float64))[:, None] - centre * size[whole].sum()
    of_size = np.asarray(sums @ (whole * size))
    spread = np.asarray(sums.power(2) @ whole.astype(np.float64)) - 2 * mean * of_size
    spread += mean**2 * np.square(size[whole]).sum()
    each = total / max(n_whole, 1)
    variance_of_one = np.maximum(spread[:, None] / max(n_whole, 1) - each**2, 0.0)
    excess = np.asarray(sums @ members.astype(np.float64)) - centre * (members * size[:, None]).sum(0) - n_drawn * each
    variance = n_drawn * (n_whole - n_drawn) / max(n_whole - 1, 1) * variance_of_one
    # groups of several classes: their images are drawn without replacement
    share = of_class / size[:, None] * mixed[:, None]
    cell = codes.latent * n_classes + labels[codes.row]
    inside = weighted_counts(cell, gains * mixed[ids[codes.row]], n_latents * n_classes).reshape(-1, n_classes)
    excess = excess + inside - np.asarray(sums @ share)
    factor = share * (size[:, None] - of_class) / np.maximum(size - 1, 1)[:, None]
    variance = variance + np.asarray(squares @ factor) - np.asarray(sums.power(2) @ (factor / size[:, None]))
    scale = np.maximum(np.abs(gains).max(initial=0.0), 1.0) ** 2
    known = variance > 1e-12 * scale
    found: Floats = np.where(known, excess / np.sqrt(np.where(known, variance, 1.0)), 0.0)
    return found
