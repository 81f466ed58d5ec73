"""Directions in words, from a tiny store whose captions are known."""

import csv
import json
import shutil

import pytest
import torch

from diffprobe.analysis.phrase_ranking import phrases_of
from diffprobe.core.errors import ConfigError, SplitLeak, StoreMismatch, UnknownName
from diffprobe.core.result import read_result
from diffprobe.evaluation.decode import PHRASES_FILE, WORDS_FILE, DecodeConfig, decode, run_of
from diffprobe.features.reader import FeatureStore
from diffprobe.probes.direction import Direction
from tests.evaluation.page_runs import DIRECTION, trainer

LOOSE = {"min_count": 1, "min_groups": 1, "n_random": 50, "n_permutations": 19, "n_resamples": 20, "terms": 0}
WORDS = {**LOOSE, "terms": 2, "folds": 3, "n_controls": 19}


@pytest.fixture(scope="module")
def run(tiny_sd, tiny_shards, tmp_path_factory):
    return trainer(tiny_sd, tiny_shards, tmp_path_factory.mktemp("decode"))(*DIRECTION)


@pytest.fixture
def saved(run):
    return next((run / "probes").rglob("probe.json")).parent


@pytest.fixture
def store(run):
    return str(next((run.parents[2] / "stores").iterdir()))


def test_phrases_of_the_captions_are_ranked_and_written(saved, store, tmp_path):
    config = DecodeConfig(store=store, group_by="sample", **LOOSE)
    decoded, path = decode(saved, config, output=tmp_path)
    table = FeatureStore.open(store).load("test")
    known = {phrase for caption in table.captions for phrase in phrases_of(caption)}
    assert decoded.ranked and {one.phrase for one in decoded.ranked} <= known
    assert [one.score for one in decoded.ranked] == sorted((one.score for one in decoded.ranked), reverse=True)
    (record,) = read_result(path).metrics
    assert (record.name, record.target, record.cell) == ("phrases_found", "style", decoded.direction.cell)
    assert [row["phrase"] for row in record.detail["phrases"]] == [one.phrase for one in decoded.ranked]
    with path.with_name(PHRASES_FILE).open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(decoded.ranked)
    again, other = decode(saved, config, output=tmp_path)
    assert again.ranked == decoded.ranked and other == path


def test_a_bank_of_phrases(saved, store, tmp_path):
    every, _ = decode(saved, DecodeConfig(store=store, group_by="sample", **LOOSE), output=tmp_path)
    first = every.ranked[0]
    bank = tmp_path / "bank.txt"
    bank.write_text(f"{first.phrase}\nnever seen\n", encoding="utf-8")
    decoded, _ = decode(saved, DecodeConfig(store=store, bank=str(bank), group_by="sample", **LOOSE), output=tmp_path)
    assert [(one.phrase, one.score) for one in decoded.ranked] == [(first.phrase, first.score)]
    assert decoded.left_out == ("never seen",)
    with pytest.raises(ConfigError, match="max_words=2"):
        DecodeConfig(store=store, bank=str(bank), max_words=2)
    bank.write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no phrase"):
        decode(saved, DecodeConfig(store=store, bank=str(bank), group_by="sample"), output=tmp_path)


def test_another_backbone_cell_or_split_is_refused(run, saved, store, tmp_path):
    config = DecodeConfig(store=store, group_by="sample", **LOOSE)
    with pytest.raises(SplitLeak, match="'train'"):
        decode(saved, DecodeConfig(store=store, split="train", group_by="sample", **LOOSE), output=tmp_path)
    with pytest.raises(UnknownName, match="'tset'"):
        decode(saved, DecodeConfig(store=store, split="tset", **LOOSE), output=tmp_path)
    with pytest.raises(UnknownName, match="'familly'"):
        decode(saved, DecodeConfig(store=store, group_by="familly", **LOOSE), output=tmp_path)
    direction = Direction.load(saved)
    facts = {
        "scale": 1.0,
        "midpoint": 0.0,
        "target": "style",
        "positive": "noto",
        "negative": "x",
        "estimator": "ridge",
    }
    other = Direction(vector=direction.vector, cell="mid_block@t999:empty:mean", **facts).save(tmp_path / "cell")
    with pytest.raises(StoreMismatch, match="t999"):
        decode(other, config, output=tmp_path)
    narrow = Direction(vector=torch.ones(3), cell=direction.cell, **facts).save(tmp_path / "narrow")
    with pytest.raises(StoreMismatch, match="3 numbers"):
        decode(narrow, config, output=tmp_path)
    from diffprobe.core.result import BACKBONE, write_result

    foreign = tmp_path / "run"
    shutil.copytree(run, foreign)
    result = read_result(foreign / "result.json")
    result.artifacts[BACKBONE] = "0" * 64
    write_result(result, foreign / "result.json")
    with pytest.raises(StoreMismatch, match="another backbone"):
        decode(foreign / saved.relative_to(run), config, output=tmp_path)


def test_a_direction_without_a_run_needs_its_groups_named(saved, store, tmp_path):
    alone = Direction.load(saved).save(tmp_path / "alone")
    assert run_of(alone) is None and run_of(saved) is not None
    with pytest.raises(ConfigError, match="group_by"):
        decode(alone, DecodeConfig(store=store, **LOOSE), output=tmp_path)
    decoded, path = decode(alone, DecodeConfig(store=store, group_by="sample", **LOOSE), output=tmp_path)
    assert "not recorded" in decoded.notes[0]
    assert json.loads(path.read_text())["metrics"][0]["detail"]["notes"] == list(decoded.notes)


def test_the_text_encoder_ranks_the_captions_alone(tiny_sd, saved, store, tmp_path):
    config = DecodeConfig(store=store, text_encoder=str(tiny_sd), group_by="sample", **LOOSE)
    decoded, _ = decode(saved, config, output=tmp_path)
    assert all(one.text_score is not None for one in decoded.ranked)


def test_the_direction_is_a_sum_of_words_beside_its_text(tiny_sd, saved, store, tmp_path):
    saved = Direction.load(saved).save(tmp_path / "alone")  # the test split is too small for folds
    config = DecodeConfig(store=store, split="train", text_encoder=str(tiny_sd), group_by="sample", **WORDS)
    decoded, path = decode(saved, config, output=tmp_path)
    assert len(decoded.notes) == 1, decoded.notes
    _, *records = read_result(path).metrics
    assert [record.name for record in records] == ["words_cosine", "text_words_cosine"]
    shown = []
    for record, words, space in zip(records, (decoded.words, decoded.text_words), ("features", "text"), strict=True):
        assert words is not None and len(words.path) == 2 and words.n_folds == 3
        assert record.value == words.cosine and record.controls["random_direction"] == words.random.mean
        nulls = record.detail["control_nulls"]
        assert nulls["shuffled_captions"]["n"] == 19 and nulls["random_direction"]["p"] == words.random.p
        assert [term["phrase"] for term in record.detail["terms"]] == [term.phrase for term in words.terms]
        shown += [(space, term.phrase) for term in words.terms]
    with path.with_name(WORDS_FILE).open(encoding="utf-8") as file:
        assert [(row["space"], row["phrase"]) for row in csv.DictReader(file)] == shown
    again, _ = decode(saved, config, output=tmp_path)
    assert again.words.terms == decoded.words.terms and again.words.cosine == decoded.words.cosine


def test_without_terms_or_words_there_is_no_sum(saved, store, tmp_path):
    alone, path = decode(saved, DecodeConfig(store=store, group_by="sample", **LOOSE), output=tmp_path)
    assert alone.words is None and not alone.notes and not path.with_name(WORDS_FILE).exists()
    few, path = decode(saved, DecodeConfig(store=store, group_by="sample", **{**WORDS, "folds": 99}), output=tmp_path)
    assert few.words is None and "not written as a sum" in few.notes[0]
    assert few.ranked == alone.ranked and len(read_result(path).metrics) == 1


def test_settings():
    with pytest.raises(ConfigError, match="store"):
        DecodeConfig()
    with pytest.raises(ConfigError, match="n_random"):
        DecodeConfig(store="a", n_random=5)
    for settings, fact in (
        ({"terms": -1}, "terms"), ({"folds": 2}, "folds"), ({"n_controls": 5}, "n_controls"),
        ({"terms": 0, "folds": 4}, "folds=4"), ({"terms": 0, "n_controls": 99}, "n_controls=99"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=fact):
            DecodeConfig(store="a", **settings)
