"""Features behind a run: as configured, or else from the store that its record names; never those of others."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffprobe.core.errors import ConfigError, DiffprobeError
from diffprobe.evaluation.page_features import open_features, with_data_path
from tests.evaluation.page_runs import CELL, SAE, opened


def without(run, **changes):
    """Return a run whose backbone or shards are not where they were."""
    config = run.config
    if "backbone" in changes:
        config = replace(config, backbone=replace(config.backbone, path=changes["backbone"]))
    if "store" in changes:
        config = replace(config, features=replace(config.features, store=changes["store"]))
    return with_data_path(replace(run, config=config), changes.get("data"))


@pytest.mark.parametrize("gone", [{"data": "nowhere"}, {"backbone": "nowhere"}])
def test_the_store_of_the_record_has_the_same_features_without_shards_or_backbone(small_sae, gone):
    (run,) = opened(small_sae)
    there, here = open_features(run), open_features(without(run, **gone))
    assert there.images is not None and there.missing == ""
    assert here.images is None and "nowhere" in here.missing
    assert (here.widths, here.classes, here.attributes) == (there.widths, there.classes, there.attributes)
    for split in ("train", "test"):
        assert here.table(split).keys == there.table(split).keys
        (cell,) = here.widths
        assert torch.equal(here.table(split).features[cell], there.table(split).features[cell])


@pytest.mark.slow
def test_a_run_of_a_part_of_the_store_reads_that_part(train_tiny):
    (run,) = opened(train_tiny(*SAE, "probe.params.k=3", "data.limit=4", f"probe.cell={CELL}"))
    there, here = open_features(run), open_features(without(run, data="nowhere"))
    assert here.table("train").keys == there.table("train").keys and len(here.table("train")) >= 4


def test_other_shards_of_the_same_path_are_not_shown(small_sae, tiny_shards, tmp_path):
    from diffprobe.shards.index import build_index

    changed = tmp_path / "changed"
    shutil.copytree(tiny_shards, changed)
    (changed / "index.json").unlink()
    shutil.copy(changed / "train-0000.tar", changed / "train-0001.tar")
    for tar in ("train-0000.tar", "train-0002.tar"):
        (changed / tar).unlink()
    build_index(changed, name="tiny", licence="CC0-1.0")
    here = open_features(with_data_path(opened(small_sae)[0], str(changed)))
    assert here.images is None and here.missing


def test_without_a_store_the_first_error_is_raised(small_sae, tmp_path):
    (run,) = opened(small_sae)
    with pytest.raises(DiffprobeError, match="nowhere"):
        open_features(without(run, data="nowhere", store=str(tmp_path)))
    live = replace(run, config=replace(run.config, features=replace(run.config.features, source="live")))
    with pytest.raises(ConfigError, match="live features(.|\n)*features.source=stored"):
        open_features(live)


def test_a_data_path_replaces_that_of_the_run(small_sae):
    (run,) = opened(small_sae)
    assert with_data_path(run, None) is run and with_data_path(run, "x").config.data.path == "x"
    assert Path(run.config.data.path).is_dir()
