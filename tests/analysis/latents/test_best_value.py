"""The best value of a latent: planted ones are found on held-out images, shuffled labels are not."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from diffprobe.analysis.latents.best_value import BestValueSettings, LabelledCodes, best_values
from diffprobe.analysis.latents.permutation_tests import PermutationSettings
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.groups import Groups
from tests.analysis.latents.planted_codes import CLASSES, DARK, FISH, N_LATENTS, OWL, TONES, world

FEW = BestValueSettings(permutations=PermutationSettings(most=2000))


def parts(target="label", seed=0, **more):
    found = [world(seed, prefix="a", **more), world(seed + 1, prefix="b", **more)]
    return found, [LabelledCodes(codes=w.codes, labels=getattr(w, target), groups=w.groups) for w in found]


def test_planted_values_are_found_and_others_are_not():
    for target, n, planted in (("label", len(CLASSES), {OWL: 3, FISH: 2}), ("tone", len(TONES), {DARK: 0})):
        _, (train, test) = parts(target)
        found = best_values(train, test, n, FEW)
        assert {latent: found.value[latent] for latent in planted} == planted
        assert set(np.flatnonzero(found.q <= 0.05)) == set(planted)
        for latent in planted:
            assert found.auroc[latent] > 0.85 and found.purity[latent] >= 0.8 and found.entropy[latent] < 0.7
            assert found.precision[latent] > max(0.7, 1.5 * found.prevalence[latent]) and found.purity_q[latent] <= 0.05


def test_scores_are_those_of_scikit_learn_on_test():
    (_, held_out), (train, test) = parts()
    found = best_values(train, test, len(CLASSES), FEW)
    for latent in np.flatnonzero(found.value >= 0):
        activation = np.zeros(test.codes.n_images)
        mine = test.codes.latent == latent
        activation[test.codes.row[mine]] = test.codes.value[mine]
        has = held_out.label == found.value[latent]
        assert found.auroc[latent] == pytest.approx(roc_auc_score(has, activation))
        assert found.precision[latent] == pytest.approx(average_precision_score(has, activation))
        assert found.prevalence[latent] == pytest.approx(has.mean())
    assert found.value[N_LATENTS - 1] == -1
    for name in ("purity", "entropy", "auroc", "precision", "p", "q", "z"):
        assert np.isnan(getattr(found, name)[N_LATENTS - 1])


def test_shuffled_labels_give_no_more_discoveries_than_nominal():
    """Over 20 data sets without an effect, the share with any discovery is at most the nominal 10 %, up to noise."""
    hits, ps = 0, []
    for seed in range(20):
        _, (train, test) = parts(seed=100 + 2 * seed, planted=False)
        found = best_values(
            train, test, len(CLASSES), BestValueSettings(permutations=PermutationSettings(most=500, seed=seed))
        )
        hits += bool((found.q <= 0.1).any())
        ps.append(found.p[~np.isnan(found.p)])
    assert hits <= 6  # of 20 at 10 %: more than 6 has probability .002
    p = np.concatenate(ps)
    assert (p <= 0.05).mean() <= 0.05 + 4 * np.sqrt(0.05 / len(p))


def test_values_too_rare_in_either_split_are_not_chosen():
    _, (train, test) = parts()
    labels = test.labels.copy()
    labels[labels == 3] = np.where(np.arange((labels == 3).sum()) < 2, 3, 1)
    found = best_values(train, LabelledCodes(codes=test.codes, labels=labels, groups=test.groups), len(CLASSES), FEW)
    assert 3 not in found.value
    with pytest.raises(EmptyClass, match="1 values have 5 images"):
        best_values(train, LabelledCodes(codes=test.codes, labels=np.zeros_like(labels), groups=test.groups), 4, FEW)


def test_images_without_a_value_are_left_out():
    (first, _), _ = parts()
    labels = np.where(np.arange(len(first.label)) % 3 == 0, -1, first.label)
    known = LabelledCodes.known(first.codes, labels, first.groups)
    assert known.codes.n_images == (labels >= 0).sum() and (known.labels >= 0).all()
    assert known.groups.n == first.groups.n


def test_bad_input_is_refused():
    (first, _), (train, test) = parts()
    with pytest.raises(ConfigError, match="240 images"):
        LabelledCodes(codes=first.codes, labels=first.label[:3], groups=first.groups)
    with pytest.raises(ConfigError, match="n_top=1"):
        BestValueSettings(n_top=1)
    other = LabelledCodes(
        codes=type(test.codes)(
            keys=test.codes.keys, row=test.codes.row, latent=test.codes.latent, value=test.codes.value, n_latents=41,
            n_seen=1,
        ),
        labels=test.labels, groups=Groups.of_values(np.arange(240)),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="40 latents in train and 41 in test"):
        best_values(train, other, 4, FEW)
