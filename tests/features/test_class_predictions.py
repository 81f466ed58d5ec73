"""Predicted classes of a shard set: equal to a plain loop over the images, and counted per split."""

import csv
import json
from pathlib import Path

import pytest

from diffprobe.backbones.zero_shot import load_zero_shot
from diffprobe.config.compose import load_run
from diffprobe.core.errors import ConfigError, SampleError, UnknownName
from diffprobe.features.class_predictions import COLUMN, predict_classes
from diffprobe.features.column_table import read_columns
from diffprobe.shards.index import ShardSet
from diffprobe.shards.stream import SampleStream

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shard_set(tiny_shards):
    return ShardSet.load(tiny_shards)


@pytest.fixture(scope="module")
def model(tiny_clip, shard_set):
    return load_zero_shot(str(tiny_clip), shard_set.classes, templates=["noto emoji, {class_name}"], device="cpu")


def test_the_table_is_a_plain_loop_over_the_samples(shard_set, model, tmp_path):
    counts = predict_classes(shard_set, model, tmp_path / "p.csv", batch_size=5)
    table = read_columns(str(tmp_path / "p.csv"))
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and {row["source"] for row in rows} == {model.source}
    assert table.source_of("predicted_class") == model.source
    for split in shard_set.splits():
        samples = list(SampleStream(shard_set, split))
        expected = {s.key: shard_set.classes[int(model.similarities([s.image]).argmax())] for s in samples}
        assert {row["key"]: row["predicted_class"] for row in rows if row["split"] == split} == expected
        n_correct = sum(expected[s.key] == s.class_name for s in samples)
        assert (counts[split].n, counts[split].n_correct) == (len(samples), n_correct)
        assert counts[split].accuracy == n_correct / len(samples)
    assert len({row["predicted_class"] for row in rows}) > 1  # else the comparison would show nothing


def test_neither_batches_nor_the_order_of_splits_change_the_predictions(shard_set, model, tmp_path):
    predict_classes(shard_set, model, tmp_path / "a.csv", batch_size=3)
    predict_classes(shard_set, model, tmp_path / "b.csv", batch_size=24)
    predict_classes(shard_set, model, tmp_path / "c.csv", splits=["test", "val", "train"])
    first = (tmp_path / "a.csv").read_bytes()
    assert (tmp_path / "b.csv").read_bytes() == first
    found = [read_columns(str(tmp_path / f"{name}.csv")).digest(["predicted_class"]) for name in "abc"]
    assert len(set(found)) == 1
    record = json.loads((tmp_path / "a.csv.json").read_text())
    assert record["splits"]["val"]["n"] == 4 and record["templates"] == list(model.templates)


def test_faulty_samples_are_refused_or_left_out(broken_shards, model, tmp_path):
    root, bad = broken_shards
    broken = ShardSet.load(root)
    with pytest.raises(SampleError, match=bad):
        predict_classes(broken, model, tmp_path / "p.csv", splits=["train"])
    assert not (tmp_path / "p.csv").exists()
    counts = predict_classes(broken, model, tmp_path / "p.csv", splits=["train"], on_error="skip")
    assert (counts["train"].n, counts["train"].n_skipped) == (15, 1)
    assert bad not in (tmp_path / "p.csv").read_text()


def test_a_table_is_never_replaced(shard_set, model, tmp_path):
    (tmp_path / "p.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"p\.csv' exists"):
        predict_classes(shard_set, model, tmp_path / "p.csv")
    with pytest.raises(ConfigError, match=r"does not end in \.csv"):
        predict_classes(shard_set, model, tmp_path / "p.txt")
    with pytest.raises(ConfigError, match="batch_size=0"):
        predict_classes(shard_set, model, tmp_path / "q.csv", batch_size=0)
    with pytest.raises(UnknownName, match="'tset'"):
        predict_classes(shard_set, model, tmp_path / "q.csv", splits=["tset"])


@pytest.mark.parametrize(
    ("preset", "tail"),
    [("pets", "a type of pet"), ("caltech101", "an object"), ("aircraft", "an aircraft"), ("dtd", "a texture")],
)
def test_the_presets_of_revelio_name_the_predicted_class(preset, tail):
    features = load_run(None, [f"features=revelio_{preset}"]).features
    assert features.prompt == f"A photo of a {{{COLUMN}}}, {tail}."
    assert features.condition == "template" and features.columns is not None
    text = (ROOT / "configs" / "features" / f"revelio_{preset}.yaml").read_text()
    assert f"--template '{features.prompt.replace(COLUMN, 'class_name')}' --out {features.columns}" in text
