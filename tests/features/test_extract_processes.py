"""Equal bytes from any number of simultaneous processes, also after they were killed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from diffprobe.core.errors import StoreIncomplete
from diffprobe.features.extract import extract
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request

# One interpreter starts the extracting processes, so that the imports are paid for once. Each reports its progress, so
# that it can be killed there, and how much memory it took.
RUN = """
import json, os, resource, sys
from diffprobe.config.parse import parse
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.features import extract as module

def say(*words):  # in one write, so that lines of several processes are not mixed
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def configs(text):
    return tuple(map(parse, (BackboneConfig, DataConfig, FeaturesConfig), json.loads(text)))

for name in ("shard_loader", "to_features"):
    def spoken(*args, _inner=getattr(module, name), _name=name):
        say(os.getpid(), _name)
        return _inner(*args)
    setattr(module, name, spoken)
module.Request(*configs(sys.argv[1])).extractor  # brings in what would be imported in each of them
for line in sys.stdin:
    words = line.split(maxsplit=3)
    if words[0] == "start":
        child = os.fork()
        if child == 0:
            module.extract(*configs(words[3]), process=(int(words[1]), int(words[2])), progress=False)
            say(os.getpid(), "peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            os._exit(0)
        say(child, "started")
    else:
        say(*os.waitpid(int(words[1]), 0), "ended")
"""


class Processes:
    """Extracting processes, by number."""

    def __init__(self, launcher):
        self.launcher, self.waiting = launcher, []

    def start(self, configs, index=0, count=1):
        text = json.dumps([asdict(part) for part in configs])
        self.launcher.stdin.write(f"start {index} {count} {text}\n")
        self.launcher.stdin.flush()
        return int(self.heard(lambda words: words[1] == "started")[0])

    def wait(self, process):
        """Wait for the end of a process and return its exit status."""
        self.launcher.stdin.write(f"wait {process}\n")
        self.launcher.stdin.flush()
        return int(self.heard(lambda words: words[-1] == "ended" and int(words[0]) == process)[1])

    def wait_for_lines(self, process, n):
        """Wait until a process has reported n times, or has ended."""
        for _ in range(n):
            words = self.heard(lambda words: int(words[0]) == process and words[1] != "started")
            if words[1] == "peak":
                return

    def heard(self, fits):
        """Return the next line that fits; the others wait for whom they concern."""
        for i, words in enumerate(self.waiting):
            if fits(words):
                return self.waiting.pop(i)
        while True:
            line = self.launcher.stdout.readline()
            assert line, "the launcher ended early"
            words = line.split()
            if fits(words):
                return words
            self.waiting.append(words)


@pytest.fixture(scope="module")
def processes(filled):
    command = [sys.executable, "-c", RUN, json.dumps([asdict(part) for part in filled])]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env) as launcher:
        yield Processes(launcher)
        launcher.stdin.close()


@pytest.fixture(scope="module")
def one_thread():
    """Bytes are compared with those of processes of one thread: their number changes the rounding."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_killed_at_random_points_and_resumed_the_store_is_byte_identical(
    alone, configs, tmp_path, file_bytes, processes
):
    generator = random.Random(0)
    parts = configs(features_store=str(tmp_path / "killed"))
    # 7 shards of 1 to 2 batches: the points are in the first shard, after it, and a moment later
    for n_lines, seconds in [(2, 0.0), (4, generator.random() * 0.02), (3, generator.random() * 0.02)]:
        process = processes.start(parts)
        processes.wait_for_lines(process, n_lines)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        assert processes.wait(process) == signal.SIGKILL
    with pytest.raises(StoreIncomplete):
        FeatureStore.find(tmp_path / "killed", Request(*parts).manifest)
    resumed = extract(*parts, progress=False)
    assert file_bytes(resumed) == file_bytes(alone)
    assert FeatureStore.open(resumed).verify() == []


@pytest.mark.slow
@pytest.mark.parametrize(("count", "latents"), [(1, True), (2, False), (2, True), (3, False)])
def test_processes_at_the_same_time_one_of_them_killed_give_the_bytes_of_one(
    alone, configs, tmp_path, file_bytes, processes, count, latents
):
    generator = random.Random(count)
    kept = {"features_latent_cache": str(tmp_path / "latents")} if latents else {}
    parts = configs(features_store=str(tmp_path / "many"), **kept)
    order = generator.sample(range(count), count)
    started = [processes.start(parts, index, count) for index in order]
    processes.wait_for_lines(started[0], generator.randint(1, 4))
    with contextlib.suppress(ProcessLookupError):
        os.kill(started[0], signal.SIGKILL)
    assert processes.wait(started[0]) in (0, signal.SIGKILL)
    again = processes.start(parts, order[0], count)
    assert [processes.wait(process) for process in [*started[1:], again]] == [0] * count
    (path,) = (tmp_path / "many").iterdir()
    assert file_bytes(path) == file_bytes(alone)
    for root in tmp_path.iterdir():
        (folder,) = root.iterdir()
        assert FeatureStore.open(folder, kind=None).verify() == []


@pytest.mark.slow
def test_parts_one_after_the_other_in_any_order_give_the_bytes_of_the_whole(
    alone, configs, tmp_path, file_bytes, one_thread
):
    for order in ([2, 0, 1], [1, 2, 0]):
        parts = configs(features_store=str(tmp_path / "".join(map(str, order))))
        for index in order:
            path = extract(*parts, process=(index, 3), progress=False)
            assert bool(FeatureStore.open(path).missing()) == (index != order[-1])
        assert file_bytes(path) == file_bytes(alone)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux")
@pytest.mark.parametrize("latents", [False, True])
def test_peak_memory_does_not_grow_with_the_number_of_images(configs, many_images, tmp_path, processes, latents):
    """Features of 512 images would take 25 MB, their latents 2 MB, the images 6 MB."""
    peaks = {}
    for n in (64, 512):
        kept = {"features_latent_cache": str(tmp_path / f"latents-{n}")} if latents else {}
        parts = configs(
            data_path=str(many_images(n)),
            data_val_split="train",
            data_test_split="train",
            data_batch_size=16,
            features_taps=("up_blocks.1", "up_blocks.2"),
            features_timesteps=(20,),
            features_pool="none",
            features_store=str(tmp_path / str(n)),
            **kept,
        )
        process = processes.start(parts)
        peaks[n] = int(processes.heard(lambda words, own=process: words[:2] == [str(own), "peak"])[2]) / 1000
        assert processes.wait(process) == 0
    assert peaks[512] - peaks[64] < 6, peaks


@pytest.fixture
def many_images(tiny_shards, tmp_path):
    """Make a shard set of one shard with n small images."""
    from diffprobe.shards.index import build_index
    from diffprobe.shards.reader import read_shard
    from diffprobe.shards.writer import write_shard

    def make(n):
        root = tmp_path / f"images-{n}"
        root.mkdir()
        raws = list(read_shard(tiny_shards / "train-0000.tar"))
        write_shard(root / "train-0000.tar", [(f"many/{i:04d}", raws[i % len(raws)].files) for i in range(n)])
        build_index(root, name="many", licence="none")
        return root

    return make
