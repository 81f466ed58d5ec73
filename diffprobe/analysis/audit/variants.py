"""A subject without an attribute beside its own two variants: which one it is similar to, and where between them it is.

What a subject itself adds to the latents, and to their coordinate along the direction, is in all three prompts. An
association with the mean subject as 0 has that in it; these do not.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Float64

from diffprobe.analysis.audit.association import Estimates, Sampling, mean_estimates
from diffprobe.analysis.audit.direction import left_out_directions
from diffprobe.core.errors import EmptyClass


def default_of(
    subjects: Float32[np.ndarray, "subjects templates seeds d"],
    positive: Float32[np.ndarray, "subjects templates words seeds d"],
    negative: Float32[np.ndarray, "subjects templates words seeds d"],
    sampling: Sampling,
) -> Estimates:
    """Return delta(p) = cos(v(p), v(p + A)) - cos(v(p), v(p + B)), -2..2, of each subject.

    It is computed in each template and seed, where all three prompts have the same noise, and averaged. All latents are
    centred by the mean subject of that template and seed.

    Args:
        subjects: latents without an attribute, not centred.
        positive, negative: latents of the same subjects with the words of either end, averaged over words.

    Raises: EmptyClass if a centred latent is 0.
    """
    centre = subjects.mean(0, keepdims=True)
    plain = subjects - centre
    values = _cosines(plain, positive.mean(2) - centre) - _cosines(plain, negative.mean(2) - centre)
    return mean_estimates(values, sampling)


def positions_of(
    subjects: Float32[np.ndarray, "subjects templates seeds d"],
    positive: Float32[np.ndarray, "subjects templates words seeds d"],
    negative: Float32[np.ndarray, "subjects templates words seeds d"],
    differences: Float64[np.ndarray, "templates seeds d"],
    sampling: Sampling,
) -> Estimates:
    """Return where along the direction each subject is between its own variants: -1 at the negative, 1 at the positive.

    If the latent of the subject is a mixture of those of its variants, with weight r on the positive one, the position
    is 2r - 1, whatever the noise of single latents. It is measured along the direction of the other templates. The
    interval is that of a ratio: both the distance to the middle and that between the variants are resampled.

    Raises: EmptyClass if the variants of a subject do not differ in the sense of the direction, or for one template.
    """
    units = left_out_directions(differences).astype(subjects.dtype)
    own, right, left = (
        np.einsum("ntsd,td->nts", one, units).astype(np.float64)
        for one in (subjects, positive.mean(2), negative.mean(2))
    )
    along, half = own - (right + left) / 2, (right - left) / 2
    scale = half.mean((1, 2))
    if not (scale > 0).all():
        raise EmptyClass(
            f"the variants of subject {int(np.argmin(scale))} do not differ in the sense of the direction."
        )
    found = mean_estimates(along / scale[:, None, None], sampling)
    resamples = sampling.resamples(*along.shape[1:])
    if resamples is None:
        return found
    above, below = resamples.means(along), resamples.means(half)
    drawn = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
    intervals = [
        resamples.interval(float(value), drawn[:, i], level=sampling.level) for i, value in enumerate(found.value)
    ]
    return replace(found, low=np.array([one.low for one in intervals]), high=np.array([one.high for one in intervals]))


def _cosines(
    one: Float32[np.ndarray, "subjects templates seeds d"], other: Float32[np.ndarray, "subjects templates seeds d"]
) -> Float64[np.ndarray, "subjects templates seeds"]:
    dot = np.einsum("ntsd,ntsd->nts", one, other).astype(np.float64)
    scale = np.linalg.norm(one, axis=-1).astype(np.float64) * np.linalg.norm(other, axis=-1)
    if not (scale > 0).all():
        raise EmptyClass(f"the centred latent of subject {int(np.argwhere(scale == 0)[0][0])} is 0 in a template.")
    return dot / scale
