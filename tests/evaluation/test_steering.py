"""The comparison of ways to steer, with a tiny U-Net whose images show an attribute that one channel decides."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffprobe.backbones.vae import VaeDecoder
from diffprobe.core.errors import ConfigError, StoreMismatch, UnknownName
from diffprobe.core.result import read_result
from diffprobe.evaluation import steering
from diffprobe.evaluation.factor_edits import DIRECTION, LATENT, NEURON, RANDOM, REPLACE
from diffprobe.evaluation.page_features import open_features
from diffprobe.evaluation.steered_model import SteeredModel
from diffprobe.evaluation.steering import EMBEDDING, PROMPT, evaluate_steering
from diffprobe.evaluation.steering_settings import SteeringEvaluation
from diffprobe.evaluation.steering_tables import TABLE_FILE, TABLES_FILE
from tests.evaluation.page_runs import SPATIAL, trainer
from tests.evaluation.stub_reader import StubReader

METHODS = {LATENT, RANDOM, DIRECTION, NEURON, REPLACE, PROMPT, EMBEDDING}


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image has one colour, the means of its latents' first channels; style of the tiny set passes for texture."""

    def decode(latents: torch.Tensor) -> torch.Tensor:
        shown = (0.5 + 0.2 * latents[:, :3].mean((2, 3))).clamp(0, 1)
        return shown[:, :, None, None].expand(-1, -1, 32, 32)

    def renamed(run):
        found = open_features(run)
        kept = found.table

        def table(split):
            one = kept(split)
            return replace(one, attributes={"texture": one.attributes["style"]})

        return replace(found, table=table, attributes={"texture": ("plain", "striped")})

    monkeypatch.setattr(VaeDecoder, "from_folder", lambda folder: decode)
    monkeypatch.setattr(steering, "load_reader", lambda *_: StubReader())
    monkeypatch.setattr(steering, "open_features", renamed)


@pytest.fixture(scope="module")
def run(tiny_sd, tiny_shards, tmp_path_factory) -> Path:
    return trainer(tiny_sd, tiny_shards, tmp_path_factory.mktemp("steering"))(*SPATIAL)


@pytest.fixture
def config(run, tiny_sd, tmp_path) -> SteeringEvaluation:
    return SteeringEvaluation(
        experiment="test/steering", run=str(run), model=str(tiny_sd), ends={"texture": ("striped", "plain")},
        n_images=24, strengths=(1.0, 8.0), replace_strengths=(1.0,), text_strengths=(1.0,), n_random=1, n_bank=100,
        sampling_steps=2, neighbours=1, n_resamples=20, n_candidates=2, output=str(tmp_path),
    )  # fmt: skip


@pytest.mark.slow
def test_methods_are_compared_on_the_same_images(config, monkeypatch):
    path = evaluate_steering(config)
    metrics = read_result(path).metrics
    assert {one.probe for one in metrics} == METHODS
    untouched = [one for one in metrics if one.name == "success" and one.detail["strength"] == 0]
    assert len(untouched) == len(METHODS) and len({one.value for one in untouched}) == 1
    assert all(one.value == 0 for one in metrics if one.name == "collateral" and one.detail["strength"] == 0)
    matched = {one.probe: one for one in metrics if one.name == "matched_success"}
    assert set(matched) == METHODS and "minus_prompt_edit" not in matched[PROMPT].detail
    assert all(one.detail["collateral"] == matched[PROMPT].detail["collateral"] for one in matched.values())
    points = [one for one in metrics if one.name == "distance" and one.probe == DIRECTION]
    assert len(points) == 3 and all(one.value > 0 for one in points)
    assert "best latent" in path.with_name(TABLES_FILE).read_text("utf-8")
    assert path.with_name(TABLE_FILE).read_text("utf-8").count("\n") == len(metrics) + 1

    def drawn(*_):
        raise AssertionError("finished latents are kept")

    monkeypatch.setattr(SteeredModel, "latents", drawn)
    monkeypatch.setattr(SteeredModel, "of_texts", drawn)
    assert read_result(evaluate_steering(config)).metrics == metrics


@pytest.mark.slow
def test_what_does_not_fit_is_refused(config):
    with pytest.raises(UnknownName, match="spotted"):
        evaluate_steering(replace(config, ends={"texture": ("spotted", "plain")}))
    with pytest.raises(UnknownName, match="colour"):
        evaluate_steering(replace(config, ends={"colour": ("red", "blue")}))
    with pytest.raises(StoreMismatch, match="another model"):
        evaluate_steering(replace(config, model="emoji-sd"))
    with pytest.raises(ConfigError, match="no sampling step"):
        evaluate_steering(replace(config, window=(1, 2)))


@pytest.mark.slow
def test_an_interrupted_comparison_continues_after_the_strengths_that_were_drawn(config, monkeypatch):
    drawn, kept = [], SteeredModel.latents

    def stopping(self, edit, strengths):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append((edit.identity, tuple(strengths)))
        return kept(self, edit, strengths)

    monkeypatch.setattr(SteeredModel, "latents", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate_steering(config)
    first, again = list(drawn), []

    def counted(self, edit, strengths):
        again.append((edit.identity, tuple(strengths)))
        return kept(self, edit, strengths)

    monkeypatch.setattr(SteeredModel, "latents", counted)
    evaluate_steering(config)
    # two latents and two neurons are tried; then the best of each, a random latent and the direction; replace once
    assert len(again) + len(first) == 4 * 2 + 4 * 2 + 1 and again[0] not in first


@pytest.mark.slow
def test_the_choice_sees_no_scored_image(config, monkeypatch):
    seeds, kept = [], SteeredModel.__init__

    def seen(self, *args, **kwargs):
        seeds.append(kwargs["seed"])
        kept(self, *args, **kwargs)

    monkeypatch.setattr(SteeredModel, "__init__", seen)
    result = read_result(evaluate_steering(replace(config, choice_seed=7)))
    assert seeds == [7, 0] and result.seeds["choice"] == 7
    chosen = {one.probe: one.detail["chosen"] for one in result.metrics if one.name == "matched_success"}
    assert "of 2 by 24 images of seed 7" in chosen[LATENT] and "seed 7" in chosen[NEURON]
    assert "seed" not in chosen[DIRECTION]
    seeds.clear()
    alone = read_result(evaluate_steering(replace(config, n_candidates=1)))
    assert seeds == [0] and "choice" not in alone.seeds


def test_two_runs_of_one_cell_are_refused(config):
    with pytest.raises(ConfigError, match="one cell"):
        evaluate_steering(replace(config, more_runs=(config.run,)))


@pytest.mark.slow
def test_each_method_has_the_cell_that_is_best_for_it(config, tiny_sd, tiny_shards, tmp_path):
    other = trainer(tiny_sd, tiny_shards, tmp_path / "other")(
        *SPATIAL, "features.taps=[up_blocks.0]", "probe.cell=up_blocks.0@t20"
    )
    result = read_result(evaluate_steering(replace(config, more_runs=(str(other),), n_candidates=1)))
    cells = {one.probe: one.cell for one in result.metrics}
    assert set(cells) == METHODS and set(cells.values()) <= {"mid_block@t20:empty:none", "up_blocks.0@t20:empty:none"}
    assert cells[RANDOM] == cells[REPLACE] == cells[LATENT]
    chosen = {one.probe: one.detail["chosen"] for one in result.metrics if one.name == "matched_success"}
    for method in (LATENT, DIRECTION, NEURON):
        assert (
            chosen[method].startswith(cells[method].split(":")[0]) and "of 2 by 24 images of seed 1" in chosen[method]
        )
    assert len([name for name in result.artifacts if "up_blocks.0" in name]) == 4
