import lightning
import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.metrics.fvu import fvu
from diffprobe.probes.sae import timestep_topk
from diffprobe.probes.sae.transcoder import Config
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.sae_transcoder import AffineControl, TranscoderModule
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import SIZES, STEPS, Maps, Steps, Toy

X, Y = "mid_block@t10:empty:mean", "up_blocks.0@t10:empty:mean"


def run(source, tmp_path, probe=None, cells=(X, Y), widths=(12, 7), epochs=3, **settings):
    standard = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": epochs, "learning_rate": 0.01}
    config = TrainerConfig(**standard | settings)
    probe = probe or Config(k=3, n_latents=32, dead_window=150, k_aux=4, target_tap="up_blocks.0")
    module = TranscoderModule(
        probe, cell=[cells[0]], targets=[cells[1]], d_in=widths[0], d_out=widths[1], settings=config
    )  # fmt: skip
    with quiet():
        trainer = make_trainer(config, run_dir=tmp_path)
        trainer.fit(module, datamodule=source)
        trainer.test(module, datamodule=source, verbose=False)
    return module


@pytest.mark.parametrize("skip", [False, True])
def test_scores_and_control_are_those_of_the_target(toy, tmp_path, skip):
    probe = Config(k=3, n_latents=32, dead_window=150, k_aux=4, target_tap="up_blocks.0", skip=skip)
    module = run(toy(), tmp_path, probe)
    tables = {split: toy().table(split).features for split in ("train", "test")}
    with torch.no_grad():
        y_hat, _ = module.sae(tables["test"][X])
    record = next(record for record in module.records("test") if record.name == "fvu")
    assert record.value == pytest.approx(fvu(tables["test"][Y], y_hat), rel=1e-5)
    assert (record.cell, record.probe, record.n) == (X, "transcoder", SIZES["test"])
    x, y = tables["train"][X].double(), tables["train"][Y].double()
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    weights = torch.linalg.lstsq(torch.cat([x, ones], 1), y).solution
    x, y = tables["test"][X].double(), tables["test"][Y].double()
    affine = torch.cat([x, ones[: len(x)]], 1) @ weights
    assert record.controls["affine"] == pytest.approx(fvu(y, affine), rel=1e-6)
    assert "pca" not in record.controls


class Planted:
    """Mixed into a toy source: x holds 2 of 20 features, and y the images of them, which are no linear map of x."""

    def table(self, split):
        table = super().table(split)
        generator = torch.Generator().manual_seed(len(split))
        truth = torch.Generator().manual_seed(9)
        dictionary = torch.nn.functional.normalize(torch.randn(20, 12, generator=truth), dim=1)
        images = torch.nn.functional.normalize(torch.randn(20, 7, generator=truth), dim=1)
        n = len(table)
        active = torch.rand(n, 20, generator=generator).topk(2, dim=1).indices
        code = torch.zeros(n, 20).scatter(1, active, 1 + torch.rand(n, 2, generator=generator))
        table.features = {X: code @ dictionary, Y: code @ images}
        return table


@pytest.mark.slow
def test_a_planted_sparse_map_is_recovered(toy, tmp_path, monkeypatch):
    class Source(Planted, toy):
        pass

    for split in SIZES:
        monkeypatch.setitem(SIZES, split, 1500 if split == "train" else 300)
    probe = Config(k=2, n_latents=40, dead_window=3000, target_tap="up_blocks.0")
    module = run(Source(batch_size=128), tmp_path, probe, epochs=80, learning_rate=0.02)
    record = next(record for record in module.records("test") if record.name == "fvu")
    assert record.value < 0.15, record
    assert record.controls["affine"] > 0.25  # 20 features in 12 dimensions: no linear map separates them
    truth = torch.Generator().manual_seed(9)
    torch.randn(20, 12, generator=truth)
    images = torch.nn.functional.normalize(torch.randn(20, 7, generator=truth), dim=1)
    found = (images @ module.sae.W_dec.detach().T).amax(1)
    assert float(found.mean()) > 0.9


def test_places_are_aligned(tmp_path):
    """The target of a place is a function of the input at that place alone."""
    x_cell, y_cell = "up_blocks.0@t10:empty:none", "up_blocks.1@t10:empty:none"

    class Source(Maps):
        def table(self, split):
            table = super().table(split)
            maps = table.features[x_cell]
            table.features = {x_cell: maps, y_cell: torch.cat([2 * maps, -maps[:, :1]], 1)}
            return table

    source = Source(cells=(x_cell,))
    source.widths = {x_cell: 2, y_cell: 3}
    probe = Config(k=2, n_latents=8, dead_window=3000, target_tap="up_blocks.1", skip=True)
    module = run(source, tmp_path, probe, (x_cell, y_cell), (2, 3))
    record = next(record for record in module.records("test") if record.name == "fvu")
    assert record.n == 12 * SIZES["test"]
    assert record.controls["affine"] < 1e-6  # rows of two places would leave much


def test_the_order_of_samples_in_evaluation_does_not_matter(toy, tmp_path):
    class Reversed(toy):
        def table(self, split):
            table = super().table(split)
            return table if split == "train" else table.select(torch.arange(len(table) - 1, -1, -1))

    one, other = (run(source(), tmp_path / source.__name__) for source in (toy, Reversed))
    assert one.scores["test"]["fvu"] == pytest.approx(other.scores["test"]["fvu"], rel=1e-6)


@pytest.mark.parametrize("cell", [X, Y])
def test_nan_is_named_by_cell(toy, tmp_path, cell):
    class Broken(toy):
        def table(self, split):
            table = super().table(split)
            table.features[cell][5, 2] = float("nan")
            return table

    with pytest.raises(NonFinite, match=rf"cell '{cell}' has NaN or infinity in 1 samples, the first is 'train/5'"):
        run(Broken(), tmp_path)


def test_maps_of_other_sizes_are_refused(tmp_path):
    x_cell, y_cell = "up_blocks.0@t10:empty:none", "up_blocks.1@t10:empty:none"

    class Source(Maps):
        def table(self, split):
            table = super().table(split)
            maps = table.features[x_cell]
            table.features = {x_cell: maps, y_cell: maps[:, :, :2]}
            return table

    with pytest.raises(ConfigError, match=rf"{x_cell} and \d+ of {y_cell}"):
        run(Source(cells=(x_cell,)), tmp_path, cells=(x_cell, y_cell), widths=(2, 2))


def test_a_wide_affine_control_is_left_out_with_the_reason(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("diffprobe.training.sae_transcoder.MAX_NUMBERS", 10)
    module = run(toy(), tmp_path)
    record = next(record for record in module.records("test") if record.name == "fvu")
    assert record.controls.get("affine") is None
    assert "at most 10" in record.detail["controls_left_out"]["affine"]
    assert AffineControl((X,), 12, 7).left_out is not None


class Interrupt(lightning.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 9:
            raise RuntimeError("stopped")


def transcoder(settings):
    probe = Config(k=3, n_latents=32, dead_window=150, k_aux=4, target_tap="up_blocks.0", skip=True)
    return TranscoderModule(probe, cell=[X], targets=[Y], d_in=12, d_out=7, settings=settings), Toy()


def conditioned(settings):
    probe = timestep_topk.Config(k=3, n_latents=32, dead_window=150, k_aux=4)
    return SparseAutoencoderModule(probe, cell=STEPS, d_in=12, settings=settings), Steps()


@pytest.mark.parametrize("make", [transcoder, conditioned])
def test_an_interrupted_run_ends_with_the_weights_of_a_whole_one(make, tmp_path):
    settings = TrainerConfig(
        accelerator="cpu", enable_progress_bar=False, max_epochs=3, learning_rate=0.01, checkpoint_every_steps=4
    )  # fmt: skip
    (whole, source), (cut, of_cut), (second, of_second) = (make(settings) for _ in range(3))
    with quiet():
        make_trainer(settings, run_dir=tmp_path / "whole").fit(whole, datamodule=source)
        with pytest.raises(RuntimeError, match="stopped"):
            make_trainer(settings, run_dir=tmp_path / "cut", callbacks=[Interrupt()]).fit(cut, datamodule=of_cut)
        last = find_checkpoint(tmp_path / "cut", resume=True)
        trainer = make_trainer(settings, run_dir=tmp_path / "cut")
        trainer.fit(second, datamodule=of_second, ckpt_path=last, weights_only=True)
    assert trainer.global_step == 18
    for (name, one), other in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert one.equal(other), name
