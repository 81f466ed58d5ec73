"""Write a toy store in processes that can be killed: `python -m tests.faults.store_writer`, one request per line.

A request is JSON: root, process, and optionally the name of a function at whose n-th call the process kills itself. The
answer is the process number. `python -m tests.faults.store_writer ROOT I N SECONDS` writes one part and ends.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from diffprobe.features import tensor_file, writer
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.manifest import Manifest, ShardEntry
from diffprobe.features.writer import ExtractedBatch, StoreWriter

CELLS = {"mid_block@t10:empty:mean": 3, "up_blocks.0@t10:empty:mean": 5}
N_SHARDS, N_SAMPLES = 6, 5
PLACES = {
    "mkdir": (Path, "mkdir"),
    "append": (tensor_file.RowWriter, "append"),
    "close": (tensor_file.RowWriter, "close"),
    "replace": (os, "replace"),
    "rename": (os, "rename"),
    "fsync": (os, "fsync"),
    "rmtree": (writer.shutil, "rmtree"),
    "unlink": (Path, "unlink"),
}
"""Name -> the function at whose calls a process may be killed."""


def toy_manifest() -> Manifest:
    """Return the manifest of the toy store."""
    shards = tuple(
        ShardEntry(file=f"train-{i:04d}.tar", split="train", n=N_SAMPLES, sha256=f"{i:064x}") for i in range(N_SHARDS)
    )
    recorded = {"backbone": "b", "data": "d", "licence": "l", "classes": ["x"], "attributes": {}, "versions": {}}
    return Manifest(
        backbone={"seed": 0}, cells=dict(CELLS), data={"shard_set": "0" * 64}, shards=shards, recorded=recorded
    )


def batches(shard: ShardEntry, seconds: float = 0.0) -> Iterator[ExtractedBatch]:
    """Yield the toy features of a shard, waiting before each batch."""
    import torch

    for i in range(shard.n):
        time.sleep(seconds)
        features = {c: torch.sin(torch.arange(w) + i + int(shard.sha256, 16))[None] for c, w in CELLS.items()}
        yield ExtractedBatch(FeatureBatch(features, [f"{shard.file}/{i}"], torch.zeros(1).long(), {}), [""])


def write(root: Path, process: tuple[int, int] = (0, 1), seconds: float = 0.0) -> Path:
    """Write the missing shards of one part, as `extract` does."""
    store = StoreWriter(root, toy_manifest())
    for shard in store.pending(process):
        store.write(shard, batches(shard, seconds))
    store.finish()
    return store.path


def die_at(place: str, number: int) -> None:
    """Kill this process when the function is called for the n-th time: before it runs for even, after it for odd n."""
    owner, name = PLACES[place]
    inner: Callable[..., object] = getattr(owner, name)
    calls = 0

    def counted(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number and number % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = inner(*args, **options)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def serve() -> None:
    """Fork for each request; a line `wait PID` answers with the exit status."""
    import torch

    torch.zeros(1)
    for line in sys.stdin:
        if line.startswith("wait "):
            status = os.waitpid(int(line.split()[1]), 0)[1]
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                if "place" in request:
                    die_at(request["place"], request["number"])
                write(Path(request["root"]), tuple(request["process"]), request["seconds"])
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                os._exit(3)
        print(child, flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(f"{os.getpid()} {os.uname().nodename}", flush=True)
        write(Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3])), float(sys.argv[4]))
    else:
        serve()
