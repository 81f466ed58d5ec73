"""The command of a job in the tests: diffprobe, which logs the keys of each training step, and takes its time.

python tests/slurm/watched.py train ...     with $WATCHED_LOG=FILE, $WATCHED_SECONDS per step or shard, and
$WATCHED_START seconds before anything is imported at the first start
"""

import functools
import json
import os
import sys
import time
from pathlib import Path

if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    time.sleep(float(os.environ.get("WATCHED_START", "0")))

import lightning


class Watch(lightning.Callback):
    """Appends one JSON line per training step: process, start of the job, epoch, step, keys of the samples."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        line = {
            "rank": trainer.global_rank,
            "start": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "keys": list(batch.keys),
        }
        with open(os.environ["WATCHED_LOG"], "a") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(float(os.environ.get("WATCHED_SECONDS", "0")))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from diffprobe.cli.main import main
    from diffprobe.features.writer import StoreWriter
    from diffprobe.runs import train

    write = StoreWriter.write

    def write_slowly(*args, **options):
        time.sleep(float(os.environ.get("WATCHED_SECONDS", "0")))
        write(*args, **options)

    StoreWriter.write = write_slowly
    train.train = functools.partial(train.train, callbacks=[Watch()])
    sys.exit(main())
