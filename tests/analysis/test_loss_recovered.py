import pytest
import torch

from diffprobe.analysis.loss_recovered import RecordContext, loss_recovered, loss_recovered_records
from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.scoring.intervention_error import Baseline, Spliced

N = 40
GENERATOR = torch.Generator().manual_seed(0)
BEFORE = torch.rand(N, 2, generator=GENERATOR).double()
COST = torch.rand(N, 2, generator=GENERATOR).double() * torch.tensor([0.1, 0.4])
ABOUT = RecordContext(
    cell=Cell("mid_block", 20), split="test", probe="topk", clusters=range(N), detail={"sae": "probes/sae"}
)


def baseline(rise=(1.0, 2.0), cleared=True):
    ablated = BEFORE + torch.tensor(rise).double()
    kept = {"timesteps": (20, 500), "means": (torch.zeros(3),) * 2}
    return Baseline(untouched=BEFORE, ablated=ablated, cleared=ablated + 1 if cleared else None, n_train=9, **kept)


def measured(base, errors=BEFORE + COST):
    records = loss_recovered_records(base, Spliced(errors=errors, fvu=(0.2, 0.3)), ABOUT)
    assert {(r.split, r.n, r.probe) for r in records} == {("test", N, "topk")}
    return {(r.name, r.cell): r for r in records}


def test_by_hand():
    found = measured(baseline())
    here, there = "mid_block@t20:empty:mean", "mid_block@t500:empty:mean"
    assert set(found) == {
        *((name, cell) for name in ("delta_mse", "recovered", "fvu") for cell in (here, there)),
        ("delta_mse_overall", here),
        ("recovered_overall", here),
    }
    rise, share = found["delta_mse", there], found["recovered", there]
    assert rise.value == pytest.approx(float(COST[:, 1].mean()))
    assert rise.controls == pytest.approx({"mean_ablation": 2.0, "whole_map_ablation": 3.0})
    assert share.value == pytest.approx(1 - float(COST[:, 1].mean()) / 2) and share.controls == {"mean_ablation": 0.0}
    assert rise.detail["timesteps"] == [500] and rise.detail["mse"] == pytest.approx(float(BEFORE[:, 1].mean()))
    assert found["fvu", there].value == 0.3 and rise.detail["sae"] == "probes/sae"
    overall = found["recovered_overall", here]
    assert overall.value == pytest.approx(1 - float(COST.mean()) / 1.5) and overall.detail["timesteps"] == [20, 500]
    for record in found.values():
        if record.name != "fvu":
            low, high = record.detail["interval"]
            assert low < record.value < high and record.detail["n_clusters"] == N


def test_the_ends_of_the_scale():
    base = baseline(cleared=False)
    perfect, worst = measured(base, BEFORE), measured(base, base.ablated)
    cell = "mid_block@t20:empty:mean"
    assert perfect["delta_mse", cell].value == 0 and perfect["recovered", cell].value == 1
    assert worst["recovered", cell].value == worst["recovered_overall", cell].value == 0
    assert worst["delta_mse", cell].controls == {"mean_ablation": worst["delta_mse", cell].value}


def test_without_a_cost_of_mean_ablation_there_is_no_share():
    found = measured(baseline(rise=(-0.1, 2.0)))
    rise = found["delta_mse", "mid_block@t20:empty:mean"]
    assert ("recovered", rise.cell) not in found and "does not raise the error" in rise.detail["no_recovered"]
    assert ("recovered", "mid_block@t500:empty:mean") in found and ("recovered_overall", rise.cell) in found
    with pytest.raises(EmptyClass, match="1 before, 1 after"):
        loss_recovered(1.0, 1.0, 1.0)


def test_clusters_are_resampled_whole():
    paired = RecordContext(**{**vars(ABOUT), "clusters": [i // 20 for i in range(N)]})
    record = loss_recovered_records(baseline(), Spliced(errors=BEFORE + COST, fvu=(0.2, 0.3)), paired)[0]
    assert record.detail["n_clusters"] == 2
    alone = RecordContext(**{**vars(ABOUT), "clusters": [0] * N})
    with pytest.raises(ConfigError, match="1 group in 40"):
        loss_recovered_records(baseline(), Spliced(errors=BEFORE + COST, fvu=(0.2, 0.3)), alone)
