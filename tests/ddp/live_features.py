"""Trains probes on live features, and notes what each process was shown: run by test_ddp_live.py and
test_uneven_shards.py, and which massive channels it found: by test_massive.py.

LIVE_WORLD=2 LIVE_OUTPUT=folder LIVE_BATCH=10 LIVE_PROBES=classifier,direction python live_features.py SETTING...
"""

import json
import os
import sys
from pathlib import Path

import lightning

from diffprobe.config.compose import load_run
from diffprobe.features.massive_channels import to_recorded
from diffprobe.runs.train import train

WORLD, OUTPUT = int(os.environ.get("LIVE_WORLD", "1")), Path(os.environ.get("LIVE_OUTPUT", "."))
GLOBAL_BATCH = int(
    os.environ.get("LIVE_BATCH", "10")
)  # all of the training set: the order of a stream depends on the number of processes
PROBES = {
    "classifier": ["probe=linear", "probe.targets=[style,group]"],
    "sae": ["probe=topk", "probe.params.k=4", "probe.params.n_latents=32", "probe.params.dead_window=100"],
    "direction": ["probe=mean_difference", "probe.targets=[style]", "probe.params.positive=noto"],
}


class Seen(lightning.Callback):
    """Notes the keys that this process was given: in all training steps, and in the last evaluation of each split."""

    def __init__(self):
        self.keys = {"train": [], "val": [], "test": []}

    def on_train_start(self, trainer, module):
        found = trainer.datamodule.request.massive
        self.keys["massive"] = None if found is None else to_recorded(*found)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.keys["train"] += [[trainer.current_epoch, key] for key in batch.keys]

    def on_validation_epoch_start(self, trainer, module):
        self.keys["val"] = []

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.keys["val"] += batch.keys

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.keys["test"] += batch.keys


def main(settings):
    parallel = ["trainer=ddp_cpu", f"trainer.devices={WORLD}"] if WORLD > 1 else []
    for name in os.environ.get("LIVE_PROBES", "classifier,direction").split(","):
        probe, seen, own = PROBES[name], Seen(), [f"data.batch_size={GLOBAL_BATCH // WORLD}", f"output={OUTPUT / name}"]
        train(load_run(None, [*settings, *probe, *parallel, *own]), callbacks=[seen])
        rank = os.environ.get("LOCAL_RANK", "0")
        (OUTPUT / f"{name}-{rank}.json").write_text(json.dumps(seen.keys))


if __name__ == "__main__":
    main(sys.argv[1:])
