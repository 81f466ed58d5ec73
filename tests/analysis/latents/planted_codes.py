"""Planted codes: images with a class and a tone in groups, captions of both, and latents that are active for some."""

from dataclasses import dataclass

import numpy as np
import torch

from diffprobe.analysis.latents.sparse_codes import CodeCollector, SparseCodes
from diffprobe.core.groups import Groups

CLASSES = ("cat", "dog", "fish", "owl")
TONES = ("dark", "light")
FILLERS = ("old", "small", "round", "smiling")
DARK, OWL, FISH = 3, 5, 8
"""Latents that are active for a dark tone, for owls, and for fish."""
N_LATENTS = 40


@dataclass(frozen=True, eq=False)
class World:
    """A split: codes, and class, tone, group, caption and embedding of each image in the order of the keys."""

    codes: SparseCodes
    label: np.ndarray
    tone: np.ndarray
    groups: Groups
    captions: list
    embeddings: np.ndarray


def collected(dense, keys, *, batch=64, order=None, k=12):
    """Return the sparse codes of a dense matrix (images, latents)."""
    collector = CodeCollector(dense.shape[1])
    for rows in np.array_split(np.arange(len(keys)) if order is None else order, max(1, len(keys) // batch)):
        update(collector, dense[rows], [keys[i] for i in rows], k=k)
    return collector.result()


def update(collector, dense, keys, *, k=12):
    values, indices = torch.from_numpy(dense).topk(min(k, dense.shape[1]), dim=1)
    collector.update(values, indices, keys)


def dense_codes(label, tone, generator, *, planted=True):
    """Return activations (images, latents) with about five active latents per image."""
    n = len(label)
    active = generator.random((n, N_LATENTS)) < 0.1
    if planted:
        for latent, has in ((DARK, tone == 0), (OWL, label == 3), (FISH, label == 2)):
            active[:, latent] = np.where(has, generator.random(n) < 0.9, generator.random(n) < 0.02)
    active[:, -1] = False  # a latent that is never active
    return np.where(active, generator.random((n, N_LATENTS)) + 0.1, 0.0)


def world(seed, *, n_groups=80, size=3, planted=True, prefix=""):
    """Return a split of groups of one class each, in which the tone varies."""
    generator = np.random.default_rng(seed)
    n = n_groups * size
    group = np.repeat(np.arange(n_groups), size)
    label = generator.integers(0, len(CLASSES), n_groups)[group]
    tone = generator.integers(0, 2, n)
    keys = [f"{prefix}{i:05d}" for i in range(n)]
    dense = dense_codes(label, tone, generator, planted=planted)
    filler = generator.integers(0, len(FILLERS), n)
    captions = [f"{FILLERS[filler[i]]} {CLASSES[label[i]]}, {TONES[tone[i]]} tone" for i in range(n)]
    centres = np.random.default_rng(99).standard_normal((len(CLASSES), 6))
    embeddings = (centres[label] + 0.5 * generator.standard_normal((n, 6))).astype(np.float32)
    return World(collected(dense, keys), label, tone, Groups.of_values(group), captions, embeddings)
