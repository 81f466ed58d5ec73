"""Compare components with the planted factors of `scenes` after a discovery: the tool is checked against the truth."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

from diffprobe.analysis.statistics import area_of, evaluate
from diffprobe.core.errors import ConfigError
from diffprobe.generative.scene_reader import load_reader
from diffprobe.shards.scenes.spec import FACTORS
from diffprobe.shards.scenes.world import SHIPPED, load_world

LEAST_OF_VALUE = 10
"""A value of a factor that fewer samples have, or that fewer lack, is not compared."""


@dataclass(frozen=True, kw_only=True)
class LikestFactor:
    """The factor that a component is most like, by the reader."""

    factor: str
    """Name of the factor."""
    value: str
    """The value against all others."""
    auroc: float
    """How well the component separates that value, 0.5..1."""
    is_positive: bool
    """Whether the value is at the positive end of the component."""
    planted: tuple[str, ...]
    """Subjects that prefer this value in the world: roles with that background, or those with a rate of the texture
    above (or below, for the other value) one half."""


def likest_factors(
    scores: Float64[np.ndarray, "samples components"], images: UInt8[np.ndarray, "samples h w 3"], reader: str
) -> list[LikestFactor]:
    """Return for each component the value of a factor with the largest area under the ROC curve.

    Args:
        scores: the components.
        images: the samples, of the reader's resolution.
        reader: name or folder of the reader.

    Raises: errors of the reader; ConfigError for images of another size, or too few samples of every value.
    """
    spec = load_world(SHIPPED)
    found = {name: values.argmax(1) for name, values in load_reader(reader, spec).read(images).items()}
    candidates = [
        (name, code, found[name] == code)
        for name in FACTORS if name != "role"
        for code in np.unique(found[name])
        if LEAST_OF_VALUE <= int((found[name] == code).sum()) <= len(images) - LEAST_OF_VALUE
    ]  # fmt: skip
    if not candidates:
        raise ConfigError(f"reader={reader}: no factor has two values with {LEAST_OF_VALUE} images each.")
    everyone, annotated = np.arange(len(images)), []
    for column in scores.T:
        areas = [evaluate(area_of(column, positive), everyone) for _, _, positive in candidates]
        best = int(np.argmax(np.abs(np.array(areas) - 0.5)))
        name, code, _ = candidates[best]
        value = spec.names(name)[int(code)]
        planted = [
            role.name for role in spec.roles
            if (name == "background" and role.background == value)
            or (name == "texture" and role.striped[0] != 0.5 and (role.striped[0] > 0.5) == (int(code) == 1))
        ]  # fmt: skip
        annotated.append(LikestFactor(
            factor=name, value=value, auroc=max(areas[best], 1 - areas[best]), is_positive=areas[best] >= 0.5,
            planted=tuple(planted),
        ))  # fmt: skip
    return annotated
