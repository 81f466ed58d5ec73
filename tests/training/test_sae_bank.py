from dataclasses import replace

import lightning
import pytest

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.sae import KSAE, batch_topk, jumprelu
from diffprobe.probes.sae import topk as plain
from diffprobe.probes.sae.topk import Config
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.sae_bank import MemberSpec, SparseAutoencoderBankModule
from diffprobe.training.trainer import make_trainer, quiet

KINDS = (plain, batch_topk)
WIDTHS = {"mid_block@t10:empty:mean": 12, "up_blocks.0@t10:empty:mean": 7}


def spec(cell, config, seed=0):
    name = f"{cell.replace(':', '.')},k={config.k},seed={seed}"
    return MemberSpec(name=name, config=config, cell=cell, d_in=WIDTHS[cell], seed=seed)


def topk(k, **settings):
    return Config(k=k, n_latents=24, dead_window=100, k_aux=4, **settings)


def grid():
    return [spec(cell, topk(k), seed) for cell in WIDTHS for k in (2, 3) for seed in (0, 1)]


def settings_of(**settings):
    return TrainerConfig(**{"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 3} | settings)


def fit(toy, tmp_path, module, *, evaluate=False, **arguments):
    source = toy()
    with quiet():
        trainer = make_trainer(module.settings, run_dir=tmp_path, **arguments)
        trainer.fit(module, datamodule=source)
        if evaluate:
            trainer.validate(module, datamodule=source, verbose=False)
            trainer.test(module, datamodule=source, verbose=False)
    return module


def alone(one, settings):
    return SparseAutoencoderModule(one.config, cell=one.cell, d_in=one.d_in, settings=settings, seed=one.seed)


def same(one, other):
    return all(a.equal(other.state_dict()[name]) for name, a in one.state_dict().items())


@pytest.mark.slow
def test_members_are_bit_for_bit_those_of_single_runs(toy, tmp_path):
    settings = settings_of()
    bank = fit(toy, tmp_path / "bank", SparseAutoencoderBankModule(grid(), settings=settings), evaluate=True)
    for one, member in zip(grid(), bank.members, strict=True):
        single = fit(toy, tmp_path / one.name, alone(one, settings), evaluate=True)
        assert same(single, member), one.name
        for split in ("train", "val", "test"):
            assert member.records(split) == single.records(split)
    assert len({float(member.sae.W_enc.detach().sum()) for member in bank.members}) == 8


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"gradient_clip": 0.05}, {"learning_rate": 0.02, "precision": "bf16-mixed"}])
def test_each_member_has_its_own_step_size_schedule_and_clipping(toy, tmp_path, settings):
    settings, (first, second) = settings_of(**settings), WIDTHS
    specs = [
        spec(first, topk(2, learning_rate=0.01, decay=0.0)),
        spec(second, topk(3, warmup_steps=5, adam_eps=1e-6)),
        spec(first, jumprelu.Config(k=4, n_latents=24, learning_rate=0.003)),
    ]
    bank = fit(toy, tmp_path / "bank", SparseAutoencoderBankModule(specs, settings=settings))
    for one, member in zip(specs, bank.members, strict=True):
        assert same(fit(toy, tmp_path / one.name, alone(one, settings)), member), one.name


@pytest.mark.slow
def test_all_members_share_one_pass_before_training_and_one_after_it(toy, tmp_path):
    asked = []

    class Counted(toy):
        def loader(self, split, *, shuffle, **place):
            asked.append((split, shuffle))
            return super().loader(split, shuffle=shuffle, **place)

    settings, cells = settings_of(max_epochs=1), list(WIDTHS)
    specs = [spec(cell, kind.Config(k=2, n_latents=24), seed) for cell in cells for kind in KINDS for seed in (0, 1)]
    specs = [replace(one, name=f"{i}") for i, one in enumerate(specs)]
    fit(Counted, tmp_path / "bank", SparseAutoencoderBankModule(specs, settings=settings), evaluate=True)
    of_bank = [split for split, shuffle in asked if not shuffle]
    asked.clear()
    fit(Counted, tmp_path / "alone", alone(specs[0], settings), evaluate=True)
    assert of_bank == [split for split, shuffle in asked if not shuffle] and of_bank.count("train") == 2


@pytest.mark.parametrize("settings", [{"datapoint_blend": 0.8, "init_samples": 40}, {"row_buffer": 30}])
def test_rows_that_members_start_from_are_those_of_single_runs(toy, tmp_path, settings):
    specs = [spec(cell, topk(2, **settings), seed) for cell in WIDTHS for seed in (0, 1)]
    bank = fit(toy, tmp_path / "bank", SparseAutoencoderBankModule(specs, settings=settings_of(max_epochs=1)))
    for one, member in zip(specs, bank.members, strict=True):
        assert same(fit(toy, tmp_path / one.name, alone(one, settings_of(max_epochs=1))), member), one.name


class Interrupt(lightning.Callback):
    """Stops the run after some steps, as a time limit does."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 11:
            raise RuntimeError("stopped")


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 4])  # after an epoch of 6 steps; in the middle of one
def test_resumed_equals_uninterrupted_bit_for_bit(toy, tmp_path, every):
    settings = settings_of(checkpoint_every_steps=every)
    whole = fit(toy, tmp_path / "whole", SparseAutoencoderBankModule(grid()[2:6], settings=settings))
    with pytest.raises(RuntimeError, match="stopped"):
        module = SparseAutoencoderBankModule(grid()[2:6], settings=settings)
        fit(toy, tmp_path / "cut", module, callbacks=[Interrupt()])
    second = SparseAutoencoderBankModule(grid()[2:6], settings=settings)
    with quiet():
        trainer = make_trainer(settings, run_dir=tmp_path / "cut")
        last = find_checkpoint(tmp_path / "cut", resume=True)
        trainer.fit(second, datamodule=toy(), ckpt_path=last, weights_only=True)
    assert trainer.global_step == 18 and same(whole, second)


def test_logs_and_files_carry_the_names_of_members(toy, tmp_path):
    specs = grid()[:2]
    bank = SparseAutoencoderBankModule(specs, settings=settings_of(max_epochs=2, log_every_steps=1))
    logged = {}

    class Watch(lightning.Callback):
        def on_train_end(self, trainer, module):
            logged.update(trainer.callback_metrics)

    fit(toy, tmp_path, bank, callbacks=[Watch()])
    for one in specs:
        names = ("train/loss", "train/windowed_dead_fraction", "val/fvu")
        assert {f"{one.name}/{name}" for name in names} <= set(logged)
    for one, member, path in zip(specs, bank.members, bank.save(tmp_path), strict=True):
        assert path.parent.name == one.name
        assert KSAE.from_pretrained(path).W_dec.equal(member.sae.W_dec)
    assert len(bank.records("val")) == 2 * len(bank.members[0].records("val"))


def test_faults_name_the_member(toy, tmp_path):
    settings, one = settings_of(), grid()[0]
    with pytest.raises(ConfigError, match="no members"):
        SparseAutoencoderBankModule([], settings=settings)
    with pytest.raises(ConfigError, match=one.name):
        SparseAutoencoderBankModule([one, one], settings=settings)
    with pytest.raises(ConfigError, match="precision=16-mixed"):
        SparseAutoencoderBankModule([one], settings=settings_of(precision="16-mixed"))
    with pytest.raises(ConfigError, match="^trainer.precision=bf16-true"):
        SparseAutoencoderBankModule([one], settings=settings_of(precision="bf16-true"))
    wide = spec(one.cell, topk(25))
    with pytest.raises(ConfigError, match=rf"{wide.name}: k = 25 .* n_latents = "):
        SparseAutoencoderBankModule([one, wide], settings=settings)

    class Broken(toy):
        def table(self, split):
            table = super().table(split)
            if split == broken:
                table.features[one.cell][5, 2] = float("nan")
            return table

    for broken in ("train", "val", "test"):
        with pytest.raises(NonFinite, match=rf"^{one.name}: cell '{one.cell}' has NaN or .* the first is '{broken}/5'"):
            module = SparseAutoencoderBankModule([one], settings=settings)
            fit(Broken, tmp_path / broken, module, evaluate=True)
