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
from diffprobe.evaluation.steering import EMBEDDING, PROMPT, EditTexts, evaluate_steering
from diffprobe.evaluation.steering_settings import SteeringEvaluation
from diffprobe.evaluation.steering_tables import TABLE_FILE, TABLES_FILE
from diffprobe.shards.scenes.captions import parse
from tests.evaluation.page_runs import SPATIAL, trainer
from tests.evaluation.stub_reader import SPEC, StubReader

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
        sampling_steps=2, neighbours=1, n_resamples=20, output=str(tmp_path),
    )  # fmt: skip


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


def test_texts_state_the_value_and_nothing_else():
    texts = EditTexts.of(SPEC, "texture", "striped", "plain")
    assert len(texts.plain) == len(SPEC.roles)
    for plain, positive, negative in zip(texts.plain, texts.positive, texts.negative, strict=True):
        role = parse(SPEC, plain)
        assert set(role) == {"role"}
        assert parse(SPEC, positive) == {**role, "texture": "striped"}
        assert parse(SPEC, negative) == {**role, "texture": "plain"}
    (edited,) = texts.edited(1, 0.5)
    assert (edited.text, edited.towards, edited.away) == (texts.plain[0], texts.positive[0], texts.negative[0])
    assert [one.text for one in texts.edited(30, 1.0)] == [*texts.plain, *texts.plain[:6]]


@pytest.mark.parametrize("factor", ["role", "side", "build"])
def test_a_factor_that_no_caption_states_by_itself_is_refused(factor):
    one, other = SPEC.names(factor)[:2]
    with pytest.raises(ConfigError, match=rf"'{factor}' by itself.*\n.*texture"):
        EditTexts.of(SPEC, factor, one, other)


def test_what_does_not_fit_is_refused(config):
    with pytest.raises(UnknownName, match="spotted"):
        evaluate_steering(replace(config, ends={"texture": ("spotted", "plain")}))
    with pytest.raises(UnknownName, match="colour"):
        evaluate_steering(replace(config, ends={"colour": ("red", "blue")}))
    with pytest.raises(StoreMismatch, match="another model"):
        evaluate_steering(replace(config, model="emoji-sd"))
    with pytest.raises(ConfigError, match="no sampling step"):
        evaluate_steering(replace(config, window=(1, 2)))
