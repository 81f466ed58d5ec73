"""Sparse autoencoders on a permutation of single rows: placement, interruption, faults, banks."""

import lightning
import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.features.batch import FeatureTable
from diffprobe.features.placement import place_tables
from diffprobe.features.stored import RowLoader, StoredRows
from diffprobe.probes.classifier import linear
from diffprobe.probes.sae.batch_topk import Config as BatchConfig
from diffprobe.probes.sae.topk import Config
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.sae_bank import MemberSpec, SparseAutoencoderBankModule
from diffprobe.training.trainer import make_trainer, quiet

pytestmark = pytest.mark.slow

POOLED = "mid_block@t10:empty:mean"
MAPS = ("mid_block@t10:empty:none", "mid_block@t90:empty:none")


@pytest.fixture
def shuffled(toy):
    """Make a source whose training batches are single rows of maps 12 x 2 x 3, kept as `mode` says."""

    class Shuffled(toy):
        def __init__(self, cells=MAPS, mode="mapped", broken=False, rows=True):
            super().__init__(cells=(POOLED,))
            self.names, self.mode, self.broken, self.rows = cells, mode, broken, rows

        def tables(self, split):
            whole, tables = super().table(split), []
            x = whole.features[POOLED][..., None, None]
            for part in torch.arange(len(whole)).split(40):
                features = {}
                for i, cell in enumerate(self.names):
                    generator = torch.Generator().manual_seed(i)
                    features[cell] = (x + torch.randn(len(whole), 12, 2, 3, generator=generator) * (1 + i))[part]
                keys = [whole.keys[row] for row in part.tolist()]
                tables.append(
                    FeatureTable(features, keys, whole.label[part], {"style": whole.attributes["style"][part]})
                )
            return tables

        def loader(self, split, *, shuffle, rank=0, world_size=1, epoch=0):
            loader = super().loader(split, shuffle=shuffle, rank=rank, world_size=world_size, epoch=epoch)
            loader.rows = StoredRows(place_tables(self.tables(split), self.mode, split=split))
            if not shuffle or not self.rows:
                return loader
            if self.broken:  # after the first pass: in one row of the second table
                loader.rows.tables[1].features[MAPS[1]][5, :, 1, 2] = float("nan")
            return RowLoader(loader.rows, self.batch_size, epoch, seed=self.seed, rank=rank, world_size=world_size)

    return Shuffled


def settings(**changes):
    defaults = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 2, "learning_rate": 0.01}
    return TrainerConfig(**defaults | changes)


def make(cell=MAPS, probe=None, **changes):
    probe = probe or Config(k=3, n_latents=32, dead_window=400, k_aux=4)
    return SparseAutoencoderModule(probe, cell=cell, d_in=12, settings=settings(**changes))


def fit(module, source, run_dir, **options):
    with quiet():
        trainer = make_trainer(module.settings, run_dir=run_dir, callbacks=options.pop("callbacks", ()))
        trainer.fit(module, datamodule=source, **options)
    return module


def assert_same(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert a.equal(b), name


def test_the_weights_are_the_same_wherever_the_rows_are_kept(shuffled, tmp_path):
    first = fit(make(), shuffled(), tmp_path / "mapped")
    for mode in ("memory", "device"):
        assert_same(first, fit(make(), shuffled(mode=mode), tmp_path / mode))


def test_rows_start_where_samples_start_and_take_as_many_steps(shuffled, tmp_path):
    class Starts(lightning.Callback):
        def on_train_start(self, trainer, module):
            starts.append([value.clone() for value in module.state_dict().values()])

        def on_train_end(self, trainer, module):
            steps.append(trainer.global_step)

    probe, starts, steps = Config(k=3, n_latents=32, datapoint_blend=0.8, init_samples=50), [], []
    modules = [
        fit(make(probe=probe), shuffled(rows=rows), tmp_path / str(rows), callbacks=[Starts()])
        for rows in (True, False)
    ]
    assert all(one.equal(other) for one, other in zip(*starts, strict=True)) and steps == [12, 12]
    weights = [module.sae.state_dict() for module in modules]
    assert any(not a.equal(b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


@pytest.mark.parametrize("probe", [Config, BatchConfig])
def test_an_interrupted_epoch_continues_bit_for_bit(shuffled, tmp_path, probe):
    class Interrupt(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 9:
                raise RuntimeError("stopped")

    probe = probe(k=3, n_latents=32, dead_window=400, k_aux=4)
    whole, cut, second = (make(probe=probe, checkpoint_every_steps=4) for _ in range(3))
    fit(whole, shuffled(), tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        fit(cut, shuffled(), tmp_path / "cut", callbacks=[Interrupt()])
    last = find_checkpoint(tmp_path / "cut", resume=True)
    fit(second, shuffled(mode="memory"), tmp_path / "cut", ckpt_path=last, weights_only=True)
    assert second.trainer.global_step == 12
    assert_same(whole, second)


def test_members_of_a_bank_get_the_rows_that_they_would_get_alone(shuffled, tmp_path):
    probe = Config(k=3, n_latents=32)
    specs = [MemberSpec(name=cell[10:13], config=probe, cell=cell, d_in=12, seed=0) for cell in MAPS]
    bank = fit(SparseAutoencoderBankModule(specs, settings=settings()), shuffled(), tmp_path / "bank")
    for cell, member in zip(MAPS, bank.members, strict=True):
        alone = fit(make(cell, probe), shuffled(cells=(cell,) if cell == MAPS[0] else MAPS), tmp_path / cell[10:13])
        assert_same(alone.sae, member.sae)


def test_a_fault_in_one_row_is_named_by_its_cell_and_sample(shuffled, tmp_path):
    with pytest.raises(NonFinite, match=r"cell 'mid_block@t90:empty:none' .* in 1 samples, the first is 'train/45'"):
        fit(make(), shuffled(broken=True), tmp_path)


def test_a_probe_of_whole_samples_refuses_single_rows(shuffled, toy, tmp_path):
    classes = {"label": ("a", "b", "c", "d")}
    classifier = ClassifierModule("linear", linear.Config(), widths={POOLED: 12}, classes=classes, settings=settings())

    class Mixed(shuffled):
        def loader(self, split, *, shuffle, **options):
            return (
                super().loader(split, shuffle=True, **options)
                if shuffle
                else toy.loader(self, split, shuffle=False, **options)
            )

        def table(self, split):
            return toy(cells=(POOLED,)).table(split)

    with pytest.raises(ConfigError, match="whole samples"):
        fit(classifier, Mixed(), tmp_path)
