"""Opening runs for the explorer: what is shown, other seeds, and what is refused."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, SchemaError, StoreIncomplete, UnknownName
from diffprobe.core.result import STORE, read_result, write_result
from diffprobe.evaluation.explore import explore
from diffprobe.evaluation.explore_numbers import held_out_numbers
from diffprobe.evaluation.explore_runs import open_explored, require_images
from diffprobe.evaluation.explore_settings import ExploreConfig
from tests.evaluation.page_runs import SAE
from tests.evaluation.planted_run import Recorder, planted_run

CONFIG = ExploreConfig(device="cpu")


@pytest.fixture(scope="module")
def grid(train_tiny):
    return train_tiny(*SAE, "probe.params.k=2", "probe.grid.seed=[0,1]")


def test_a_grid_of_seeds_is_shown_by_its_first_member(grid):
    run = open_explored(str(grid), CONFIG)
    assert run.trained.folder.name == "seed=0" and [seed.name for seed in run.seeds] == ["seed 1"]
    assert run.split == "test" and run.cells == ("mid_block@t20:empty:mean",)
    second = open_explored(str(grid / "members" / "seed=1"), CONFIG)
    assert [seed.name for seed in second.seeds] == ["seed 0"]
    assert torch.equal(second.sae.W_dec, run.seeds[0].sae.W_dec)


@pytest.mark.slow
def test_other_runs_can_be_given_as_seeds(small_sae, large_sae, spatial_sae):
    run = open_explored(str(small_sae), CONFIG, seeds=[str(large_sae), str(small_sae)])
    assert len(run.seeds) == 1  # a run is not its own other seed
    with pytest.raises(ConfigError, match="mid_block@t20:empty:none"):
        open_explored(str(small_sae), CONFIG, seeds=[str(spatial_sae)])


def test_a_grid_of_different_autoencoders_is_refused_with_its_members(train_tiny):
    run = train_tiny(*SAE, "probe.grid.k=[2,4]")
    with pytest.raises(ConfigError, match=r"2 different autoencoders[\s\S]*k=2"):
        open_explored(str(run), CONFIG)
    one = next(iter(sorted((run / "members").iterdir())))
    assert open_explored(str(one), CONFIG).seeds == ()


def test_what_is_not_an_autoencoder_is_refused(direction, tmp_path, small_sae):
    with pytest.raises(ConfigError, match="direction"):
        open_explored(str(direction), CONFIG)
    with pytest.raises(ConfigError, match=r"result\.json"):
        open_explored(str(tmp_path), CONFIG)
    with pytest.raises(UnknownName, match="other"):
        open_explored(str(small_sae), ExploreConfig(device="cpu", sae="other"))


def moved_store(run: Path, tmp_path: Path, **artifacts: str) -> tuple[Path, Path]:
    """Copy a run and its store; return the run, whose record leads to the copy of the store, and that copy."""
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    result = read_result(copied / "result.json")
    store = Path(result.config["features"]["store"]) / result.artifacts[STORE][:16]
    shutil.copytree(store, tmp_path / "stores" / store.name)
    config = {**result.config, "features": {**result.config["features"], "store": str(tmp_path / "stores")}}
    (copied / "result.json").unlink()
    changed = dataclasses.replace(
        result, config=config, config_digest=digest_json(config), artifacts={**result.artifacts, **artifacts}
    )
    write_result(changed, copied / "result.json")
    return copied, tmp_path / "stores" / store.name


def test_a_missing_and_a_modified_store_are_named(small_sae, tmp_path):
    run, store = moved_store(small_sae, tmp_path)
    explored = open_explored(str(run), CONFIG)
    assert sum(len(table) for table in explored.tables()) > 0
    for file in store.rglob("*.safetensors"):
        tensors = {name: value + 1 for name, value in load_file(file).items()}
        save_file(tensors, file)
    with pytest.raises(SchemaError, match="checksum"):
        list(open_explored(str(run), CONFIG).tables())
    shutil.rmtree(store)
    with pytest.raises(StoreIncomplete):
        open_explored(str(run), CONFIG)


def test_the_store_of_another_run_is_refused(small_sae, tmp_path):
    run, _ = moved_store(small_sae, tmp_path, **{STORE: "0" * 64})
    with pytest.raises(SchemaError, match="digest of the run: 0000000000000000"):
        open_explored(str(run), CONFIG)


def test_live_features_give_the_pages_of_a_store(small_sae, tmp_path):
    """The same autoencoder on the same images, whose features are computed anew."""
    live = tmp_path / "run"
    shutil.copytree(small_sae, live)
    result = read_result(live / "result.json")
    config = {**result.config, "features": {**result.config["features"], "source": "live", "store": str(tmp_path)}}
    (live / "result.json").unlink()
    artifacts = {name: digest for name, digest in result.artifacts.items() if name != STORE}
    changed = dataclasses.replace(result, config=config, config_digest=digest_json(config), artifacts=artifacts)
    write_result(changed, live / "result.json")
    stored, streamed = Recorder(), Recorder()
    for writer, run in ((stored, small_sae), (streamed, live)):
        explore([str(run)], CONFIG, writer, measures=[held_out_numbers])
    assert stored.runs == streamed.runs
    assert not [path for path in tmp_path.iterdir() if path.name != "run"]  # nothing is left beside the run


def test_a_split_without_images_is_named():
    with pytest.raises(StoreIncomplete, match="'test'"):
        require_images(planted_run([]), 0)
