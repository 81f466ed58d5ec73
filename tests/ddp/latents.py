"""Trains one autoencoder whole or with its latents shared by all processes: run by test_latents.py.

LATENTS_WORLD=2 LATENTS_OUTPUT=folder LATENTS_STOP=5 python latents.py NAME...

NAME is a key of `RUNS`; after LATENTS_STOP steps a run breaks off. Another call continues it.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import lightning
from safetensors.torch import save_file

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.result import predictions_file
from diffprobe.probes.predictions import save_predictions
from diffprobe.probes.sae.topk import Config
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.sae_sharded import ShardedAutoencoderModule
from diffprobe.training.trainer import make_trainer, quiet

WORLD, OUTPUT = int(os.environ.get("LATENTS_WORLD", "1")), Path(os.environ.get("LATENTS_OUTPUT", "."))
STOP = int(os.environ.get("LATENTS_STOP", "-1"))
N_LATENTS = 33
RUNS = {"single": {}, "double": {"precision": "64-true"}, "half": {"precision": "bf16-mixed"}}

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)
CELL = "mid_block@t10:empty:mean"


def watched(base):
    class Watched(base):
        """Notes, step by step, which latents were chosen, how many are dead, and what was logged."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.chosen, self.n_dead, self.curves = [], [], []

        def log_dict(self, dictionary, *args, **kwargs):
            if "train/loss" in dictionary and self.trainer.training:
                self.curves.append({name: float(value) for name, value in dictionary.items()})
            super().log_dict(dictionary, *args, **kwargs)

        def account(self, out, batch):
            self.chosen.append(out.code.indices.tolist())
            self.n_dead.append(int(self.dead_latents.mask.sum()))
            return super().account(out, batch)

    return Watched


class Interrupt(lightning.Callback):
    """Ends the run as a fault would."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == STOP:
            raise RuntimeError("stopped on purpose")


def main(name):
    parallel = {"devices": WORLD, "strategy": "latents"} if WORLD > 1 else {}
    settings = TrainerConfig(
        accelerator="cpu",
        max_epochs=4,
        enable_progress_bar=False,
        checkpoint_every_steps=4,
        learning_rate=0.01,
        gradient_clip=0.5,
        weight_decay=0.01,
        **RUNS[name],
        **parallel,
    )
    config = Config(
        k=3, n_latents=N_LATENTS, dead_window=60, k_aux=4, multi_k_weight=0.125, datapoint_blend=0.5, row_buffer=20
    )
    base = ShardedAutoencoderModule if WORLD > 1 else SparseAutoencoderModule
    module = watched(base)(config, cell=CELL, d_in=12, settings=settings)
    folder = OUTPUT / name
    with quiet():
        trainer = make_trainer(settings, run_dir=folder, callbacks=[Interrupt()])
        source = toy.Toy(batch_size=16, cells=(CELL,))
        trainer.fit(module, datamodule=source, ckpt_path=find_checkpoint(folder, resume=True), weights_only=True)
        optimizer = trainer.optimizers[0].state_dict()["state"]
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
        module.save_together(folder)
    rank = trainer.global_rank
    if rank == 0:
        module.save(folder)
        for split, predictions in module.predictions.items():
            save_predictions(predictions, OUTPUT / f"{name}-{predictions_file(split)}")
    seen = {
        "chosen": module.chosen,
        "dead": module.n_dead,
        "curves": module.curves,
        "scores": module.scores,
        "records": [[r.name, r.split, r.n, r.value] for split in module.scores for r in module.records(split)],
        "elements": sum(part.numel() for part in module.parameters()),
        "state": sum(value.numel() for part in optimizer.values() for value in part.values()),
    }
    (OUTPUT / f"{name}-{rank}.json").write_text(json.dumps(seen))
    tensors = {key: value.clone().contiguous() for key, value in module.state_dict().items()}
    for i, part in optimizer.items():
        tensors |= {f"optimizer.{i}.{key}": value.clone() for key, value in part.items()}
    save_file(tensors, OUTPUT / f"{name}-{rank}.safetensors")


if __name__ == "__main__":
    for given in sys.argv[1:]:
        main(given)
