"""Directions from prompts on real images: AUROC against sklearn's, intervals over groups, baselines, refusals."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from diffprobe.core.errors import ConfigError, EmptyClass, StoreMismatch, UnknownName
from diffprobe.core.result import read_result
from diffprobe.evaluation.direction_on_images import BASELINES, ImageSettings, score_on_images
from diffprobe.evaluation.prompt_directions import PromptDirectionConfig, make_directions
from diffprobe.features.reader import FeatureStore
from diffprobe.probes.direction.base import Direction
from tests.evaluation.prompt_stores import CELLS, DIRECTION, write_image_store, write_prompt_store

CELL, REREAD, _ = CELLS
LATENTS, PIXELS = BASELINES


def direction(vector=DIRECTION, cell=CELL, **changed):
    values = {"target": "texture", "positive": "striped", "negative": "plain", **changed}
    return Direction(
        vector=torch.from_numpy(np.asarray(vector)).float(),
        scale=1.0,
        midpoint=0.0,
        cell=cell,
        estimator="toy",
        **values,
    )


def settings(*folders, **changed):
    return ImageSettings(
        stores=tuple(map(FeatureStore.open, folders)), **{"n_resamples": 100, "n_random": 99, **changed}
    )


def test_auroc_is_that_of_sklearn_and_its_controls_are_of_the_same_images(tmp_path):
    images = write_image_store(tmp_path / "a", noise=1.0)
    controls = write_image_store(tmp_path / "b", cells=[LATENTS, PIXELS], noise=4.0, reverse=True)
    made = [direction(), direction(cell=LATENTS), direction(cell=PIXELS)]
    own, *_ = score_on_images(made, settings(images, controls, group_by="family"))
    table = FeatureStore.open(images).load("test", [CELL])
    scores = table.features[CELL].numpy() @ DIRECTION
    positive = table.attributes["texture"].numpy() == 1
    assert own.value == pytest.approx(roc_auc_score(positive, scores)) and own.n == 40
    other = FeatureStore.open(controls).load("test", [LATENTS])
    expected = roc_auc_score(other.attributes["texture"].numpy() == 1, other.features[LATENTS].numpy() @ DIRECTION)
    assert own.controls["vae_latents"] == pytest.approx(expected) == own.controls["raw_pixels"]
    estimate, low, high = own.detail["differences"]["vae_latents"]
    assert estimate == pytest.approx(own.value - expected) and low < estimate < high
    assert own.detail["groups"] == 10 and own.detail["p_random_direction"] == own.detail["smallest_p"] == 0.01
    assert own.controls["random_direction"] == pytest.approx(0.5, abs=0.1)
    alone, *_ = score_on_images(made, settings(images, controls))
    assert alone.detail["groups"] == 40 and alone.value == own.value


def test_the_captions_of_the_images_are_a_baseline(tmp_path):
    images, said = write_image_store(tmp_path), []

    def text(captions):
        return np.array([float(len(caption)) for caption in captions])

    (record,) = score_on_images([direction()], settings(images), text=text, announce=said.append)
    table = FeatureStore.open(images).load("test", [CELL])
    expected = roc_auc_score(table.attributes["texture"].numpy() == 1, text(table.captions))
    assert record.controls["text_encoder"] == pytest.approx(expected)
    assert record.detail["differences"]["text_encoder"][0] == pytest.approx(record.value - expected) and not said


def test_images_without_captions_have_no_such_baseline(tmp_path):
    images, said = write_image_store(tmp_path, captions=False), []
    (record,) = score_on_images([direction()], settings(images), text=lambda captions: 1 / 0, announce=said.append)
    assert "text_encoder" not in record.controls and "no captions" in said[0]


def test_neither_the_order_of_images_nor_that_of_stores_counts(tmp_path):
    forwards, backwards = (write_image_store(tmp_path / name, reverse=name == "b") for name in "ab")
    other = write_image_store(tmp_path / "c", cells=["mid_block@t500:empty:mean"])
    found = [
        score_on_images([direction()], settings(*folders, group_by="family"))
        for folders in ((forwards, other), (other, forwards), (backwards,))
    ]
    assert found[0] == found[1] == found[2]


def test_the_turned_direction_has_the_other_side(tmp_path):
    images = write_image_store(tmp_path)
    (one,) = score_on_images([direction()], settings(images))
    (turned,) = score_on_images([direction(-DIRECTION)], settings(images))
    assert turned.value == pytest.approx(1 - one.value) and turned.detail["p_random_direction"] == 1.0


def test_directions_of_a_store_are_scored_where_images_are_given(tmp_path):
    prompts, images = write_prompt_store(tmp_path / "p"), write_image_store(tmp_path / "i", cells=[REREAD])
    said: list[str] = []
    ends = {"target": "texture", "positive": "striped", "negative": "plain"}
    config = PromptDirectionConfig(**ends, images=(str(images),), group_by="family", n_resamples=50, n_random=19)
    result = read_result(make_directions(prompts, config, output=tmp_path, announce=said.append))
    (record,) = [record for record in result.metrics if record.name == "auroc"]
    assert record.cell == REREAD and record.split == "test" and record.value > 0.7
    assert [line for line in said if CELL in line and "images" in line]
    assert FeatureStore.open(images).manifest.digest in result.artifacts.values()


def test_a_text_encoder_reads_the_captions_of_the_images(tiny_sd, tmp_path):
    prompts, images = write_prompt_store(tmp_path / "p"), write_image_store(tmp_path / "i", cells=[REREAD])
    config = PromptDirectionConfig(
        target="texture", positive="striped", negative="plain", images=(str(images),), n_resamples=50, n_random=19,
        text_encoder=str(tiny_sd),
    )  # fmt: skip
    (record,) = [one for one in read_result(make_directions(prompts, config, output=tmp_path)).metrics
                 if one.name == "auroc"]  # fmt: skip
    # two thirds of the striped images say so, the others have the caption of plain ones
    assert record.controls["text_encoder"] == pytest.approx(1 - 7 / 20 / 2)


@pytest.mark.parametrize(
    ("changed", "error", "facts"),
    [
        ({"image_split": "val"}, UnknownName, "val"),
        ({"group_by": "familie"}, UnknownName, "family"),
        ({"positive": "dotted"}, UnknownName, "dotted"),
        ({"images": ()}, ConfigError, "group_by"),
    ],
)
def test_bad_settings_are_named(tmp_path, changed, error, facts):
    prompts, images = write_prompt_store(tmp_path / "p"), write_image_store(tmp_path / "i")
    given = {"target": "texture", "positive": "striped", "negative": "plain", "images": (str(images),),
             "group_by": "family", **changed}  # fmt: skip
    with pytest.raises(error, match=facts):
        make_directions(prompts, PromptDirectionConfig(**given), output=tmp_path)


def test_what_cannot_be_compared_is_refused(tmp_path):
    images = write_image_store(tmp_path / "a")
    with pytest.raises(ConfigError, match="mid_block@t7"):
        score_on_images([direction(cell="mid_block@t7:empty:mean")], settings(images))
    with pytest.raises(ConfigError, match=r"3 values.* 8"):
        score_on_images([direction(np.eye(3)[0])], settings(images))
    with pytest.raises(StoreMismatch, match="36 and 40"):
        fewer = write_image_store(tmp_path / "b", cells=[LATENTS], n=36)
        score_on_images([direction(), direction(cell=LATENTS)], settings(images, fewer))
    with pytest.raises(StoreMismatch, match="another backbone"):
        random = write_image_store(tmp_path / "c", weights="random")
        config = PromptDirectionConfig(target="texture", positive="striped", negative="plain", images=(str(random),))
        make_directions(write_prompt_store(tmp_path / "p"), config, output=tmp_path)
    with pytest.raises(EmptyClass, match="plain"):
        one_end = write_image_store(tmp_path / "d", n=1)
        score_on_images([direction(positive="plain", negative="striped")], settings(one_end))
