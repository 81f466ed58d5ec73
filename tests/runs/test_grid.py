"""Grids of sparse autoencoders on tiny real things: one run, a record a member."""

import lightning
import pytest
import torch

from diffprobe.config.parse import parse
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.core.result import read_result
from diffprobe.probes.predictions import load_predictions
from diffprobe.probes.sae import KSAE
from diffprobe.report.collect import collect
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_spec import TableAxis, TableSpec
from diffprobe.runs.extract import extract_run
from diffprobe.runs.grid import seeds_of
from diffprobe.runs.rescore import SPLITS, load_run, rescore
from diffprobe.runs.train import plan, train
from diffprobe.shards.batch import ImageBatch

CELLS = ("mid_block@t20", "up_blocks.0@t20")


@pytest.fixture
def run(run):
    """Make a judged config of a small TopK."""
    return lambda *settings: run("probe=topk", "probe.params.n_latents=40", *settings)


@pytest.mark.slow
def test_each_member_has_the_record_of_its_own_run(run, tmp_path):
    config = run(f"probe.grid.cell=[{','.join(CELLS)}]", "probe.grid.k=[2,4]", "probe.grid.seed=[0,1]", "logger=csv")
    extract_run(config, progress=False)
    path = train(config)
    members = path.parent / "members"
    assert sorted(folder.name for folder in members.iterdir()) == sorted(
        f"{cell},k={k},seed={seed}" for cell in CELLS for k in (2, 4) for seed in (0, 1)
    )
    name = f"{CELLS[1]},k=4,seed=0"
    member, alone = read_result(members / name / "result.json"), run(f"probe.cell={CELLS[1]}", "probe.params.k=4")
    single = read_result(train(alone))
    assert member.metrics == single.metrics and member.seeds == single.seeds
    assert member.run == f"{path.parent.name}/{name}" and member.config["probe"] == single.config["probe"]
    folder = plan(alone).run_dir / "probes" / "sae"
    weights, expected = KSAE.from_pretrained(members / name / "probes" / "sae"), KSAE.from_pretrained(folder)
    assert torch.equal(weights.W_enc, expected.W_enc) and torch.equal(weights.W_dec, expected.W_dec)
    whole = read_result(path)
    assert whole.metrics == () and whole.config["probe"]["grid"]["k"] == [2, 4]
    named = {f"members/{entry.name}/probes/sae" for entry in members.iterdir()}
    kept = {f"members/{entry.name}/predictions-{split}.safetensors" for entry in members.iterdir() for split in SPLITS}
    assert named | kept == {name for name in whole.artifacts if not name.startswith("input/")}
    predicted = load_predictions(members / name / "predictions-test.safetensors")
    own = load_predictions(plan(alone).run_dir / "predictions-test.safetensors")
    assert predicted.keys == own.keys and all(own.tensors[key].equal(predicted.tensors[key]) for key in own.tensors)
    (again, *_) = rescore(load_run(members / name))
    assert again.value == pytest.approx(
        next(r.value for r in member.metrics if r.name == "fvu" and r.split == "test"), rel=1e-5
    )
    assert f"{name}/test/fvu" in (path.parent / "curves" / "metrics.csv").read_text().splitlines()[0]

    results = [result for result in collect(tmp_path / "sae") if result.run != plan(alone).name]
    assert len(results) == 9
    axes = {"rows": (TableAxis(field="cell"),), "columns": TableAxis(field="config.probe.params.k")}
    table = fill_table(results, TableSpec(title="grid", metric="fvu", filter={"split": "val"}, **axes))
    assert [entry.n_seeds for entry in table.entries()] == [2, 2, 2, 2]


class Count(lightning.Callback):
    """Counts the images that go through the backbone while its features are made."""

    def __init__(self):
        self.images = 0

    def setup(self, trainer, module, stage):
        source = trainer.datamodule
        if vars(source).get("on_after_batch_transfer") is not None:
            return  # fit, validate and test each set up
        make = source.on_after_batch_transfer

        def counted(batch, index):
            self.images += len(batch.keys) if isinstance(batch, ImageBatch) else 0
            return make(batch, index)

        source.on_after_batch_transfer = counted


@pytest.mark.slow
def test_live_features_give_the_grid_of_stored_ones_and_are_made_as_often_as_for_one(run):
    # All of the training set is one batch, so that neither source orders what the other does not.
    grid = [f"probe.grid.cell=[{','.join(CELLS)}]", "probe.grid.k=[2,4]", "data.batch_size=16"]
    config = run(*grid)
    extract_run(config, progress=False)
    of_grid, of_one = Count(), Count()
    stored, live = train(config), train(run(*grid, "features.source=live"), callbacks=[of_grid])
    for cell in CELLS:
        name = f"{cell},k=4"
        one, other = (read_result(path.parent / "members" / name / "result.json") for path in (stored, live))
        for a, b in zip(one.metrics, other.metrics, strict=True):
            assert (a.name, a.split, a.cell, a.n) == (b.name, b.split, b.cell, b.n)
            assert b.value == pytest.approx(a.value, rel=1e-4), (a.name, a.split)
        one, other = (
            KSAE.from_pretrained(path.parent / "members" / name / "probes" / "sae") for path in (stored, live)
        )
        torch.testing.assert_close(other.b_pre, one.b_pre, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.W_dec, one.W_dec, rtol=1e-3, atol=1e-4)
    alone = [f"probe.cell={CELLS[1]}", "probe.params.k=4", "data.batch_size=16", "features.source=live"]
    train(run(*alone), callbacks=[of_one])
    # 2 epochs, the pass before and the one after them over 16 images; 4 of validation after each epoch and at the end,
    # and 4 of the test.
    assert of_grid.images == of_one.images == 4 * 16 + 3 * 4 + 4


@pytest.mark.slow
def test_a_batched_grid_has_the_records_of_one_that_is_not_to_rounding(run):
    grid = [f"probe.grid.cell=[{','.join(CELLS)}]", "probe.grid.k=[2,4]"]
    extract_run(run(*grid), progress=False)
    paths = train(run(*grid)), train(run(*grid, "probe.batched=true"))
    assert paths[0].parent != paths[1].parent
    for name in (f"{cell},k={k}" for cell in CELLS for k in (2, 4)):
        one, other = (read_result(path.parent / "members" / name / "result.json") for path in paths)
        assert "batched" not in one.config["probe"] and other.config["probe"]["batched"]
        for a, b in zip(one.metrics, other.metrics, strict=True):
            assert (a.name, a.split, a.cell, a.n, a.detail) == (b.name, b.split, b.cell, b.n, b.detail)
            assert b.value == pytest.approx(a.value, abs=1e-4)
        (point,) = plan(parse(RunConfig, other.config)).points  # the record can be run by itself
        assert point.params.k == other.config["probe"]["params"]["k"] and point.seed == 0


def test_the_record_of_another_seed_says_whose_order_the_samples_had(run):
    config = run("probe.grid.seed=[3,5]", "seed=3", f"probe.cell={CELLS[0]}")
    own, other = plan(config).points
    assert seeds_of(own, config) == {"run": 3} and seeds_of(other, config) == {"run": 5, "order": 3}
    assert own.tree == plan(run("seed=3", f"probe.cell={CELLS[0]}")).tree
    again = plan(parse(RunConfig, other.tree)).points
    assert [point.seed for point in again] == [5] and other.tree["seed"] == 3


def test_the_order_of_keys_is_no_part_of_a_grid(run):
    keys = ["probe.grid.seed=[0,1]", "probe.grid.k=[2,4]"]
    one, other = (plan(run(*settings, f"probe.cell={CELLS[0]}")) for settings in (keys, keys[::-1]))
    assert one.name == other.name and one.points == other.points
    assert [point.name for point in one.points] == ["k=2,seed=0", "k=2,seed=1", "k=4,seed=0", "k=4,seed=1"]


def test_a_run_without_a_grid_keeps_its_digest(run):
    planned = plan(run(f"probe.cell={CELLS[0]}"))
    assert "grid" not in planned.tree["probe"] and planned.points == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["probe.grid.kk=[1,2]"], r"unknown key of probe.grid for probe 'topk': 'kk'(.|\n)*nearest: k"),
        (["probe.grid.k=[]"], "grid.k is empty"),
        (["probe.grid.k=[4,2,4]"], "grid.k .*: 4, 2, 4"),
        (["probe.grid.k=4"], "'probe.grid.k' is 4"),
        (["probe.grid.k=[4,x]"], "'probe.grid.k' is 'x'"),
        (["probe.grid.k=[4,0]"], "k = 0 of probe 'topk' must be at least 1"),
        (["probe.grid.seed=[0.5]"], "'probe.grid.seed.*' is 0.5"),
        (["probe.grid.cell=[a@t1]", "control=raw_pixels"], "the pixels are one cell"),
        (["probe.grid.cell=[a@t1]", "control=vae_latents"], "the latents are one cell"),
        (["probe=ridge", "probe.grid.alpha=[2]"], "probe.grid: a probe of kind 'direction'"),
        (["probe.batched=true"], "batched needs a grid"),
    ],
)
def test_faults_are_found_before_anything_is_loaded(run, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan(run(*settings))
    assert not list(tmp_path.iterdir()), caught


@pytest.mark.slow
def test_faults_that_need_the_features(run):
    extract_run(run(), progress=False)
    with pytest.raises(UnknownName, match="unknown cell 'mid_blok@t20'"):
        train(run(f"probe.grid.cell=[{CELLS[0]},mid_blok@t20]"))
    with pytest.raises(ConfigError, match=f"names '{CELLS[0]}:empty:mean' twice"):
        train(run(f"probe.grid.cell=[{CELLS[0]},'{CELLS[0]}:empty:mean']"))
    with pytest.raises(ConfigError, match="reads one cell; the features have 2"):
        train(run("probe.grid.k=[2,4]"))
    with pytest.raises(ConfigError, match="k = 41 .*n_latents = 40"):
        train(run(f"probe.cell={CELLS[0]}", "probe.grid.k=[2,41]"))
