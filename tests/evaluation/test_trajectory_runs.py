"""Runs over several timesteps and from one tap to another: on stores and live, evaluated, explored, and refused."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffprobe.config.compose import load_run
from diffprobe.core.errors import BadTimestep, ConfigError
from diffprobe.core.result import read_result
from diffprobe.evaluation.certificates import dictionary
from diffprobe.evaluation.certificates.method import Method
from diffprobe.evaluation.explore_codes import stream_codes
from diffprobe.evaluation.explore_runs import open_explored
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.evaluation.load_sae_run import open_runs
from diffprobe.evaluation.sae import SaeEvaluation, evaluate_sae
from diffprobe.evaluation.sample_codes import dense_codes, sample_codes
from diffprobe.features.batch import FeatureTable
from diffprobe.probes.sae import KSAE
from diffprobe.probes.sae.timestep_topk import Config, make
from diffprobe.runs.plan import also_read, plan
from diffprobe.training.kinds import sae as kind

STEPS = ("probe=timestep_topk", "probe.params.n_latents=32", "probe.params.k=4", "features.timesteps=[20,200,500]",
         "probe.cell=mid_block@t*")  # fmt: skip
PAIR = ("probe=transcoder", "probe.params.n_latents=32", "probe.params.k=4", "probe.params.target_tap=up_blocks.0",
        "probe.params.learning_rate=1e-3", "probe.params.adam_beta2=0.999",
        "features.taps=[mid_block,up_blocks.0]")  # fmt: skip
CELLS = ("mid_block@t20:empty:mean", "mid_block@t200:empty:mean", "mid_block@t500:empty:mean")


@pytest.fixture(scope="module")
def conditioned(train_tiny):
    return train_tiny(*STEPS)


@pytest.fixture(scope="module")
def transcoder(train_tiny):
    return train_tiny(*PAIR)


@pytest.mark.slow
def test_a_conditioned_run_has_records_of_every_timestep_and_of_all(conditioned):
    result = read_result(conditioned / "result.json")
    found = {record.cell for record in result.metrics if record.split == "test" and record.name == "fvu"}
    assert found == {None, *CELLS}
    sae = KSAE.from_pretrained(conditioned / "probes" / "sae")
    assert sae.timesteps == (20, 200, 500)
    assert not sae.scales.equal(torch.ones(3)) and bool(sae.encoder_embedding.any())
    (trained,) = open_runs(str(conditioned))
    assert [cell.name for cell in trained.cells(conditioned / "probes" / "sae")] == list(CELLS)


@pytest.mark.slow
def test_stored_and_live_features_give_one_transcoder(transcoder, train_tiny):
    live = train_tiny(*PAIR, "features.source=live")
    one, other = (KSAE.from_pretrained(run / "probes" / "sae") for run in (transcoder, live))
    for name, weight in one.state_dict().items():  # the order of summation differs, and Adam enlarges rounding
        torch.testing.assert_close(weight.float(), other.state_dict()[name].float(), rtol=0, atol=5e-3)
    records = [
        next(r for r in read_result(run / "result.json").metrics if r.split == "test" and r.name == "fvu")
        for run in (transcoder, live)
    ]
    assert records[0].cell == CELLS[0] and "affine" in records[0].controls
    assert records[0].value == pytest.approx(records[1].value, rel=1e-2)


@pytest.fixture
def bound():
    """An autoencoder with a scale of each timestep, and a table of two timesteps."""
    sae = make(Config(k=2, n_latents=12), 6, seed=0, timesteps=(20, 200))
    with torch.no_grad():
        sae.scales.copy_(torch.tensor([1.0, 5.0]))
        sae.encoder_embedding.normal_(generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    cells = ("mid_block@t20:empty:none", "mid_block@t200:empty:none")
    maps = {cell: torch.randn(5, 6, 2, 3, generator=generator) for cell in cells}
    keys = [str(i) for i in range(5)]
    return sae.eval(), FeatureTable(maps, keys, torch.zeros(5, dtype=torch.long), {}), cells


def test_every_reader_of_codes_uses_the_timestep_of_the_row(bound):
    sae, table, cells = bound
    places = {t: table.features[cell].movedim(1, -1).reshape(5, 6, 6) for t, cell in zip((20, 200), cells, strict=True)}
    dense = torch.stack(
        [sae.at(t).preactivations(x.reshape(30, 6)).relu().reshape(5, 6, -1) for t, x in places.items()]
    )
    ((found, _, _),) = dense_codes(sae, table, cells)
    torch.testing.assert_close(found.values, dense.amax((0, 2)))
    ((code, _, _),) = sample_codes(sae, table, cells)
    expected = torch.zeros(2, 5, 6, 12)
    for i, (t, x) in enumerate(places.items()):
        values, indices = sae.at(t).encode(x.reshape(30, 6))
        expected[i] = torch.zeros(30, 12).scatter(1, indices, values).reshape(5, 6, 12)
    torch.testing.assert_close(torch.zeros(5, 12).scatter(1, code.indices, code.values), expected.amax((0, 2)))
    (codes,) = stream_codes(sae, iter([table]), cells)
    for i, (values, indices) in enumerate(codes.by_timestep()):
        own = torch.zeros(30, 12).scatter(1, indices, values)
        torch.testing.assert_close(own, expected[i].reshape(30, 12))


@pytest.mark.slow
def test_the_explorer_opens_a_conditioned_run(conditioned):
    run = open_explored(str(conditioned), ExploreConfig(device="cpu"))
    assert run.cells == CELLS
    codes = next(iter(stream_codes(run.sae, run.features.iter_tables("test"), run.cells)))
    assert codes.rows.timesteps == (20, 200, 500)


@pytest.mark.slow
def test_the_reconstruction_of_a_conditioned_run_is_put_back_at_its_timesteps(conditioned, tmp_path):
    config = SaeEvaluation(
        experiment="tiny/evaluate_sae", run=str(conditioned), device="cpu", limit=8, train_limit=8,
        output=str(tmp_path),
    )  # fmt: skip
    (path,) = evaluate_sae(config)
    cells = {record.cell for record in read_result(path).metrics if record.name == "delta_mse"}
    assert cells == set(CELLS)
    with pytest.raises(BadTimestep, match=r"(?s)timestep 300.*20, 200, 500"):
        evaluate_sae(dataclasses.replace(config, timesteps=(300,)))


def test_a_transcoder_is_not_put_back(transcoder, tmp_path):
    with pytest.raises(ConfigError, match="transcoder"):
        evaluate_sae(SaeEvaluation(experiment="x", run=str(transcoder), device="cpu", output=str(tmp_path)))


def test_certify_reads_the_encoder_at_the_timestep_of_the_cell(tmp_path, monkeypatch):
    sae = make(Config(k=4, n_latents=24), 768, seed=0, timesteps=(0, 100))
    folder, asked = sae.save_pretrained(tmp_path / "sae"), []
    at = type(sae).at
    monkeypatch.setattr(type(sae), "at", lambda self, t: asked.append(t) or at(self, t))
    few = {"n_train": 40, "n_test": 30, "n_permutations": 19, "factors": ("texture",), "n_resamples": 19}
    config = dictionary.Config(backbone="pixels", cell="pixels@t0", **few)
    certificate = dictionary.certify(Method(name=str(folder), path=folder), config)
    assert asked == [0] and certificate.method.checks
    config = dataclasses.replace(config, cell="pixels@t7")
    monkeypatch.setattr(dictionary, "_called", None)
    with pytest.raises((BadTimestep, ConfigError), match=r"7"):
        dictionary.certify(Method(name=str(folder), path=folder), config)


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ((*STEPS, "features.timesteps=[20]"), "20"),
        ((*STEPS, "probe.grid.seed=[0,1]"), "probe.grid"),
        ((*STEPS, "control=raw_pixels"), "raw_pixels"),
        ((*STEPS, "probe.params.row_buffer=8"), "row_buffer"),
        ((*PAIR, "probe.params.target_tap=up_blocks.9"), "up_blocks.9"),
        ((*PAIR, "probe.cell=up_blocks.0@t20"), "up_blocks.0@t20"),
        ((*PAIR, "features.shuffle=rows"), "shuffle"),
        ((*PAIR, "probe.grid.k=[2,4]"), "probe.grid"),
        (("probe=transcoder", "features.taps=[mid_block]"), "target_tap"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(settings, fact):
    with pytest.raises(ConfigError, match=fact):
        plan(load_run(None, list(settings)))


def test_one_timestep_of_several_is_refused_when_the_cells_are_known(train_tiny):
    with pytest.raises(ConfigError, match=r"timestep_topk.*given: 20"):
        train_tiny(*STEPS, "probe.cell=mid_block@t20")


def test_the_target_of_each_cell_is_read_too():
    config = load_run(None, [*PAIR, "probe.cell=mid_block@t*:empty"])
    assert also_read(config, ["mid_block@t*:empty"]) == ["up_blocks.0@t*:empty"]
    assert also_read(load_run(None, list(STEPS)), ["mid_block@t*"]) == []
    inputs, targets = kind.split_pairs(config, [*CELLS[:1], "up_blocks.0@t20:empty:mean"])
    assert (inputs, targets) == ([CELLS[0]], ["up_blocks.0@t20:empty:mean"])
    with pytest.raises(ConfigError, match="up_blocks.0@t20:empty:mean"):
        kind.split_pairs(config, [CELLS[0], "up_blocks.0@t200:empty:mean"])


def test_maps_of_unequal_size_are_refused():
    config = load_run(None, [*PAIR, "features.pool=none"])
    cells = {"mid_block@t20:empty:none": 8, "up_blocks.0@t20:empty:none": 8}
    source = SimpleNamespace(widths=cells, sizes=dict(zip(cells, ((4, 4), (8, 8)), strict=True)))
    with pytest.raises(ConfigError, match="4x4 and 8x8"):
        kind.make_module(plan(config), source)


def test_frequencies_of_a_run_do_not_depend_on_the_order_of_its_cells(bound):
    sae, table, cells = bound
    one, other = (next(iter(sample_codes(sae, table, order)))[0] for order in (cells, cells[::-1]))
    assert np.array_equal(one.values.numpy(), other.values.numpy())
