"""Latents with planted attributes, for the tests of open discovery."""

from dataclasses import dataclass

import numpy as np

from diffprobe.analysis.discovery.subjects import Design


@dataclass(frozen=True)
class Planted:
    """Latents with two binary attributes among normal directions of equal variance, and what was planted."""

    features: np.ndarray
    design: Design
    names: list[str]
    captions: list[str]
    hidden: np.ndarray
    """Which samples have the attribute that no caption states; frequent in the first two subjects."""
    stated: np.ndarray
    """Which samples have the attribute that half of the captions state, in all subjects alike."""


def planted(n_subjects: int = 8, n_seeds: int = 120, *, seed: int = 0, paired: bool = False, d: int = 12) -> Planted:
    """Return latents in which subjects 0 and 1 have the hidden attribute at a rate of 0.8, the others at 0.2."""
    generator = np.random.default_rng(seed)
    n = n_subjects * n_seeds
    subjects = np.repeat(np.arange(n_subjects), n_seeds)
    rate = np.where(subjects < 2, 0.8, 0.2)
    hidden, stated = generator.random(n) < rate, generator.random(n) < 0.4
    sources = np.column_stack([
        (hidden - 0.5) * 5 + generator.normal(size=n),
        (stated - 0.5) * 5 + generator.normal(size=n),
        generator.normal(size=(n, d - 2)) * 2.6,  # no attribute has more variance than the rest
    ])  # fmt: skip
    features = sources @ np.linalg.qr(generator.normal(size=(d, d)))[0]
    captions = [
        f"a role{subject}" + (f", {'striped' if has else 'plain'} clothes" if generator.random() < 0.5 else "")
        for subject, has in zip(subjects, stated, strict=True)
    ]
    blocks = tuple(str(i % n_seeds) for i in range(n)) if paired else None
    design = Design(names=tuple(f"role{i}" for i in range(n_subjects)), subjects=subjects, blocks=blocks)
    names = [f"{subject}-{i}" for i, subject in enumerate(subjects)]
    return Planted(features, design, names, captions, hidden, stated)


def noise(n_subjects: int = 8, n_seeds: int = 40, *, seed: int = 0, d: int = 10) -> tuple[np.ndarray, Design]:
    """Return correlated normal latents that do not depend on subjects."""
    generator = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(n_subjects), n_seeds)
    features = generator.normal(size=(len(subjects), d)) @ generator.normal(size=(d, d))
    return features, Design(names=tuple(f"role{i}" for i in range(n_subjects)), subjects=subjects)
