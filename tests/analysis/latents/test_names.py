"""Names: planted phrases are found and pass on held-out images, shuffled captions do not, and groups count once."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import fisher_exact
from sklearn.metrics import roc_auc_score

from diffprobe.analysis.latents.names import CaptionedCodes, NameSettings, latent_names, log_odds, phrase_areas
from diffprobe.analysis.latents.permutation_tests import PermutationSettings
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups
from tests.analysis.latents.planted_codes import DARK, FISH, N_LATENTS, OWL, world

SETTINGS = NameSettings(permutations=PermutationSettings(most=1000))


def parts(seed=0, **more):
    found = [world(seed, prefix="a", **more), world(seed + 1, prefix="b", **more)]
    return [CaptionedCodes(codes=w.codes, captions=w.captions, groups=w.groups) for w in found]


def test_planted_phrases_name_their_latents():
    train, test = parts()
    names = latent_names(train, test, SETTINGS)
    assert len(names) == N_LATENTS and names[-1] == ()
    for latent, word in ((DARK, "dark tone"), (OWL, "owl"), (FISH, "fish")):
        first = names[latent][0]
        assert first.phrase == word and first.shown and first.q <= 0.05 and first.auroc > 0.85 and first.score > 2
    assert {one.phrase for names_of in names for one in names_of if one.shown} == {"dark tone", "owl", "fish"}
    assert names[DARK][0].same == ("dark",)


def test_auroc_and_fishers_p_are_those_of_libraries():
    train, test = parts()
    alone = dataclasses.replace(test, groups=Groups.of_values(np.full(240, -1)))
    found = latent_names(train, alone, NameSettings(least_z=1.0))
    active = np.zeros((N_LATENTS, 240))
    active[test.codes.latent, test.codes.row] = 1
    checked = 0
    for latent, names in enumerate(found):
        for one in names:
            has = np.array([one.phrase in caption for caption in test.captions])
            assert one.auroc == pytest.approx(roc_auc_score(active[latent], has))
            table = [[(has & (active[latent] == a)).sum(), (~has & (active[latent] == a)).sum()] for a in (1, 0)]
            assert one.p == pytest.approx(fisher_exact(table, alternative="greater").pvalue, rel=1e-9)
            checked += 1
    assert checked > 5


def test_log_odds_follow_the_formula_and_shrink_rare_words():
    a, n_active, n_with, n, prior = 7.0, 20.0, 30.0, 200, 10.0
    p = n_with / n
    inside, outside = (
        (a + prior * p) / (n_active - a + prior * (1 - p)),
        (n_with - a + prior * p) / (n - n_active - n_with + a + prior * (1 - p)),
    )
    ratio, z = log_odds(*map(np.array, (a, n_active, n_with)), n, prior=prior)
    assert ratio == pytest.approx(np.log(inside / outside))
    assert 0 < z < ratio / np.sqrt(1 / (a + prior * p))
    rare, z_rare = log_odds(np.array(2.0), np.array(20.0), np.array(2.0), 200, prior=prior)
    _, z_often = log_odds(np.array(18.0), np.array(20.0), np.array(20.0), 200, prior=prior)
    assert z_rare < 3 < z_often  # two images with a word are little evidence
    assert 0 < log_odds(np.array(2.0), np.array(20.0), np.array(2.0), 200, prior=1000)[0] < rare / 5


@pytest.mark.parametrize("grouped", [True, False])
def test_shuffled_captions_name_nothing(grouped):
    """Over 12 data sets without an effect, names at 10 % are found in hardly more than 10 % of them."""
    hits, ps = 0, []
    for seed in range(12):
        train, test = parts(200 + 2 * seed, planted=False)
        if not grouped:
            test = dataclasses.replace(test, groups=Groups.of_values(np.full(240, -1)))
        settings = NameSettings(
            least_z=1.0, rate=0.1, least_auroc=0.5, permutations=PermutationSettings(most=500, seed=seed)
        )
        names = [one for of_latent in latent_names(train, test, settings) for one in of_latent]
        hits += any(one.shown for one in names)
        ps += [one.p for one in names if one.p is not None]
    assert len(ps) > 100 and hits <= 5
    assert (np.array(ps) <= 0.05).mean() <= 0.05 + 4 * np.sqrt(0.05 / len(ps))


def test_a_name_in_no_held_out_caption_is_not_shown():
    train, test = parts()
    captions = [caption.replace("owl", "bird") for caption in test.captions]
    names = latent_names(train, dataclasses.replace(test, captions=captions), SETTINGS)[OWL]
    owl = next(one for one in names if one.phrase == "owl")
    assert owl.auroc is None and owl.p is None and owl.q is None and not owl.shown


@pytest.mark.parametrize("grouped", [True, False])
def test_a_name_in_too_few_held_out_groups_has_no_test(grouped):
    """Two held-out drawings with the word, and the latent active on just these: no evidence to speak of."""
    train, test = parts()
    if not grouped:
        test = dataclasses.replace(test, groups=Groups.of_values(np.full(240, -1)))
    owls = np.flatnonzero(["owl" in caption for caption in test.captions])
    kept = set(owls[:2].tolist())
    captions = [c if i in kept else c.replace("owl", "bird") for i, c in enumerate(test.captions)]
    changed = dataclasses.replace(test, captions=captions)
    owl = next(one for one in latent_names(train, changed, SETTINGS)[OWL] if one.phrase == "owl")
    assert owl.auroc > 0.5 and owl.p is None and owl.q is None and not owl.shown
    tested = dataclasses.replace(SETTINGS, min_test_groups=1)
    owl = next(one for one in latent_names(train, changed, tested)[OWL] if one.phrase == "owl")
    assert owl.p is not None


def test_given_names_are_tested_like_the_others():
    train, test = parts()
    answers = {OWL: "An owl!", DARK: "dark tone", 0: "cat", 1: "unicorn", 2: "..."}
    names = latent_names(train, test, SETTINGS, answers=answers)
    cat = next(one for one in names[0] if one.phrase == "cat")
    assert not cat.shown and cat.p is not None and cat.z < SETTINGS.least_z
    assert [one.phrase for one in names[1]] == ["unicorn"] and names[1][0].q is None and not names[1][0].shown
    assert names[2] == ()
    assert [one.phrase for one in names[DARK]].count("dark tone") == 1
    assert "an owl" in {one.phrase for one in names[OWL]}
    with pytest.raises(ConfigError, match="a name for latent 40"):
        latent_names(train, test, SETTINGS, answers={40: "x"})


def test_without_captions_there_are_no_names():
    train, test = parts()
    none = dataclasses.replace(train, captions=[""] * 240)
    assert latent_names(none, test, SETTINGS) == [()] * N_LATENTS


def test_the_area_is_not_defined_where_there_is_nothing_to_predict():
    n = np.array([0.0, 10.0, 4.0, 4.0, 4.0])
    with_word = np.array([3.0, 3.0, 0.0, 10.0, 5.0])
    found = phrase_areas(np.array([0.0, 3.0, 0.0, 4.0, 2.0]), with_word, n, 10)
    assert np.isnan(found[:4]).all() and found[4] == 0.5


def test_bad_input_is_refused():
    train, test = parts()
    with pytest.raises(ConfigError, match="2 captions and 80|2 captions and 240"):
        dataclasses.replace(train, captions=["a", "b"])
    with pytest.raises(ConfigError, match="n_candidates=0"):
        NameSettings(n_candidates=0)
