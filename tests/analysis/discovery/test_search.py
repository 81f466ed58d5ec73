"""Open discovery on latents with planted attributes, and on noise."""

import numpy as np
import pytest

from diffprobe.analysis.discovery.components import Decomposition
from diffprobe.analysis.discovery.search import Search, discover_attributes
from diffprobe.core.errors import ConfigError
from tests.analysis.discovery.planted import noise, planted

HOW = Decomposition(max_components=12, explained=1.0, n_starts=3)
QUICK = Search(n_permutations=399, n_resamples=50, decomposition=HOW)


def finding_of(found, has):
    """Return the finding whose component is most like an attribute."""
    likeness = [abs(np.corrcoef(column, has)[0, 1]) for column in found.components.scores.T]
    return next(one for one in found.findings if one.component == int(np.argmax(likeness)))


@pytest.mark.slow
@pytest.mark.parametrize("paired", [False, True])
def test_the_planted_association_is_found_hidden_and_the_stated_attribute_named(paired):
    made = planted(n_subjects=10, paired=paired, d=6)
    found = discover_attributes(made.features, made.design, made.names, made.captions, QUICK)
    hidden, stated = finding_of(found, made.hidden), finding_of(found, made.stated)
    assert hidden.kind == "association" and hidden.is_hidden and hidden.q <= 0.05
    ends = (set(hidden.high), set(hidden.low)) if hidden.groups.smaller[made.hidden].mean() > 0.5 else (
        set(hidden.low), set(hidden.high))  # fmt: skip
    assert ends[0] == {0, 1}
    assert hidden.groups.frequency == pytest.approx(made.hidden.mean(), abs=0.05)
    assert stated.kind == "free" and {one.phrase for one in stated.named_by} == {"striped clothes", "plain clothes"}
    assert found.findings[0] is hidden and set(found.structured) == {hidden, stated}
    assert found.n_structured_by_chance == 0 and found.associations_by_chance < 0.3 and found.has_words


@pytest.mark.slow
def test_what_defines_a_subject_is_an_identity():
    made = planted()
    features = made.features.copy()
    features[made.design.subjects < 3] += 40 * np.random.default_rng(9).normal(size=12)
    found = discover_attributes(features, made.design, made.names, made.captions, QUICK)
    kinds = [one.kind for one in found.structured]
    assert kinds.count("identity") == 1
    assert set(next(one for one in found.structured if one.kind == "identity").high) == {0, 1, 2}


@pytest.mark.slow
def test_noise_gives_findings_at_the_nominal_rate_only():
    structured = associations = 0
    for seed in range(6):
        features, design = noise(seed=seed)
        names = [str(i) for i in range(len(features))]
        found = discover_attributes(features, design, names, [""] * len(names), QUICK)
        structured += len(found.structured)
        associations += any(one.q <= 0.05 for one in found.findings)
        assert not found.has_words and all(one.words is None for one in found.findings)
    assert structured <= 1 and associations <= 1


@pytest.mark.slow
def test_the_order_of_samples_and_subjects_does_not_matter():
    made = planted()
    order = np.random.default_rng(4).permutation(len(made.names))
    renamed = np.array([3, 0, 7, 1, 2, 6, 5, 4])
    design = type(made.design)(
        names=tuple(made.design.names[i] for i in np.argsort(renamed)), subjects=renamed[made.design.subjects][order]
    )
    one = discover_attributes(made.features, made.design, made.names, made.captions, QUICK)
    other = discover_attributes(
        made.features[order], design, [made.names[i] for i in order], [made.captions[i] for i in order], QUICK
    )
    first, second = finding_of(one, made.hidden), finding_of(other, made.hidden[order])
    assert first.kind == second.kind and first.dependence.share == pytest.approx(second.dependence.share, abs=1e-3)
    assert {made.design.names[i] for i in first.high} == {design.names[i] for i in second.high}


def test_bad_input_is_refused():
    made = planted()
    with pytest.raises(ConfigError, match="959 captions"):
        discover_attributes(made.features, made.design, made.names, made.captions[1:], QUICK)
    with pytest.raises(ConfigError, match="n_permutations"):
        Search(n_permutations=10)
    with pytest.raises(ConfigError, match="level"):
        Search(level=1.0)
