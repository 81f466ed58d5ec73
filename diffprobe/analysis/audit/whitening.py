"""Whiten prompt latents by their covariance within prompts with an attribute.

The difference of two means points along what varies most, too: colours, places, sizes. In whitened latents it is the
direction of a linear discriminant analysis, and cosines weigh all that varies within prompts alike.
"""

import numpy as np
from jaxtyping import Float64

from diffprobe.analysis.audit.latents import AuditLatents, end_latents
from diffprobe.analysis.audit.spec import AuditSpec
from diffprobe.core.errors import EmptyClass


def whitened(latents: AuditLatents, spec: AuditSpec) -> AuditLatents:
    """Return latents times the inverse square root of their covariance within attribute prompts.

    The covariance is that around the mean of each subject and word, over templates and seeds, pooled over the axes, and
    shrunk towards a multiple of the identity (Ledoit and Wolf 2004, A well-conditioned estimator for large-dimensional
    covariance matrices). It does not use prompts without an attribute, whose attribute varies.

    Raises: ConfigError for a prompt that is missing; EmptyClass if nothing varies within prompts, as with one template
        and one seed.
    """
    from sklearn.covariance import LedoitWolf  # heavy

    parts = []
    for axis in spec.axes:
        for end in end_latents(latents, spec, axis, spec.all_subjects):
            rows = end.astype(np.float64)
            parts.append((rows - rows.mean((1, 3), keepdims=True)).reshape(-1, rows.shape[-1]))
    residuals = np.concatenate(parts)
    if not residuals.any():
        raise EmptyClass(
            "prompt latents do not vary within a subject and word, so they cannot be whitened.",
            fix="several templates or seeds, or whiten=false",
        )
    covariance: Float64[np.ndarray, "d d"] = LedoitWolf(assume_centered=True).fit(residuals).covariance_
    values, vectors = np.linalg.eigh(covariance)
    scale = vectors / np.sqrt(values) @ vectors.T
    return AuditLatents(features=(latents.features @ scale).astype(np.float32), prompts=latents.prompts)
