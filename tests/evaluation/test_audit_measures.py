"""What is measured at a cell."""

import numpy as np

from diffprobe.evaluation.audit_inputs import RateTable
from diffprobe.evaluation.audit_measures import measure_cell, measure_other_cell
from tests.analysis.audit.world import World
from tests.evaluation.audit_world import RATES, TEXTURE, TONE, settings

TRUTH = np.array(list(RATES.values()))


def test_planted_rates_are_measured_and_the_others_are_not_discovered() -> None:
    config = settings(n_resamples=200)
    found = measure_cell(config, World(RATES, n_seeds=12).latents(config), words=None, images=None, reference=None)
    (axis,) = found.axes
    assert axis.rates is not None and np.abs(axis.rates.rate - TRUTH).max() < 0.15
    assert axis.tested.discoveries(0.05).tolist() == [True, True, False, False, True, True]
    assert found.amplified is not None and np.allclose(found.amplified.difference, axis.rates.rate - 0.5)
    assert found.clustering is not None and axis.ends is not None and set(axis.groups) == {"arts"}
    assert [len(words) for words in found.similar_words] == [3] * 6


def test_rates_of_images_are_compared_where_they_are_given() -> None:
    config = settings(rates="x.csv", reader="people")
    images = RateTable(rate=TRUTH, low=None, high=None)
    reference = RateTable(rate=np.full(6, 0.3), low=None, high=None)
    found = measure_cell(config, World(RATES).latents(config), words=None, images=images, reference=reference)
    assert found.amplified is not None and np.allclose(found.amplified.difference, TRUTH - 0.3)
    assert found.amplified.low is None and found.image_agreement is not None


def test_words_alone_are_a_control_beside_the_associations() -> None:
    config = settings()
    words = World(dict.fromkeys(RATES, 0.5), n_seeds=1, noise=0.0, seed=5).latents(config)
    found = measure_cell(config, World(RATES).latents(config), words=words, images=None, reference=None).axes[0]
    assert found.words_only is not None and found.words_agreement is not None
    assert not np.allclose(found.words_only, found.associations.cosine.value, atol=0.05)


def test_two_axes_intersect_and_other_cells_are_compared() -> None:
    config = settings(axes=(TEXTURE, TONE))
    latents = World(RATES).latents(config)
    found = measure_cell(config, latents, words=None, images=None, reference=None)
    (pair,) = found.intersections
    assert pair.axes == ("texture", "tone") and pair.cosine > 0.9  # the world plants both along one direction
    same = measure_other_cell(config, latents, found)
    assert [one.axis for one in same] == ["texture", "tone"]
    assert all(one.rank_correlation == 1.0 for one in same)


def test_without_variants_associations_decide() -> None:
    config = settings(compare_variants=False)
    found = measure_cell(config, World(RATES).latents(config), words=None, images=None, reference=None).axes[0]
    assert found.rates is None and found.positions is None and found.defaults is None
    assert found.tested is found.associations.cosine


def test_few_subjects_are_not_clustered() -> None:
    config = settings(subjects=("cook", "judge"), descriptors=())
    found = measure_cell(config, World(RATES).latents(config), words=None, images=None, reference=None)
    assert found.clustering is None and found.similar_words == [[], []] and found.axes[0].ends is None
