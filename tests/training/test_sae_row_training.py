"""Training on rows other than one pooled vector per sample: places, tokens, draws, several timesteps."""

import lightning
import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.metrics.fvu import fvu
from diffprobe.probes.sae.batch_topk import Config as BatchConfig
from diffprobe.probes.sae.topk import Config
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.trainer import make_trainer, quiet

CELL = "mid_block@t10:empty:mean"
TOKENS = ("mid_block@t10:empty:tokens4", "mid_block@t90:empty:tokens4")


@pytest.fixture
def wide(toy):
    """Make a source of maps or tokens: the toy vectors at every place, with different noise in each cell."""

    class Wide(toy):
        def __init__(self, cells=TOKENS, shape=(4, 12), broken=False):
            super().__init__(cells=(CELL,))
            self.names, self.shape, self.broken = cells, shape, broken

        def table(self, split):
            table = super().table(split)
            x = table.features.pop(CELL)
            for i, name in enumerate(self.names):
                generator = torch.Generator().manual_seed(i)
                spread = torch.randn(len(x), *self.shape, generator=generator) * (1 + i)
                table.features[name] = spread + x.view(len(x), *[n if n == 12 else 1 for n in self.shape])
            if self.broken:
                table.features[self.names[-1]][5, 2] = float("nan")
            return table

    return Wide


def make(cell, probe=None, **settings):
    settings = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 3, "learning_rate": 0.01} | settings
    probe = probe or Config(k=3, n_latents=32, dead_window=150, k_aux=4)
    return SparseAutoencoderModule(probe, cell=cell, d_in=12, settings=TrainerConfig(**settings))


def run(module, source, run_dir):
    with quiet():
        trainer = make_trainer(module.settings, run_dir=run_dir)
        trainer.fit(module, datamodule=source)
        trainer.test(module, datamodule=source, verbose=False)
    return module


def test_one_place_a_sample_gives_the_weights_of_a_pooled_run(toy, wide, tmp_path):
    class OneToken(toy):
        def table(self, split):
            table = super().table(split)
            table.features = {"mid_block@t10:empty:tokens1": table.features[CELL][:, None]}
            return table

    probe = Config(k=3, n_latents=32, dead_window=150, k_aux=4, datapoint_blend=0.8, init_samples=50)
    pooled = run(make(CELL, probe), toy(cells=(CELL,)), tmp_path / "pooled")
    token = run(make("mid_block@t10:empty:tokens1", probe), OneToken(cells=(CELL,)), tmp_path / "token")
    for (name, one), other in zip(pooled.state_dict().items(), token.state_dict().values(), strict=True):
        assert one.equal(other), name
    assert pooled.scores == token.scores
    assert [(r.name, r.value, r.n) for r in pooled.records("train")] == [
        (r.name, r.value, r.n) for r in token.records("train")
    ]


@pytest.mark.parametrize(
    ("cell", "shape", "each"),
    [
        ("mid_block@t10:empty:tokens4", (4, 12), 4),
        ("mid_block@t10:empty:none", (12, 2, 3), 6),
        ("mid_block@t10:empty:mean", (2, 12), 2),
        ("mid_block@t10:empty:none", (2, 12, 2, 3), 12),
    ],
)
def test_tokens_maps_and_draws_train(wide, tmp_path, cell, shape, each):
    source = wide(cells=(cell,), shape=shape)
    first = run(make(cell, max_epochs=1, max_steps=1), source, tmp_path / "first")
    module = run(make(cell, max_epochs=6), source, tmp_path / "more")
    assert module.scores["train"]["fvu"] < 0.9 * first.scores["train"]["fvu"]
    assert module.scores["test"]["n"] == 21 * each and module.scores["train"]["n"] == 91 * each
    assert {record.cell for record in module.records("test")} == {cell}


def test_every_timestep_is_measured_beside_all(wide, tmp_path):
    source = wide()
    module = run(make(TOKENS), source, tmp_path)
    table = source.table("test")
    found = {(r.name, r.cell): r for r in module.records("test")}
    with torch.no_grad():
        for cells in (TOKENS[:1], TOKENS[1:], TOKENS):
            x = torch.cat([table.features[cell].reshape(-1, 12) for cell in cells])
            x_hat, code = module.sae(x)
            name = cells[0] if len(cells) == 1 else None
            assert found["fvu", name].value == pytest.approx(fvu(x, x_hat), rel=1e-5)
            assert found["l0", name].value == pytest.approx(float((code.values > 0).sum(1).float().mean()))
            used = code.indices[code.values > 0].unique().numel()
            assert found["dead_fraction", name].value == pytest.approx(1 - used / 32)
            gamma = x.double().mean(0).norm() / x.double().std(0, unbiased=False).norm()
            assert found["gamma", name].value == pytest.approx(float(gamma))
            histogram = found["dense_fraction", name].detail["histogram"]
            assert sum(histogram["counts"]) == used and histogram["n_never"] == 32 - used
            assert found["fvu", name].n == 84 * len(cells)
    assert len(found) == 18 and found["fvu", None].detail["cells"] == list(TOKENS)
    assert found["fvu", TOKENS[1]].value != found["fvu", TOKENS[0]].value


def test_idle_counters_count_rows(wide, tmp_path):
    module = make(TOKENS, Config(k=1, n_latents=64), max_steps=1)
    run(module, wide(), tmp_path)
    assert int(module.dead_latents.idle.max()) == 16 * 4 * 2


def test_cells_that_do_not_belong_together_are_refused():
    with pytest.raises(ConfigError, match="one tap .* these have 2"):
        make(("mid_block@t10:empty:mean", "up_blocks.0@t10:empty:mean"))


def test_nan_in_one_place_is_named_by_its_cell_and_sample(wide, tmp_path):
    with pytest.raises(NonFinite, match=r"cell 'mid_block@t90:empty:tokens4' .* in 1 samples, the first is 'train/5'"):
        run(make(TOKENS), wide(broken=True), tmp_path)


class Interrupt(lightning.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 11:
            raise RuntimeError("stopped")


@pytest.mark.slow
@pytest.mark.parametrize("probe", [Config, BatchConfig])
def test_a_run_with_a_buffer_mixes_and_resumes_bit_for_bit(wide, tmp_path, probe):
    probe = probe(k=3, n_latents=32, dead_window=400, k_aux=4, row_buffer=300)
    settings = {"checkpoint_every_steps": 4, "max_epochs": 4}
    with quiet():
        whole, cut, second = (make(TOKENS, probe, **settings) for _ in range(3))
        make_trainer(whole.settings, run_dir=tmp_path / "whole").fit(whole, datamodule=wide())
        with pytest.raises(RuntimeError, match="stopped"):
            trainer = make_trainer(cut.settings, run_dir=tmp_path / "cut", callbacks=[Interrupt()])
            trainer.fit(cut, datamodule=wide())
        last = find_checkpoint(tmp_path / "cut", resume=True)
        trainer = make_trainer(cut.settings, run_dir=tmp_path / "cut")
        trainer.fit(second, datamodule=wide(), ckpt_path=last, weights_only=True)
    assert trainer.global_step == 24 and int(second.row_buffer.drawn) == 24
    for (name, one), other in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert one.equal(other), name


def test_a_buffer_larger_than_the_training_set_is_refused(wide, tmp_path):
    with pytest.raises(ConfigError, match="729 rows; the training set has 728"):
        run(make(TOKENS, Config(k=3, n_latents=32, row_buffer=729)), wide(), tmp_path)
    with pytest.raises(ConfigError, match="row_buffer = -1"):
        Config(row_buffer=-1)
