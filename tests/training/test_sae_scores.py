import json

import pytest
import torch

from diffprobe.features.batch import RowValues
from diffprobe.metrics.dead_latents import Dead
from diffprobe.metrics.decoder_coherence import decoder_coherence
from diffprobe.metrics.dense_fraction import density_histogram
from diffprobe.metrics.fvu import fvu
from diffprobe.metrics.latent_usage import count_active
from diffprobe.probes.sae.types import Code
from diffprobe.training.sae_scores import SplitScores, decoder_scores, window_scores

CELLS = ("mid_block@t10:empty:mean", "mid_block@t90:empty:mean")
OWN = {"cell": CELLS[0], "probe": "topk", "detail": {"n_latents": 5, "k": 2}}


def data(n=20):
    generator = torch.Generator().manual_seed(0)
    x = 5 + torch.randn(n, 4, generator=generator)
    code = Code(torch.rand(n, 2, generator=generator), torch.randint(0, 6, (n, 2), generator=generator))
    group = torch.arange(n) % 2
    return x, x + 0.1 * torch.randn(n, 4, generator=generator), code, group


@pytest.mark.parametrize("cells", [CELLS[:1], CELLS])
def test_numbers_over_all_rows_and_of_each_cell(cells):
    x, x_hat, code, group = data()
    group = group if len(cells) > 1 else torch.zeros_like(group)
    scores = SplitScores(4, 6, cells)
    for part in torch.arange(20).split(7):
        none = torch.zeros_like(part)
        rows = RowValues(x[part], group[part], none, none)
        scores.update(rows, x_hat[part], Code(code.values[part], code.indices[part]))
    whole, by_cell = scores.compute()
    assert list(by_cell) == list(cells if len(cells) > 1 else ())
    parts = [(whole, torch.ones(20, dtype=torch.bool)), *((one, group == i) for i, one in enumerate(by_cell.values()))]
    for found, mine in parts:
        values, active = found.values, count_active(code.values[mine], code.indices[mine], 6)
        assert found.n == int(mine.sum()) == (10 if found is not whole else 20)
        assert values["fvu"] == pytest.approx(fvu(x[mine], x_hat[mine]))
        assert values["explained_variance"] == 1 - values["fvu"]
        assert values["l0"] == pytest.approx(float((code.values[mine] > 0).sum(1).float().mean()))
        assert values["dead_fraction"] == pytest.approx(float((active == 0).float().mean()))
        counts = density_histogram(active, found.n).counts.tolist()
        assert found.measured["dense_fraction"].detail["histogram"]["counts"] == counts
        assert values["dense_fraction"] == pytest.approx(float((active >= 0.1 * found.n).float().mean()))
        spread = x[mine].double().std(0, unbiased=False).norm()
        assert values["gamma"] == pytest.approx(float(x[mine].double().mean(0).norm() / spread))


def test_computed_rows_are_discarded():
    x, x_hat, code, group = data()
    scores, rows = SplitScores(4, 6, CELLS), RowValues(x, group, group, group)
    scores.update(rows, x_hat, code)
    first = scores.compute()
    scores.update(rows, x_hat, code)
    assert scores.compute() == first
    assert scores.state_dict() == {}


def test_metrics_with_the_same_update_are_updated_once():
    x, x_hat, code, group = data()
    scores = SplitScores(4, 6, CELLS[:1])
    scores.update(RowValues(x, torch.zeros_like(group), group, group), x_hat, code)
    metrics = dict(scores.whole.items(copy_state=False))
    assert metrics["metric_l0"].active is metrics["metric_dead_fraction"].active
    assert metrics["metric_fvu"].square is metrics["metric_explained_variance"].square
    assert metrics["metric_fvu"].square is not metrics["metric_mean_std_ratio"].square


def test_each_record_holds_its_controls_and_the_rows_it_was_counted_over():
    values, indices = torch.ones(100, 2), torch.full((100, 2), 4)
    values[1:, 0], indices[:, 0] = 0.0, 1  # latent 1 fires once, latent 4 always
    values[:10, 1], x = 0.5, torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    scores = SplitScores(4, 5, CELLS[:1])
    none = torch.zeros(100, dtype=torch.int64)
    scores.update(RowValues(x, none, none, none), x + 0.1, Code(values, indices))
    whole, _ = scores.compute()
    found = {record.name: record for record in whole.records(split="val", **OWN)}
    assert {name: record.value for name, record in found.items()} == whole.values
    assert all(r.n == 100 and r.split == "val" and r.cell == OWN["cell"] and r.probe == "topk" for r in found.values())
    assert all(record.detail.items() >= OWN["detail"].items() for record in found.values())
    assert found["fvu"].controls == {"mean_prediction": 1.0} and found["gamma"].controls == {}
    assert found["explained_variance"].controls == {"mean_prediction": 0.0}
    assert found["dead_fraction"].detail["window"] == 100 and "this split" in found["dead_fraction"].detail["dead"]
    histogram = found["dense_fraction"].detail["histogram"]
    assert (histogram["log10_first_edge"], histogram["log10_bin_width"], histogram["n_never"]) == (-6, 0.25, 3)
    assert [i for i, count in enumerate(histogram["counts"]) if count] == [16, 23]
    assert "10%" in found["dense_fraction"].detail["dense"]
    assert json.loads(json.dumps(histogram)) == histogram


def test_dead_latents_of_training_report_their_window():
    mask = torch.tensor([True, False, False, False])
    (record,) = window_scores(Dead(mask.double().mean(), mask, 30, 400)).records(split="train", **OWN)
    assert (record.name, record.value, record.n, record.split) == ("windowed_dead_fraction", 0.25, 400, "train")
    assert record.detail["window"] == 30 and "last 30 rows of training" in record.detail["dead"]


def test_coherence_is_recorded_with_its_pair_and_its_control():
    decoder = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    expected = decoder_coherence(decoder)
    largest, mean = decoder_scores(decoder).records(split="train", **OWN)
    assert (largest.name, largest.value, largest.n) == ("decoder_coherence", expected.largest, 5)
    assert largest.detail == {**OWN["detail"], "pair": list(expected.pair)} and largest.controls == {}
    assert (mean.name, mean.value, mean.n, mean.detail) == ("mean_decoder_coherence", expected.mean, 5, OWN["detail"])
    assert mean.controls["random_direction"] == pytest.approx(0.2017, abs=1e-3)
