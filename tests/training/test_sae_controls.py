import numpy as np
import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.result import MetricRecord
from diffprobe.features.batch import RowValues
from diffprobe.metrics.fvu import fvu
from diffprobe.probes.sae import batch_topk, jumprelu
from diffprobe.probes.sae.topk import Config
from diffprobe.training import sae_controls
from diffprobe.training.sae import SparseAutoencoderModule, make_sae
from diffprobe.training.sae_bank import MemberSpec, SparseAutoencoderBankModule
from diffprobe.training.sae_controls import LEFT_OUT, ControlSize, ReconstructionControls, RowScale
from diffprobe.training.sae_random_dictionary import RandomDictionary
from diffprobe.training.trainer import make_trainer, quiet

CELL = "mid_block@t10:empty:mean"
CELLS = (CELL, "mid_block@t90:empty:mean")
SIZE = ControlSize(2, "k of the autoencoder")
NONE = RandomDictionary(make_sae(batch_topk.Config(k=2, n_latents=6), 5, seed=0), 1, seed=0)


def itself(tensor):
    return tensor


def data(seed, n=60, d_in=5):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([3.0, 0.2, 2.0, 1.0, 0.5])[:d_in]
    return 7 + torch.randn(n, d_in, generator=generator) * spread, torch.arange(n) % 2


def rows(x, group):
    return RowValues(x, group, group, group)


def scale_of(splits):
    x = splits.get("train", splits["test"])[0].double()
    scale = RowScale(x.shape[1])
    scale.set(x.mean(0), x.var(0, unbiased=False))
    return scale


def scored(splits, cells=CELLS, parts=1, total=itself):
    controls = ReconstructionControls(cells, 5)
    for split, (x, group) in splits.items():
        group = group if len(cells) > 1 else torch.zeros_like(group)
        for part in torch.arange(len(x)).chunk(parts):
            controls.update(split, rows(x[part], group[part]), scale_of(splits))
        controls.finish(split, total, torch.device("cpu"))
    return controls


def pca_of(train, x, k):
    """Reconstruct by numpy's singular vectors of the centred training rows."""
    mean = train.double().mean(0).numpy()
    _, _, directions = np.linalg.svd(train.double().numpy() - mean)
    centred = x.double().numpy() - mean
    return torch.from_numpy(mean + centred @ directions[:k].T @ directions[:k])


@pytest.mark.parametrize("k", [0, 1, 3, 5, 9])
def test_pca_is_the_reconstruction_by_components_of_the_training_rows(k):
    splits = {"train": data(0), "test": data(1)}
    controls, (x, group) = scored(splits, parts=4), splits["test"]
    expected = pca_of(splits["train"][0], x, k)
    assert controls.pca("test", k) == pytest.approx(fvu(x.double(), expected), abs=1e-9)
    for i, cell in enumerate(CELLS):
        own = fvu(x[group == i].double(), expected[group == i])
        assert controls.pca("test", k, cell) == pytest.approx(own, abs=1e-9)


def neurons_of(train, x, k):
    """Keep the k features of each row that are farthest from the mean of the training rows."""
    mean, std = train.double().mean(0), train.double().std(0, unbiased=False)
    found = mean.repeat(len(x), 1)
    for row, out in zip(x.double(), found, strict=True):
        kept = sorted(range(len(row)), key=lambda j: -abs(float((row[j] - mean[j]) / std[j])))[:k]
        out[kept] = row[kept]
    return found


@pytest.mark.parametrize("k", [0, 2, 5, 9])
def test_raw_neurons_are_the_features_farthest_from_the_mean(k):
    splits = {"train": data(0), "test": data(1)}
    controls, (x, group) = scored(splits, parts=4), splits["test"]
    expected = neurons_of(splits["train"][0], x, k)
    assert controls.raw_neurons("test", k) == pytest.approx(fvu(x.double(), expected), abs=1e-9)
    own = fvu(x[group == 1].double(), expected[group == 1])
    assert controls.raw_neurons("test", k, CELLS[1]) == pytest.approx(own, abs=1e-9)


def test_a_feature_that_is_constant_in_training_is_kept_last():
    (train, group), (x, _) = data(0), data(1)
    train[:, 0] = 7.0
    controls = scored({"train": (train, group), "test": (x, group)}, cells=CELLS[:1])
    left = (x[:, 0].double() - 7).square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert controls.raw_neurons("test", 4) == pytest.approx(float(left), rel=1e-9)


def test_shares_of_processes_add_up():
    splits = {"train": data(0), "test": data(1)}
    whole = scored(splits)
    halves = [ReconstructionControls(CELLS, 5) for _ in range(3)]  # the last process has no rows
    for split, (x, group) in splits.items():
        sums = []
        for rank, part in enumerate(halves[:2]):
            part.update(split, rows(x[rank::2], group[rank::2]), scale_of(splits))
        for part in halves:
            seen = []
            part.finish(split, lambda tensor, seen=seen: seen.append(tensor) or tensor, torch.device("cpu"))
            sums.append(seen)
        totals = iter([sum(parts) for parts in zip(*sums, strict=True)])
        halves[0]._running.clear()
        halves[0].finish(split, lambda _, totals=totals: next(totals), torch.device("cpu"))
    for name in ("pca", "raw_neurons"):
        assert getattr(halves[0], name)("test", 2) == pytest.approx(getattr(whole, name)("test", 2), rel=1e-12)


def test_a_split_that_is_scored_again_starts_again():
    splits = {"train": data(0), "test": data(1)}
    controls = scored(splits)
    before = controls.pca("test", 2)
    for split in ("train", "test"):
        controls.update(split, rows(*splits[split]), scale_of(splits))
        controls.finish(split, itself, torch.device("cpu"))
    assert controls.pca("test", 2) == before


def record(name="fvu", split="test", cell=CELL):
    controls = {"mean_prediction": 1.0} if name == "fvu" else {}
    return MetricRecord(name=name, value=0.5, split=split, n=60, cell=cell, controls=controls, detail={"k": 2})


def test_scores_that_are_a_function_of_the_fvu_get_the_controls():
    controls = scored({"train": data(0), "test": data(1)}, cells=CELLS[:1])
    one, other, l0 = controls.add_to([record(), record("explained_variance"), record("l0")], SIZE, NONE, 1.0)
    assert list(one.controls) == ["pca", "raw_neurons", "mean_prediction"] and one.controls["pca"] == controls.pca(
        "test", 2
    )
    assert other.controls["pca"] == 1 - one.controls["pca"] and l0 == record("l0")
    reason = {"random_dictionary": NONE.left_out}
    assert one.detail == {"k": 2, "control_k": 2, "control_k_is": "k of the autoencoder", LEFT_OUT: reason}
    assert one.value == 0.5 and one.n == 60


def test_what_is_left_out_says_why(monkeypatch):
    (found,) = scored({"test": data(1)}).add_to([record()], SIZE, NONE, 1.0)
    assert found.controls == {"mean_prediction": 1.0} and "train" in found.detail[LEFT_OUT]["pca"]
    (found,) = scored({"train": data(0), "test": data(1)}).add_to([record()], None, NONE, 1.0)
    assert "train" in found.detail[LEFT_OUT]["pca"]
    monkeypatch.setattr(sae_controls, "MAX_NUMBERS", 49)
    (found,) = scored({"train": data(0), "test": data(1)}).add_to([record()], SIZE, NONE, 1.0)
    reason = found.detail[LEFT_OUT]["pca"]
    assert found.controls["raw_neurons"] > 0 and "raw_neurons" not in found.detail[LEFT_OUT]
    assert all(fact in reason for fact in ("2 cells of width 5", "50 ", "at most 49")) and "pca" not in found.controls


def fit(module, source, tmp_path):
    with quiet():
        trainer = make_trainer(module.settings, run_dir=tmp_path)
        trainer.fit(module, datamodule=source)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
    return module


def settings_of():
    return TrainerConfig(accelerator="cpu", enable_progress_bar=False, max_epochs=1)


def probe_of(kind=None, k=3):
    return (kind.Config if kind else Config)(k=k, n_latents=24, dead_window=100, k_aux=4)


@pytest.mark.parametrize("kind", [None, batch_topk, jumprelu])
def test_a_run_records_pca_on_every_split(toy, tmp_path, kind):
    source = toy(cells=(CELL,))
    module = SparseAutoencoderModule(probe_of(kind), cell=CELL, d_in=12, settings=settings_of())
    fit(module, source, tmp_path)
    k = 3 if kind is None else round(module.scores["train"]["l0"])
    for split in ("train", "val", "test"):
        found = {one.name: one for one in module.records(split)}
        x, train = (source.table(name).features[CELL] for name in (split, "train"))
        expected = fvu(x.double(), pca_of(train, x, k))
        kept = fvu(x.double(), neurons_of(train, x, k))
        controls = {"pca": expected, "raw_neurons": kept, "mean_prediction": 1.0}
        measured = dict(found["fvu"].controls)
        random = measured.pop("random_dictionary", None)
        assert (random is None) is (LEFT_OUT in found["fvu"].detail) is (kind is not None)
        assert measured == pytest.approx(controls, rel=1e-9)
        assert found["explained_variance"].controls["pca"] == pytest.approx(1 - expected, rel=1e-9)
        assert found["fvu"].detail["control_k"] == k and "l0" in found and found["l0"].controls == {}
        assert ("L0" in found["fvu"].detail["control_k_is"]) is (kind is not None)


@pytest.mark.slow
def test_members_of_a_bank_share_the_sums_and_have_the_controls_of_single_runs(toy, tmp_path):
    cells = {CELL: 12, "up_blocks.0@t10:empty:mean": 7}
    specs = [
        MemberSpec(name=f"{k}{cell[0]}", config=probe_of(k=k), cell=cell, d_in=width, seed=k)
        for cell, width in cells.items()
        for k in (2, 3)
    ]
    bank = SparseAutoencoderBankModule(specs, settings=settings_of())
    fit(bank, toy(), tmp_path / "bank")
    assert [member.sums_controls for member in bank.members] == [True, False, True, False]
    for spec, member in zip(specs, bank.members, strict=True):
        single = SparseAutoencoderModule(
            spec.config, cell=spec.cell, d_in=spec.d_in, settings=settings_of(), seed=spec.seed
        )
        fit(single, toy(), tmp_path / spec.name)
        assert [one.controls for one in member.records("test")] == [one.controls for one in single.records("test")]


def test_a_checkpoint_keeps_the_scale_and_one_without_it_loads():
    scale, other = scale_of({"train": data(0), "test": data(1)}), RowScale(5)
    assert scale.known and not other.known
    other.load_state_dict(scale.state_dict())
    assert other.mean.equal(scale.mean) and other.std.equal(scale.std)
    other.load_state_dict({})
    assert not other.known


def test_a_run_goes_on_from_a_checkpoint_without_the_scale(toy, tmp_path):
    first = SparseAutoencoderModule(probe_of(), cell=CELL, d_in=12, settings=settings_of())
    fit(first, toy(cells=(CELL,)), tmp_path / "first")
    old = {name: value for name, value in first.state_dict().items() if not name.startswith("row_scale.")}
    again = SparseAutoencoderModule(probe_of(), cell=CELL, d_in=12, settings=settings_of())
    again.load_state_dict(first.state_dict())
    assert not again.needs_statistics()  # a resumed run reads the training set no second time
    again.load_state_dict(old)
    assert again.needs_statistics()
    with quiet():
        trainer = make_trainer(again.settings, run_dir=tmp_path / "again")
        trainer.test(again, datamodule=toy(cells=(CELL,)), verbose=False)
    assert again.sae.W_dec.equal(first.sae.W_dec)
    assert again.records("test") == first.records("test")
