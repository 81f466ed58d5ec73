"""The default analysis: which variant of its own prompt a subject without an attribute is more similar to."""

import numpy as np
from jaxtyping import Float32, Float64

from diffprobe.analysis.audit.association import Estimates, Sampling, mean_estimates
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


def _cosines(
    one: Float32[np.ndarray, "subjects templates seeds d"], other: Float32[np.ndarray, "subjects templates seeds d"]
) -> Float64[np.ndarray, "subjects templates seeds"]:
    dot = np.einsum("ntsd,ntsd->nts", one, other).astype(np.float64)
    scale = np.linalg.norm(one, axis=-1).astype(np.float64) * np.linalg.norm(other, axis=-1)
    if not (scale > 0).all():
        raise EmptyClass(f"the centred latent of subject {int(np.argwhere(scale == 0)[0][0])} is 0 in a template.")
    return dot / scale
