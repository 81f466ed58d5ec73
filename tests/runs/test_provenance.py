"""One name for one backbone, whatever its folder is called and whatever is read from it."""

import shutil

import pytest

from diffprobe.backbones.families import sd_unet
from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import SplitLeak, UnknownName
from diffprobe.runs.extract import extract_run
from diffprobe.runs.provenance import backbone_digest, checkpoint_digest, inputs_of, require_no_leak
from diffprobe.runs.train import make_source
from diffprobe.shards.index import ShardSet, build_index
from tests.backbones.plans import plan_for


def digest_of(path, taps=("mid_block",), timesteps=(20,), **options):
    return backbone_digest(plan_for(str(path), taps=taps, timesteps=timesteps, **options).fingerprint)


def test_a_backbone_is_named_by_its_content(tiny_sd, tmp_path):
    name = checkpoint_digest(str(tiny_sd))
    assert digest_of(tiny_sd) == digest_of(tiny_sd, ["up_blocks.0"], [500], seed=3, condition="caption") == name
    shutil.copytree(tiny_sd, tmp_path / "copy")
    assert checkpoint_digest(str(tmp_path / "copy")) == name
    others = [checkpoint_digest(str(sd_unet.tiny(tmp_path / "other", seed=1)))]
    others += [digest_of(tiny_sd, random_weights=True, random_seed=seed) for seed in (0, 1)]
    others += [digest_of(tiny_sd, clean_input=True), digest_of("pixels", ["pixels"], [0])]
    assert len({name, *others}) == 6


@pytest.mark.parametrize("begin", [make_source, extract_run])
def test_a_split_that_is_not_there_is_named_by_its_key(run, begin):
    words = "unknown data.val_split of 'tiny': 'dev'.\n  allowed: test, train, val\n  fix: data.val_split=NAME "
    words += ".*data.val_fraction=0.1.*data build folder DIR --out SHARDS --val 0.1"
    with pytest.raises(UnknownName, match=words):
        begin(run("probe=linear", "data.val_split=dev"))


@pytest.mark.parametrize("source", ["stored", "live"])
def test_features_of_both_sources_rest_on_the_same(run, tiny_sd, source):
    config = run("probe=linear", f"features.source={source}")
    if source == "stored":
        extract_run(config, progress=False)
    opened = make_source(config)
    found = inputs_of(opened)
    assert found["input/shards"] == opened.request.shard_set.digest
    assert found["input/backbone"] == checkpoint_digest(str(tiny_sd))
    assert found.get("input/store") == (opened.store.manifest.digest if source == "stored" else None)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (["data.test_split=train"], "data.train_split and data.test_split are both 'train'.*labels of training"),
        (["data.val_split=train"], "data.train_split and data.val_split are both 'train'"),
        (["data.val_split=test"], "data.val_split and data.test_split are both 'test'(.|\n)*val_fraction"),
    ],
)
def test_a_planted_leak_of_splits_is_refused_before_training(run, settings, facts):
    with pytest.raises(SplitLeak, match=facts):
        make_source(run("probe=linear", "features.source=live", *settings))


def test_a_planted_group_in_train_and_test_is_refused_before_training(run, tiny_shards, tmp_path):
    settings = ["probe=linear", "features.source=live", f"data.path={tmp_path / 'index.json'}"]

    def index(group):
        return build_index(
            tiny_shards, name="tiny", licence="CC0-1.0", grouped_by=group, index_path=tmp_path / "index.json"
        )  # fmt: skip

    assert index("colour").shared_groups
    with pytest.raises(SplitLeak, match=r"group 'colour' are in two splits(.|\n)*test and train(.|\n)*--group sample"):
        make_source(run(*settings))
    index("sample")
    assert make_source(run(*settings)).request.shard_set.group is None


def test_the_shipped_set_has_no_family_in_two_of_the_splits_of_a_run():
    shard_set = ShardSet.load("emoji")
    assert shard_set.group == "family" and shard_set.grouped_by == "family"
    require_no_leak(DataConfig(path="emoji"), shard_set)
    with pytest.raises(SplitLeak, match="combinations and train: 247 values"):
        require_no_leak(DataConfig(path="emoji", test_split="combinations"), shard_set)
