"""Independent components of latents."""

import numpy as np
import pytest

from diffprobe.analysis.discovery.components import Decomposition, find_components, halves, normal_surrogate
from diffprobe.core.errors import ConfigError, NonFinite, TooFewGroups
from tests.analysis.discovery.planted import planted

HOW = Decomposition(max_components=12, explained=1.0)


def best(components, has):
    """Return the largest absolute correlation of any component with an attribute."""
    return max(abs(np.corrcoef(column, has)[0, 1]) for column in components.scores.T)


def test_planted_attributes_get_a_component_of_their_own():
    made = planted()
    found = find_components(made.features, halves(made.names), HOW)
    assert best(found, made.hidden) > 0.85 and best(found, made.stated) > 0.85
    principal = np.linalg.svd(made.features - made.features.mean(0), full_matrices=False)[0]
    assert max(abs(np.corrcoef(column, made.hidden)[0, 1]) for column in principal.T) < 0.85
    np.testing.assert_allclose(found.scores.std(0), 1)
    np.testing.assert_allclose(found.scores.mean(0), 0, atol=1e-9)
    assert ((found.scores**3).mean(0) >= 0).all()


def test_attributes_are_stable_and_normal_directions_are_not():
    made = planted()
    found = find_components(made.features, halves(made.names), HOW)
    own = [
        int(np.argmax([abs(np.corrcoef(c, has)[0, 1]) for c in found.scores.T])) for has in (made.hidden, made.stated)
    ]
    assert found.stability[own].min() > 0.9
    assert np.median(np.delete(found.stability, own)) < 0.8


@pytest.mark.slow
def test_neither_order_scale_nor_constant_features_matter():
    made = planted()
    order = np.random.default_rng(1).permutation(len(made.names))
    one = find_components(made.features, halves(made.names), HOW)
    changed = np.column_stack([made.features[order] * np.geomspace(1, 1000, 12) + 5, np.full(len(order), 3.0)])
    other = find_components(changed, halves([made.names[i] for i in order]), HOW)
    assert other.n_constant == 1
    for has in (made.hidden, made.stated):
        first, second = (
            found.scores[:, int(np.argmax([abs(np.corrcoef(c, has[rows])[0, 1]) for c in found.scores.T]))]
            for found, rows in ((one, slice(None)), (other, order))
        )
        assert np.corrcoef(first[order], second)[0, 1] > 0.98


def test_the_surrogate_has_the_covariance_and_no_groups():
    made = planted()
    drawn = normal_surrogate(made.features)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(made.features.T), atol=0.35 * np.cov(made.features.T).max())
    np.testing.assert_allclose(drawn.mean(0), made.features.mean(0), atol=1.5)
    assert best(find_components(drawn, halves(made.names), HOW), made.hidden) < 0.3


def test_halves_keep_blocks_and_ignore_the_order():
    names = [str(i % 7) for i in range(70)]
    half = halves(names)
    assert len({(name, bool(side)) for name, side in zip(names, half, strict=True)}) == 7
    np.testing.assert_array_equal(halves(names[::-1]), half[::-1])


@pytest.mark.parametrize(
    ("change", "error", "fact"),
    [
        (lambda x: x[:30], TooFewGroups, "30"),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 12 * 5 + 3, np.nan, x), NonFinite, "3 of sample 5"),
        (lambda x: np.ones_like(x), ConfigError, "12"),
        (lambda x: x[:, :0], ConfigError, "0"),
    ],
)
def test_bad_latents_are_refused(change, error, fact):
    made = planted()
    features = change(made.features)
    with pytest.raises(error, match=fact):
        find_components(features, np.arange(len(features)) % 2 == 0, HOW)


def test_a_half_without_samples_is_refused():
    made = planted()
    with pytest.raises(TooFewGroups, match="halves"):
        find_components(made.features, np.ones(len(made.features), dtype=bool), HOW)


@pytest.mark.parametrize("wrong", [{"max_components": 0}, {"explained": 0.0}, {"explained": 1.5}, {"n_starts": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Decomposition(**wrong)
