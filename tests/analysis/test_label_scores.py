"""Scores of ranked latents with their chance levels: on random labels, on planted classes, by group."""

import numpy as np
import pytest

from diffprobe.analysis.label_purity import top_classes
from diffprobe.analysis.label_scores import HIGHER_IS_BETTER, SIGMA, ChanceSettings, SplitImages, label_scores
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.groups import Groups

N_CLASSES, N, M = 8, 400, 60
FEW = ChanceSettings(n_permutations=60, n_renumberings=60)


def split(label, seed, *, follows=0.0, groups=None, held_out=True):
    """Latents that are active on images of a class of their own with some probability, else on any."""
    generator = np.random.default_rng(seed)
    classes = np.arange(M) % N_CLASSES
    activations = generator.random((N, M)).astype(np.float32)
    activations += np.where((label[:, None] == classes) & (generator.random((N, M)) < follows), 2, 0)
    top = np.argsort(-activations, axis=0)[:10].T
    more = {"classes": classes, "activations": activations} if held_out else {}
    groups = Groups.of_values(np.full(N, -1) if groups is None else groups)
    return SplitImages(label=label, groups=groups, top=top, **more)


@pytest.fixture
def label():
    return np.random.default_rng(0).integers(0, N_CLASSES, N)


def by_name(scores, top=M):
    return {score.measure: score for score in scores if score.top == top}


@pytest.mark.parametrize("held_out", [False, True])
def test_latents_that_know_no_class_are_at_chance(label, held_out):
    found = by_name(label_scores(split(label, 1, held_out=held_out), N_CLASSES, [M], FEW))
    assert set(found) == set(HIGHER_IS_BETTER) - (set() if held_out else {"auroc"})
    for score in found.values():
        assert score.value == pytest.approx(score.chance, rel=0.1)
        assert score.null.mean == pytest.approx(score.chance, rel=0.05)  # images are their own groups
        assert score.null.p > 0.01 and score.n_latents == M


def test_latents_of_one_class_are_far_from_chance(label):
    found = by_name(label_scores(split(label, 1, follows=0.9), N_CLASSES, [M], FEW))
    assert found["purity"].value == 1 and found["entropy"].value == 0 and found[SIGMA].value == 0
    assert found["auroc"].value > 0.9
    assert all(score.null.p == score.null.smallest_p for score in found.values())


def test_another_numbering_changes_sigma_label_alone(label):
    numbering = np.random.default_rng(3).permutation(N_CLASSES)
    for held_out in (False, True):
        one = split(label, 1, follows=0.3, held_out=held_out)
        top = one.top
        other = split(label, 1, follows=0.3, held_out=held_out)
        classes = None if one.classes is None else numbering[one.classes]
        other = SplitImages(
            label=numbering[label], groups=one.groups, top=top, classes=classes, activations=other.activations
        )
        before = by_name(label_scores(one, N_CLASSES, [M], FEW))
        after = by_name(label_scores(other, N_CLASSES, [M], FEW))
        for name in set(before) - {SIGMA}:
            assert after[name].value == pytest.approx(before[name].value, abs=1e-12)
            assert after[name].chance == pytest.approx(before[name].chance, abs=1e-12)
        assert abs(after[SIGMA].value - before[SIGMA].value) > 0.01
        mean, low, high = before[SIGMA].renumbered
        assert low <= after[SIGMA].value <= high and low < mean < high


def test_chance_by_group_keeps_variants_of_a_drawing_together():
    """Latents whose top images are the ten variants of one drawing look pure, and are so by chance."""
    groups = np.repeat(np.arange(N // 10), 10)
    label = np.random.default_rng(0).integers(0, N_CLASSES, N // 10)[groups]
    top = np.arange(N).reshape(-1, 10)
    images = SplitImages(label=label, groups=Groups.of_values(groups), top=top)
    found = by_name(label_scores(images, N_CLASSES, [M], FEW))["purity"]
    assert found.value == 1 and found.chance < 0.4
    assert found.null.mean == 1 and found.null.p == 1


def test_means_are_over_the_first_latents_and_fewer_are_counted(label):
    images = split(label, 1, follows=0.5, held_out=False)
    images.top[1:3, 1:] = -1  # one image: no spread
    images.top[3] = -1
    scores = {(s.measure, s.top): s for s in label_scores(images, N_CLASSES, [2, 10, 100], FEW)}
    counts = {top: scores[SIGMA, top].n_latents for top in (2, 10, 100)}
    assert counts == {2: 1, 10: 7, 100: M - 3}
    assert scores["purity", 100].n_latents == M - 1
    of_top = label[images.top]
    expected = np.std(of_top[[0, *range(4, 10)]], axis=1, ddof=1).mean()
    assert scores[SIGMA, 10].value == pytest.approx(expected)
    shares = [np.bincount(row).max() / 10 for row in of_top[[0, *range(4, 10)]]]
    assert scores["purity", 10].value == pytest.approx((sum(shares) + 2) / 9)
    assert (top_classes(np.where(images.top >= 0, of_top, -1))[3]) == -1


def test_one_group_leaves_the_estimate_without_a_test(label):
    found = by_name(label_scores(split(np.sort(label), 1, groups=np.arange(N)), N_CLASSES, [M], FEW))
    assert found[SIGMA].null is not None
    constant = split(label, 1, groups=np.zeros(N, dtype=int))
    assert by_name(label_scores(constant, N_CLASSES, [M], FEW))[SIGMA].null.n_within == 1


def test_seeds_fix_chance(label):
    one, again = (label_scores(split(label, 1), N_CLASSES, [M], FEW) for _ in range(2))
    assert [s.null.mean for s in one] == [s.null.mean for s in again]
    assert [s.renumbered for s in one] == [s.renumbered for s in again]


def test_one_class_and_no_latents_are_refused(label):
    with pytest.raises(EmptyClass, match="400 images have 1 class"):
        label_scores(split(np.zeros(N, dtype=int), 1), N_CLASSES, [M], FEW)
    with pytest.raises(ConfigError, match="tops is empty"):
        label_scores(split(label, 1), N_CLASSES, [], FEW)
