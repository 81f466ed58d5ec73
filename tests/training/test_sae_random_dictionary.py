import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import RowValues
from diffprobe.metrics.fvu import fvu
from diffprobe.probes.sae import batch_topk, topk
from diffprobe.probes.sae.initialization import random_rows
from diffprobe.training import sae_random_dictionary
from diffprobe.training.sae import SparseAutoencoderModule, make_sae
from diffprobe.training.sae_random_dictionary import RandomDictionary
from diffprobe.training.trainer import make_trainer, quiet

CELL = "mid_block@t10:empty:mean"
CPU = torch.device("cpu")


def itself(tensor):
    return tensor


def sae(module=topk):
    return make_sae(module.Config(k=3, n_latents=24), 12, seed=0)


def code(x, mean, seed):
    """Code by a dense product and decode by a loop; return the centred reconstruction before its factor."""
    dictionary = random_rows(24, 12, seed=derive_seed("random_dictionary", seed)).double()
    found = torch.zeros_like(x)
    for row, out in zip(x - mean, found, strict=True):
        h = dictionary @ row
        for j in h.argsort(descending=True)[:3]:
            out += max(float(h[j]), 0.0) * dictionary[j]
    return found


def reconstruction(train, x, seed):
    mean = train.mean(0)
    guess = code(train, mean, seed)
    factor = ((train - mean) * guess).sum() / guess.square().sum()
    return mean + factor * code(x, mean, seed)


def test_a_run_records_the_random_dictionary_on_every_split(toy, tmp_path):
    source = toy(cells=(CELL,))
    settings = TrainerConfig(accelerator="cpu", enable_progress_bar=False, max_epochs=1)
    probe = topk.Config(k=3, n_latents=24, dead_window=40)
    module = SparseAutoencoderModule(probe, cell=CELL, d_in=12, settings=settings, seed=4)
    with quiet():
        trainer = make_trainer(settings, run_dir=tmp_path)
        trainer.fit(module, datamodule=source)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
    for split in ("train", "val", "test"):
        train, x = (source.table(name).features[CELL].double() for name in ("train", split))
        found = {one.name: one.controls for one in module.records(split)}
        expected = fvu(x, reconstruction(train, x, 4))
        assert found["fvu"]["random_dictionary"] == pytest.approx(expected, rel=1e-5) and expected < 1
        assert found["explained_variance"]["random_dictionary"] == pytest.approx(1 - expected, rel=1e-5)


def test_cells_and_processes_add_up():
    generator = torch.Generator().manual_seed(0)
    x, group = torch.randn(20, 12, generator=generator), torch.arange(20) % 2
    mean = x.double().mean(0)
    whole, *shares = (RandomDictionary(sae(), 2, seed=0) for _ in range(3))
    whole.update("train", RowValues(x, group, group, group), x, mean)
    whole.finish("train", itself, CPU)
    sums = []
    for rank, share in enumerate(shares):
        part = slice(rank * 7, 7 + rank * 13)
        share.update("train", RowValues(x[part], group[part], group[part], group[part]), x[part], mean)
        share.finish("train", lambda tensor: sums.append(tensor) or tensor, CPU)
    torch.testing.assert_close(sums[0] + sums[1], whole._found["train"], rtol=1e-6, atol=1e-6)
    parts = [whole.residual("train", place) for place in (0, 1)]
    assert sum(parts) == pytest.approx(whole.residual("train", None), rel=1e-12) and min(parts) > 0


def test_where_there_is_none_the_reason_is_given(monkeypatch):
    dictionary = RandomDictionary(sae(batch_topk), 1, seed=0)
    assert "active latents" in dictionary.left_out
    none = torch.zeros(4, dtype=torch.int64)
    dictionary.update("train", RowValues(torch.ones(4, 12), none, none, none), torch.ones(4, 12), torch.zeros(12))
    dictionary.finish("train", itself, CPU)
    assert not dictionary.has("train")
    monkeypatch.setattr(sae_random_dictionary, "MAX_WEIGHTS", 24 * 12 - 1)
    assert all(fact in RandomDictionary(sae(), 1, seed=0).left_out for fact in ("288 weights", "at most 287"))
