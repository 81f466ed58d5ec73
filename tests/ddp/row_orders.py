"""Trains autoencoders whose rows are mixed, by a row buffer or by a permutation: run by test_row_orders.py.

ROWS_WORLD=2 ROWS_OUTPUT=folder ROWS_STOP=5 python row_orders.py NAME...

NAME is `shuffle` or `buffer`; after ROWS_STOP steps a run breaks off. Another call continues it.
"""

import importlib.util
import os
import sys
from pathlib import Path

import lightning
import torch
from safetensors.torch import save_file

from diffprobe.config.schema import TrainerConfig
from diffprobe.features.batch import FeatureTable
from diffprobe.features.placement import place_tables
from diffprobe.features.stored import RowLoader, StoredRows
from diffprobe.probes.sae.topk import Config
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.trainer import make_trainer, quiet

WORLD, OUTPUT = int(os.environ.get("ROWS_WORLD", "1")), Path(os.environ.get("ROWS_OUTPUT", "."))
STOP = int(os.environ.get("ROWS_STOP", "-1"))
GLOBAL_BATCH = 16
POOLED, TOKENS = "mid_block@t10:empty:mean", "mid_block@t10:empty:tokens3"

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)
toy.SIZES["train"] = 92  # 276 rows: two processes need no repeated one


class Tokens(toy.Toy):
    """Three tokens a sample; the training batches are single rows where `rows` says so."""

    def __init__(self, rows):
        super().__init__(batch_size=GLOBAL_BATCH // WORLD, cells=(POOLED,))
        self.rows = rows

    def table(self, split):
        table = super().table(split)
        x = table.features.pop(POOLED)[:, None]
        table.features[TOKENS] = x + torch.randn(len(x), 3, 12, generator=torch.Generator().manual_seed(0))
        return table

    def loader(self, split, *, shuffle, rank=0, world_size=1, epoch=0):
        if not (shuffle and self.rows):
            return super().loader(split, shuffle=shuffle, rank=rank, world_size=world_size, epoch=epoch)
        table = self.table(split)
        features = [{TOKENS: part} for part in table.features[TOKENS].split(50)]
        keys, labels = [table.keys[:50], table.keys[50:]], table.label.split(50)
        parts = [FeatureTable(*found, {}) for found in zip(features, keys, labels, strict=True)]
        rows = StoredRows(place_tables(parts, "mapped", split=split))
        return RowLoader(rows, self.batch_size, epoch, seed=self.seed, rank=rank, world_size=world_size)


class Interrupt(lightning.Callback):
    """Ends the run as a fault would."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == STOP:
            raise RuntimeError("stopped on purpose")


def main(name):
    parallel = {"devices": WORLD, "strategy": "ddp"} if WORLD > 1 else {}
    settings = TrainerConfig(
        accelerator="cpu",
        max_epochs=2,
        enable_progress_bar=False,
        checkpoint_every_steps=2,
        learning_rate=0.01,
        **parallel,
    )
    probe = Config(k=3, n_latents=32, dead_window=300, k_aux=4, row_buffer=60 if name == "buffer" else 0)
    module = SparseAutoencoderModule(probe, cell=TOKENS, d_in=12, settings=settings)
    folder = OUTPUT / name
    with quiet():
        trainer = make_trainer(settings, run_dir=folder, callbacks=[Interrupt()])
        last = find_checkpoint(folder, resume=True)
        trainer.fit(module, datamodule=Tokens(name == "shuffle"), ckpt_path=last, weights_only=True)
    tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
    if module.row_buffer is not None:
        tensors |= {"held": module.row_buffer.held, "drawn": torch.tensor(module.row_buffer.drawn)}
    save_file(tensors, OUTPUT / f"{name}.{trainer.global_rank}.safetensors")


if __name__ == "__main__":
    for given in sys.argv[1:]:
        main(given)
