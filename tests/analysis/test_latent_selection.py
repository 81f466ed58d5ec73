"""Counts, selection and chance level on codes whose truth is known."""

import math

import numpy as np
import pytest
import torch

from diffprobe.analysis.latent_selection import LatentCounts, select_latents, summarize_latent
from diffprobe.core.errors import ConfigError, EmptyClass


def planted(n=400, n_classes=4):
    """Latent 0 fires on class 0 alone, latent 1 at random equally often, latent 2 on three samples, latent 3 never."""
    label = torch.arange(n) % n_classes
    pure = label == 0
    noise = torch.zeros(n, dtype=torch.bool)
    noise[torch.randperm(n, generator=torch.Generator().manual_seed(0))[: int(pure.sum())]] = True
    rare = torch.arange(n) < 3
    values = torch.stack([pure * 2.0, noise * 1.0, rare * 5.0], dim=1)
    return values, torch.tensor([[0, 1, 2]]).expand(n, 3), label


def counted(n_latents=4):
    counts = LatentCounts(n_latents, 4)
    values, indices, label = planted()
    for i in range(0, len(label), 64):
        counts.update(values[i : i + 64], indices[i : i + 64], label[i : i + 64])
    return counts


def test_numbers_of_a_pure_latent():
    summary = summarize_latent(counted(), 0)
    assert (summary.n_active, summary.density, summary.mean_activation, summary.max_activation) == (100, 0.25, 2, 2)
    assert (summary.label_entropy, summary.top_label, summary.top_label_share) == (0.0, 0, 1.0)
    assert summary.chance_entropy > 1.9


def test_chance_covers_a_latent_that_fires_at_random():
    summary = summarize_latent(counted(), 1)
    assert abs(summary.label_entropy - summary.chance_entropy) < 4 * summary.chance_entropy_sd
    assert summary.chance_entropy < 2.0  # below log2(4): the finite sample is part of the chance level


def test_chance_of_few_samples_is_low():
    assert summarize_latent(counted(), 2).chance_entropy <= math.log2(3)


def test_selection_takes_the_purest_of_each_bin_and_leaves_out_rare_ones():
    one = select_latents(counted(), n=1)
    assert one.latents == (0,) and one.n_eligible == 2 and one.n_latents == 4
    assert "at least 10 samples" in one.rule and "1 bins" in one.rule
    assert set(select_latents(counted(), n=24).latents) == {0, 1}
    assert set(select_latents(counted(), n=24, min_active=1).latents) == {0, 1, 2}


def test_selection_is_spread_over_density():
    counts = LatentCounts(100, 2)
    counts.n_samples = 1000
    counts.n_active = np.arange(1, 101) * 10
    counts.label_active = np.stack([counts.n_active, np.zeros(100, dtype=np.int64)], axis=1)
    selected = select_latents(counts, n=10).latents
    assert [latent // 10 for latent in selected] == list(range(10))


def test_samples_without_label_count_for_activity_only():
    counts = LatentCounts(1, 2)
    counts.update(torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.long), torch.tensor([-1, 0, 1]))
    summary = summarize_latent(counts, 0)
    assert summary.n_active == 3 and summary.density == 1.0 and summary.label_entropy == 1.0


def families(active):
    """Return the summary of latent 0 on 40 drawings of 12 variants each, of 4 classes."""
    drawing = torch.arange(480) // 12
    counts = LatentCounts(1, 4, groups_of=[0])
    for rows in torch.arange(480).split(100):
        fired = active(rows // 12, rows % 12).float()[:, None]
        counts.update(fired, torch.zeros(len(rows), 1, dtype=torch.long), drawing[rows] % 4, drawing[rows])
    return summarize_latent(counts, 0)


def test_a_latent_of_the_variants_of_one_drawing_does_not_look_pure():
    one = families(lambda drawing, variant: drawing == 3)
    assert (one.n_active, one.n_groups, one.label_entropy) == (12, 1, 0.0)
    assert (one.chance_entropy, one.chance_entropy_sd) == (0.0, 0.0)  # all drawings are as pure


def test_a_latent_of_one_class_looks_pure_however_many_variants_it_reads():
    for variants in (1, 12):
        found = families(lambda drawing, variant, n=variants: (drawing % 4 == 0) & (variant < n))
        assert (found.label_entropy, found.n_groups, found.n_active) == (0.0, 10, 10 * variants)
        assert 1.5 < found.chance_entropy < 1.95  # of ten drawings, not of 120 images: those have 1.98
        assert found.chance_entropy - found.label_entropy > 5 * found.chance_entropy_sd


def test_groups_come_with_every_batch_or_with_none():
    label = torch.tensor([0, 1])
    with pytest.raises(ConfigError, match=r"groups_of: 1 latents(.|\n)*no groups"):
        LatentCounts(1, 2, groups_of=[0]).update(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.long), label)
    with pytest.raises(ConfigError, match=r"groups_of: 0 latents(.|\n)*has groups"):
        LatentCounts(1, 2).update(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.long), label, label)
    assert summarize_latent(counted(), 0).n_groups is None


def test_faults_are_named(no_shape_checks):
    with pytest.raises(EmptyClass, match="most active: 100"):
        select_latents(counted(), min_active=101)
    with pytest.raises(EmptyClass, match="latent 3"):
        summarize_latent(counted(), 3)
    with pytest.raises(ConfigError, match="label: \\(2,\\)"):
        LatentCounts(1, 2).update(torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.long), torch.tensor([0, 1]))
