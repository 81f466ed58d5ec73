import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import NonFinite
from diffprobe.metrics.fvu import fvu
from diffprobe.probes.sae.topk import KSAE, Config
from diffprobe.training.fit import make_trainer, quiet
from diffprobe.training.sae import SparseAutoencoderModule

CELL = "mid_block@t10:empty:mean"


def run(toy, tmp_path, source=None, probe=None, start=None, **settings):
    source = source or toy(cells=(CELL,))
    settings = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 5, "learning_rate": 0.01} | settings
    config = TrainerConfig(**settings)
    probe = probe or Config(k=3, n_latents=32, dead_after=150, k_aux=4)
    module = SparseAutoencoderModule(probe, cell=CELL, d_in=12, settings=config)
    if start is not None:
        start(module)
    with quiet():
        trainer = make_trainer(config, run_dir=tmp_path)
        trainer.fit(module, datamodule=source)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
    return module


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_explains_more_and_keeps_its_promises(toy, tmp_path, precision):
    short = run(toy, tmp_path / "short", max_epochs=1, precision=precision)
    long = run(toy, tmp_path / "long", max_epochs=40, precision=precision)
    assert long.scores["train"]["fvu"] < 0.6 * short.scores["train"]["fvu"]
    torch.testing.assert_close(long.sae.W_dec.norm(dim=1), torch.ones(32))
    assert long.sae.W_enc.dtype == torch.float32
    records = {record.name: record for record in long.records("test")}
    assert 0 < records["l0"].value <= 3 and records["fvu"].n == 21
    assert records["explained_variance"].value == pytest.approx(1 - records["fvu"].value)


def test_reported_numbers_are_those_of_the_saved_weights(toy, tmp_path):
    module = run(toy, tmp_path)
    module.sae.save_pretrained(tmp_path / "sae")
    sae, x = KSAE.from_pretrained(tmp_path / "sae"), toy().table("test").features[CELL]
    with torch.no_grad():
        x_hat, code = sae(x)
    assert module.scores["test"]["fvu"] == pytest.approx(fvu(x, x_hat), rel=1e-6)
    used = code.indices[code.values > 0].unique().numel()
    assert module.scores["test"]["dead_fraction"] == pytest.approx(1 - used / 32)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))


def test_idle_counters_count_samples_and_evaluation_leaves_them_alone(toy, tmp_path):
    module = run(toy, tmp_path, max_epochs=2)
    source = toy(cells=(CELL,))
    before = module.idle.clone()
    assert int(before.max()) <= 2 * 91 and int(before.min()) < 16
    with quiet():
        make_trainer(module.settings, run_dir=tmp_path / "again").validate(module, datamodule=source, verbose=False)
    assert module.idle.equal(before)


def test_dead_latents_are_revived(toy, tmp_path):
    def train(weight):
        probe = Config(k=2, n_latents=24, dead_after=100, k_aux=6, aux_weight=weight)
        return run(toy, tmp_path / str(weight), probe=probe, max_epochs=25, start=sleepy)

    def sleepy(module):
        module.sae.b_enc.data[6:] = -2.0  # three in four latents lose every selection

    without, with_aux = train(0.0), train(1 / 32)
    assert int(without.dead.sum()) >= 8
    assert int(with_aux.dead.sum()) <= int(without.dead.sum()) / 2


def test_nan_is_named_by_cell(toy, tmp_path):
    class Broken(toy):
        def table(self, split):
            table = super().table(split)
            table.features[CELL][5, 2] = float("nan")
            return table

    with pytest.raises(NonFinite, match=rf"cell '{CELL}' has NaN or infinity in 1 samples, the first is 'train/5'"):
        run(toy, tmp_path, source=Broken(cells=(CELL,)))
