"""Tables of columns: what they hold, what joins them to samples, and the identity they give a store."""

import json
from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.features.column_table import read_columns
from diffprobe.features.extract import extract
from diffprobe.features.live import LiveFeatures
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request
from diffprobe.features.stored import StoredFeatures

KEYS = [f"tiny/{i:02d}" for i in range(24)]


def write(path: Path, values: dict[str, str], *, column: str = "guess", source: str | None = "zero_shot:m") -> str:
    heading = f"key,split,{column}" + (",source" if source else "")
    lines = [f"{key},train,{value}" + (f",{source}" if source else "") for key, value in values.items()]
    path.write_text("\n".join([heading, *lines]) + "\n")
    return str(path)


@pytest.fixture
def joined(configs, tmp_path):
    """Make configs whose template names the column `guess` of a table."""
    changes = {"features_condition": "template", "features_prompt": "a photo of a {guess}"}
    return lambda table, **other: configs(**{**changes, "features_columns": table, **other})


def test_values_are_joined_by_key(tmp_path):
    table = read_columns(write(tmp_path / "t.csv", {"b": "dog", "a": "cat"}))
    assert table.values("guess", ["a", "c", "b"]) == ["cat", None, "dog"]
    assert table.source_of("guess") == "zero_shot:m"
    assert read_columns(write(tmp_path / "u.csv", {"a": "cat"}, source=None)).source_of("guess") == "table:guess"
    rows = [{"key": "a", "guess": "cat"}, {"key": "b", "guess": None}, {"key": "c", "guess": "  "}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_columns(str(tmp_path / "t.jsonl")).values("guess", ["a", "b", "c"]) == ["cat", None, None]


def test_the_digest_is_of_the_used_values_alone(tmp_path):
    values = {"a": "cat", "b": "dog"}
    first = read_columns(write(tmp_path / "t.csv", values)).digest(["guess"])
    assert read_columns(write(tmp_path / "u.csv", dict(reversed(values.items())))).digest(["guess"]) == first
    (tmp_path / "v.csv").write_text("other,source,guess,key\nx,zero_shot:m,cat,a\ny,zero_shot:m,dog,b\n")
    assert read_columns(str(tmp_path / "v.csv")).digest(["guess"]) == first
    assert read_columns(write(tmp_path / "w.csv", {**values, "b": "cat"})).digest(["guess"]) != first
    assert read_columns(write(tmp_path / "x.csv", values, source="zero_shot:n")).digest(["guess"]) != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,guess\na,cat\n", "no column 'key'.*\n.*id, guess"),
        ("key,split\na,train\n", "no column besides key, split"),
        ("key,guess\na,cat\nb,dog\na,dog\n", "line 4: the key 'a' was already in line 2"),
        ("key,guess\n,cat\n", "line 2: 'key' is ''"),
        ("key,label\na,1\n", "attribute 'label'"),
        ("key,Guess,guess\na,b,c\n", "attribute '[gG]uess'"),
    ],
)
def test_a_table_that_cannot_be_joined_is_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_columns(str(tmp_path / "t.csv"))


def test_values_are_texts_and_files_are_tables(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"key": "a", "guess": 3}')
    with pytest.raises(ConfigError, match="line 1: column 'guess' is '3'"):
        read_columns(str(tmp_path / "t.jsonl"))
    with pytest.raises(ShardError, match="not found"):
        read_columns(str(tmp_path / "none.csv"))


@pytest.mark.slow
def test_a_joined_class_gives_the_features_of_that_class(joined, configs, tmp_path, by_key, assert_same):
    """A table that states the true class names gives the features of the template with {class_name}."""
    from diffprobe.shards.stream import SampleStream

    plain = configs(features_condition="template", features_prompt="a photo of a {class_name}")
    shard_set = Request(*plain).shard_set
    truth = {s.key: s.class_name for split in shard_set.splits() for s in SampleStream(shard_set, split)}
    table = write(tmp_path / "t.csv", truth)
    expected = by_key(LiveFeatures(*plain).batches("val"))
    live = by_key(LiveFeatures(*joined(table)).batches("val"))
    extract(*joined(table), progress=False)
    stored = StoredFeatures(*joined(table))
    assert_same(live, expected)
    assert_same(by_key(stored.loader("val", shuffle=False)), expected)
    other = by_key(LiveFeatures(*joined(write(tmp_path / "u.csv", dict.fromkeys(KEYS, "sun")))).batches("val"))
    cell = next(iter(next(iter(other.values()))[0]))
    assert any(not values[0][cell].allclose(expected[key][0][cell], atol=1e-4) for key, values in other.items())


@pytest.mark.slow
def test_a_store_with_another_table_is_another_store(joined, tmp_path):
    first = joined(write(tmp_path / "t.csv", dict.fromkeys(KEYS, "cat")))
    path = extract(*first, progress=False)
    manifest = FeatureStore.open(path).manifest
    assert manifest.data["columns"] and manifest.recorded["columns"] == {"guess": "zero_shot:m"}
    same = joined(write(tmp_path / "same.csv", dict.fromkeys(reversed(KEYS), "cat")))
    assert Request(*same).manifest.digest == manifest.digest
    other = joined(write(tmp_path / "u.csv", {**dict.fromkeys(KEYS, "cat"), KEYS[3]: "dog"}))
    assert Request(*other).manifest.digest != manifest.digest
    assert extract(*other, progress=False) != path
    assert "columns" not in Request(*joined(None, features_prompt="a {class_name}")).manifest.data


def test_missing_keys_are_refused_and_named(joined, tmp_path, monkeypatch):
    values = dict.fromkeys(KEYS, "cat")
    del values["tiny/05"]
    few = write(tmp_path / "few.csv", values)
    with monkeypatch.context() as patch:
        patch.setattr("diffprobe.backbones.extractor.DiffusionFeatures.from_plan", None)  # must not be reached
        for run in (lambda parts: extract(*parts, progress=False), lambda parts: LiveFeatures(*parts).setup()):
            with pytest.raises(ConfigError, match=r"the guess of 23 samples; 24 are read.*\n.*'tiny/05' in train-"):
                run(joined(few))
    other = write(tmp_path / "other.csv", {**values, "elsewhere": "cat"})
    with pytest.raises(ConfigError, match=r"1 of \d samples have no guess.*\n.*tiny/05"):
        extract(*joined(other), progress=False)
    extract(*joined(few, features_missing="empty"), progress=False)


def test_a_table_without_effect_is_refused(joined, configs, tmp_path):
    table = write(tmp_path / "t.csv", dict.fromkeys(KEYS, "cat"))
    with pytest.raises(ConfigError, match="columns has no effect with condition=empty"):
        configs(features_columns=table)
    with pytest.raises(ConfigError, match="no effect: the condition names class_name.*\n.*guess"):
        _ = Request(*joined(table, features_prompt="a {class_name}")).manifest
    with pytest.raises(ConfigError, match="'style', which is an attribute"):
        _ = Request(*joined(write(tmp_path / "u.csv", dict.fromkeys(KEYS, "cat"), column="style"))).manifest
    with pytest.raises(ConfigError, match="leave_out"):
        _ = Request(*joined(table, features_missing="leave_out")).manifest
