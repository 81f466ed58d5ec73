"""The command that creates a request's store, and equal requests in one folder."""

import shlex
import shutil
from dataclasses import replace

import pytest

from diffprobe.config.compose import load_run
from diffprobe.config.schema import FieldsConfig
from diffprobe.core.errors import ConfigError
from diffprobe.features.request import Request
from diffprobe.shards.index import build_index


def test_a_manifest_is_known_before_any_weights_are_loaded(configs):
    request = Request(*configs())
    assert len(request.manifest.cells) == 4
    assert request.manifest.splits == ("train", "val", "test")
    assert "extractor" not in vars(request)


def test_narrowed_asks_for_the_cells_and_nothing_else(configs):
    request = Request(*configs())
    cell = "up_blocks.0@t400:empty:mean"
    assert list(request.narrowed([cell]).plan.widths) == [cell]


@pytest.mark.parametrize(
    "changes",
    [
        {"features_draws": 3},
        {"data_fields": FieldsConfig(caption="text", image=("png", "seg.png"))},
        {"features_condition": "template", "features_prompt": "a {class_name}, it's = 'new' [v2] \\\\"},
        {"features_condition": "prompt", "features_prompt": "true"},
        {"data_limit": 3, "backbone_random_weights": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_command_of_a_message_creates_the_requested_store(configs, changes):
    request = Request(*configs(**changes))
    _, verb, *settings = shlex.split(request.command)
    run = load_run(None, settings)
    assert verb == "extract" and run.data.fields == request.data.fields and run.features == request.features
    assert Request(run.backbone, run.data, run.features).manifest.folder == request.manifest.folder


def test_names_of_the_index_are_those_of_the_store(configs, tiny_shards, tmp_path):
    """A request that leaves the names out and one that gives them are the same."""
    copy, names = tmp_path / "copy", FieldsConfig(label="fine")
    shutil.copytree(tiny_shards, copy)
    build_index(copy, name="copy", licence="none", fields=names)
    plain, named = (Request(*configs(data_path=str(copy), **changes)) for changes in ({}, {"data_fields": names}))
    assert plain.fields == names and plain.manifest.digest == named.manifest.digest
    assert plain.manifest.data["fields"]["label"] == "fine"
    with pytest.raises(ConfigError, match="label: .*'label'.*'fine'"):
        _ = Request(*configs(data_fields=names)).manifest


def test_a_store_is_the_same_however_it_is_read(configs):
    plain, other = (
        Request(*configs(**changes)) for changes in ({}, {"features_placement": "device", "features_shuffle": "rows"})
    )
    assert plain.command == other.command and plain.manifest.digest == other.manifest.digest


def test_configs_of_the_same_content_meet_in_one_folder(configs):
    backbone, data, features = configs()
    other = Request(backbone, replace(data, batch_size=9, num_workers=3, shuffle_buffer=0), features)
    assert other.manifest.folder == Request(backbone, data, features).manifest.folder
