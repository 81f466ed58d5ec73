"""Directions between two prompts, from a tiny run whose captions are known."""

import json

import pytest
import torch
import torch.nn.functional as F

from diffprobe.backbones.caption_encoder import load_caption_encoder
from diffprobe.core.errors import ConfigError, StoreMismatch, WeightsMismatch, WeightsMissing
from diffprobe.core.result import read_result
from diffprobe.evaluation.caption_direction import PROMPTS_FILE, CaptionDirectionConfig, caption_direction
from diffprobe.evaluation.decode import DecodeConfig, decode, run_of
from diffprobe.probes.caption import CaptionRegressor
from diffprobe.probes.direction import Direction
from tests.evaluation.page_runs import trainer

ENDS = {"positive": "noto emoji", "negative": "twemoji emoji"}
CAPTION = ("probe=caption_ridge", "probe.params.vocabulary=30", "probe.params.n_resamples=20", "probe.params.folds=3")
LOOSE = {"min_count": 1, "min_groups": 1, "n_random": 50, "n_permutations": 19, "n_resamples": 20}


@pytest.fixture(scope="module")
def train(tiny_sd, tiny_shards, tmp_path_factory):
    return trainer(tiny_sd, tiny_shards, tmp_path_factory.mktemp("caption"))


@pytest.fixture(scope="module")
def run(train):
    return train(*CAPTION)


@pytest.mark.slow
def test_a_run_gives_a_direction_that_decode_reads(run, tmp_path):
    found = caption_direction(run, CaptionDirectionConfig(**ENDS, contexts=("{}, red round", "{}, blue square")))
    (folder,) = (run / "probes" / "caption").iterdir()
    probe = CaptionRegressor.from_pretrained(folder)
    encode = load_caption_encoder(probe.text_encoder)
    ends = [[f"{end}, {rest}" for rest in ("red round", "blue square")] for end in ("noto emoji", "twemoji emoji")]
    with torch.no_grad():
        above, below = (probe.features_of(encode(end)).mean(0) for end in ends)
    assert float(F.cosine_similarity(found.direction.vector, above - below, dim=0)) == pytest.approx(1, abs=1e-4)
    assert found.folder.parent == run / "probes" / "directions"
    assert json.loads((found.folder / PROMPTS_FILE).read_text())["contexts"] == ["{}, red round", "{}, blue square"]
    assert run_of(found.folder).run == read_result(run / "result.json").run
    store = str(next((run.parents[2] / "stores").iterdir()))
    decoded, _ = decode(found.folder, DecodeConfig(store=store, **LOOSE), output=tmp_path)  # groups: those of the run
    assert decoded.direction.estimator == "caption_regression" and decoded.ranked


def test_the_result_of_a_run(run):
    result = read_result(run / "result.json")
    names = [record.name for record in result.metrics if record.split == "test"]
    assert result.kind == "caption"
    assert names == ["r2", "caption_recall_1", "caption_recall_10", "image_recall_1", "image_recall_10"]
    r2 = result.metrics[0]
    assert set(r2.controls) == {"constant", "shuffled_captions", "bag_of_words"} and r2.target == "caption"
    assert "shuffled_captions" in result.seeds


def test_live_features_give_the_same_result(run, train):
    def records(folder):
        return [(record.name, record.split, record.value) for record in read_result(folder / "result.json").metrics]

    live = train(*CAPTION, "features.source=live")
    for one, other in zip(records(run), records(live), strict=True):
        assert one[:2] == other[:2] and one[2] == pytest.approx(other[2], abs=1e-4)


def test_names_and_cosines(run):
    plain = caption_direction(run, CaptionDirectionConfig(**ENDS, name="style"))
    assert plain.folder.name == "style"
    back = {"positive": ENDS["negative"], "negative": ENDS["positive"]}
    turned = caption_direction(run, CaptionDirectionConfig(**back, compare=(str(plain.folder),)))
    assert turned.cosines == {str(plain.folder): pytest.approx(-1, abs=1e-5)}
    assert turned.random_cosine == pytest.approx(len(plain.direction.vector) ** -0.5)
    again = caption_direction(run, CaptionDirectionConfig(**back))
    assert again.folder == turned.folder != plain.folder


def test_a_direction_of_another_cell_is_not_compared(run, tmp_path):
    facts = {"scale": 1.0, "midpoint": 0.0, "target": "style", "positive": "a", "negative": "b", "estimator": "ridge"}
    other = Direction(vector=torch.ones(3), cell="mid_block@t999:empty:mean", **facts).save(tmp_path / "cell")
    with pytest.raises(StoreMismatch, match="t999"):
        caption_direction(run, CaptionDirectionConfig(**ENDS, compare=(str(other),)))


def test_another_text_encoder_is_refused(run):
    with pytest.raises(WeightsMismatch, match="'emoji-sd'"):
        caption_direction(run, CaptionDirectionConfig(**ENDS, text_encoder="emoji-sd"))


def test_a_folder_without_a_map_and_a_map_from_features_are_refused(train, tmp_path):
    with pytest.raises(WeightsMissing, match="probe.json"):
        caption_direction(tmp_path, CaptionDirectionConfig(**ENDS))
    run = train("probe=caption_contrastive", *CAPTION[1:3])
    with pytest.raises(ConfigError, match="contrastive"):
        caption_direction(run, CaptionDirectionConfig(**ENDS))


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({}, "both ends"),
        ({"positive": "a", "negative": "a"}, "'a'"),
        ({**ENDS, "contexts": ("no slot",)}, "'no slot'"),
        ({**ENDS, "name": "../up"}, "'../up'"),
        ({**ENDS, "name": ".."}, r"'\.\.'"),
    ],
)
def test_settings_are_checked(settings, fact):
    with pytest.raises(ConfigError, match=fact):
        CaptionDirectionConfig(**settings)
