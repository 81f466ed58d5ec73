"""Readers of one attribute of images, and their confusion."""

import numpy as np
import pytest
import torch

from diffprobe.analysis.audit.spec import Axis
from diffprobe.backbones.cell import Cell
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, UnknownName, WeightsMismatch
from diffprobe.core.result import RESULT_FILE, MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.image_readers import open_latent_readers, open_scene_readers
from diffprobe.evaluation.rate_images import rendered_images
from diffprobe.generative.scene_reader import WEIGHTS_FILE, find_reader
from diffprobe.shards.scenes.world import SHIPPED, load_world

TEXTURE = Axis(name="texture", positive=("striped",), negative=("plain",))
GROUP = Axis(name="shape", positive=("round",), negative=("square",))
CELL = Cell.parse("mid_block@t200:empty:mean")


def write_rates(folder, counts, *, digest=None, factor="texture"):
    record = MetricRecord(name="sensitivity", value=0.9, split="generated", n=10, target=factor,
                          detail={"confusion": counts})  # fmt: skip
    artifacts = {"input/reader": digest or digest_file(find_reader("scenes-reader") / WEIGHTS_FILE)}
    result = make_result(run="r", experiment="e", kind="rates_eval", config={}, seeds={}, metrics=[record],
                         started_at=StartTime(0.0, 0.0), artifacts=artifacts)  # fmt: skip
    folder.mkdir(exist_ok=True)
    write_result(result, folder / RESULT_FILE)
    return str(folder)


def scene(**changes):
    settings = {"confusion": None, "resolution": 64, "seed": 0}
    return open_scene_readers("scenes-reader", {"texture": (TEXTURE, "texture")}, **{**settings, **changes})


def test_a_scene_reader_reads_the_ends_of_an_axis(tmp_path):
    confusion = write_rates(tmp_path / "rates", [[45, 5], [2, 48]])
    opened = scene(confusion=confusion)
    reader = opened.of_axis["texture"]
    assert reader.confusion.tolist() == [[45, 5], [2, 48]] and "rates" in reader.validated_on
    assert set(opened.inputs) == {"input/reader", "input/confusion"} and reader.needs_images
    spec = load_world(SHIPPED)
    for one in rendered_images(spec, 3, 2, world="planted", resolution=64)[:4]:
        found = reader.read(torch.zeros(2, 4, 8, 8), one.images)
        assert found.tolist() == one.truth.factors["texture"].tolist()
    turned = Axis(name="texture", positive=("plain",), negative=("striped",))
    other = open_scene_readers("scenes-reader", {"texture": (turned, "texture")}, confusion=confusion, resolution=64,
                               seed=0).of_axis["texture"]  # fmt: skip
    assert other.confusion.tolist() == [[48, 2], [5, 45]]
    assert (other.read(torch.zeros(2, 4, 8, 8), one.images) == 1 - found).all()


@pytest.mark.slow
def test_without_labels_the_confusion_is_that_on_rendered_images():
    reader = scene().of_axis["texture"]
    assert reader.confusion.sum() == 24 * 20 and "rendered" in reader.validated_on
    assert np.trace(reader.confusion) / reader.confusion.sum() > 0.95


def test_wrong_scene_readers_are_refused(tmp_path):
    with pytest.raises(WeightsMismatch, match="32 pixels"):
        scene(resolution=32)
    with pytest.raises(UnknownName, match="texture"):
        open_scene_readers("scenes-reader", {"texture": (TEXTURE, "textur")}, confusion=None, resolution=64, seed=0)
    with pytest.raises(ConfigError, match="dotted"):
        dotted = Axis(name="texture", positive=("dotted",), negative=("plain",))
        open_scene_readers("scenes-reader", {"texture": (dotted, "texture")}, confusion=None, resolution=64, seed=0)
    with pytest.raises(ConfigError, match="another reader"):
        scene(confusion=write_rates(tmp_path / "a", [[5, 1], [1, 5]], digest="x"))
    with pytest.raises(ConfigError, match="no confusion of 'texture'"):
        scene(confusion=write_rates(tmp_path / "b", [[5, 1], [1, 5]], factor="colour"))


@pytest.mark.slow
def test_a_classifier_of_latents_is_fitted_to_labelled_images(tiny_sd, tiny_shards):
    axes = {"shape": (GROUP, "group")}
    opened = open_latent_readers(str(tiny_shards), axes, generator=str(tiny_sd), cell=CELL)
    reader = opened.of_axis["shape"]
    assert reader.confusion.sum() == 4 and (reader.confusion.sum(1) == 2).all() and not reader.needs_images
    assert "16 images" in reader.name and "4 test images" in reader.validated_on
    again = open_latent_readers(str(tiny_shards), axes, generator=str(tiny_sd), cell=CELL)
    latents = torch.randn(5, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (reader.read(latents, None) == again.of_axis["shape"].read(latents, None)).all()


def test_attributes_and_words_have_to_be_those_of_the_data(tiny_sd, tiny_shards):
    with pytest.raises(UnknownName, match="group"):
        open_latent_readers(str(tiny_shards), {"shape": (GROUP, "gruop")}, generator=str(tiny_sd), cell=CELL)
    with pytest.raises(ConfigError, match="round, square: not a value of 'style'"):
        open_latent_readers(str(tiny_shards), {"shape": (GROUP, "style")}, generator=str(tiny_sd), cell=CELL)
