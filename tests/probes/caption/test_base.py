import json

import pytest
import torch
import torch.nn.functional as F

from diffprobe.core.errors import ConfigError, EmptyClass, SchemaError, WeightsMismatch
from diffprobe.probes.caption import CaptionRegressor
from diffprobe.probes.caption.base import CaptionConfig
from diffprobe.probes.caption.contrastive import Config as Contrastive
from diffprobe.probes.caption.ridge import Config as Ridge
from diffprobe.probes.direction import Direction

CELL = "mid_block@t10:empty:mean"


def linear():
    """A linear map with known weights, for features and captions of unequal spread and place."""
    draw = torch.Generator().manual_seed(0)
    found = CaptionRegressor("ridge", Ridge(), 6, 4, cell=CELL, text_encoder="toy", text_digest="ab")
    found.net.weight.copy_(torch.randn(6, 4, generator=draw))
    scales = (torch.rand(6, generator=draw) + 0.5, torch.rand(4, generator=draw) + 0.5)
    found.standardise((torch.randn(6, generator=draw), scales[0]), (torch.randn(4, generator=draw), scales[1]))
    weights = (found.net.weight * scales[0].sqrt()[:, None] / scales[1].sqrt()).T  # in the units of both
    return found, weights


def embeddings(n=5, seed=1):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def test_a_direction_is_the_mean_difference_of_expected_features():
    probe, weights = linear()
    above, below = embeddings(), embeddings(seed=2)
    found = probe.direction(above, below, target="style", names=("noto", "twemoji"))
    difference = (above - below).mean(0) @ weights
    assert float(F.cosine_similarity(found.vector, difference, dim=0)) == pytest.approx(1, abs=1e-6)
    assert found.scale == pytest.approx(float(difference.norm()), rel=1e-5)
    assert (found.target, found.positive, found.negative) == ("style", "noto", "twemoji")
    assert (found.cell, found.estimator) == (CELL, "caption_regression")
    expected = probe.features_of(above).mean(0), probe.features_of(below).mean(0)
    assert found.predict(torch.stack(expected)).tolist() == [True, False]
    back = probe.direction(below, above)
    torch.testing.assert_close(back.vector, -found.vector)


def test_equal_ends_are_refused():
    probe, _ = linear()
    with pytest.raises(EmptyClass, match="'a cat' and 'a feline'"):
        probe.direction(embeddings(), embeddings(), names=("a cat", "a feline"))


def test_a_map_from_features_has_no_direction_between_captions():
    probe = CaptionRegressor("contrastive", Contrastive(), 6, 4)
    with pytest.raises(ConfigError, match="contrastive"):
        probe.direction(embeddings(), embeddings(seed=2))


def test_scores_of_a_map_from_captions_are_squared_distances():
    probe, _ = linear()
    h, e = torch.randn(7, 6, generator=torch.Generator().manual_seed(3)), embeddings()
    expected = ((h[:, None] - probe.features_of(e)) / probe.feature_std).square().sum(-1)
    torch.testing.assert_close(probe.scores(h, e), -expected, rtol=1e-4, atol=1e-4)


def test_captions_are_ranked_along_a_direction():
    probe, _ = linear()
    e = embeddings(8)
    direction = probe.direction(e[:1], e[1:2])
    along = probe.scores_along(direction.vector, e)
    assert along[0] > along[1] and (along.abs() <= 1 + 1e-6).all()
    torch.testing.assert_close(probe.scores_along(-direction.vector, e), -along)
    other = CaptionRegressor("contrastive", Contrastive(), 6, 4)
    moved = F.normalize(direction.vector, dim=0) @ other.net.net.weight.T
    expected = F.cosine_similarity(e, moved[None])
    torch.testing.assert_close(other.scores_along(direction.vector, e), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "config"), [("ridge", Ridge(folds=3)), ("contrastive", Contrastive(hidden=3))])
def test_a_saved_map_is_the_same(name, config, tmp_path):
    probe = CaptionRegressor(name, config, 6, 4, cell=CELL, text_encoder="toy", text_digest="ab", seed=4)
    back = CaptionRegressor.from_pretrained(probe.save_pretrained(tmp_path / "probe"))
    assert (back.config, back.cell, back.text_encoder, back.text_digest) == (config, CELL, "toy", "ab")
    h = torch.randn(3, 6)
    assert back.scores(h, embeddings()).equal(probe.scores(h, embeddings()))


def test_another_probe_and_sizes_that_do_not_fit_are_refused(tmp_path):
    probe, _ = linear()
    folder = probe.save_pretrained(tmp_path / "probe")
    with pytest.raises(SchemaError):
        Direction.load(folder)
    written = json.loads((folder / "probe.json").read_text())
    written["settings"]["d_features"] = 4096
    (folder / "probe.json").write_text(json.dumps(written))
    with pytest.raises((SchemaError, WeightsMismatch)):
        CaptionRegressor.from_pretrained(folder)


def test_the_seed_fixes_initial_weights_and_leaves_the_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, again, other = (CaptionRegressor("contrastive", Contrastive(), 6, 4, seed=seed) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert one.net.net.weight.equal(again.net.net.weight) and not one.net.net.weight.equal(other.net.net.weight)


@pytest.mark.parametrize("params", [{"vocabulary": 0}, {"n_resamples": 0}, {"level": 1.0}])
def test_settings_out_of_range_are_refused(params):
    with pytest.raises(ConfigError, match=next(iter(params))):
        CaptionConfig(**params)
