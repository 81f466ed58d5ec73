"""Kills of `diffprobe extract`, processes that race, a full disk: the finished store equals an undisturbed one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from diffprobe.core.digest import digest_file
from diffprobe.features.verify import verify_folder
from tests.faults.conftest import ROOT, delays, report, wait_for

pytestmark = pytest.mark.slow

N_CELLS, N_SHARDS = 12, 7


@pytest.fixture(scope="session")
def settings(tiny_sd, tiny_shards):
    return [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={tiny_shards}", "data.batch_size=2",
        "features.taps=[mid_block]", f"features.timesteps=[{','.join(str(30 * i) for i in range(N_CELLS))}]",
    ]  # fmt: skip


class Store:
    """An extraction into a folder."""

    def __init__(self, start, settings, root):
        self._start, self.root = start, root
        self.words = ["extract", "--quiet", *settings, f"features.store={root}"]

    def start(self, fault=None, **environ):
        return self._start(*self.words, fault=fault, **environ)

    def popen(self, *before):
        """Start it as a process of its own, after the words of another program."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return subprocess.Popen(
            [*before, sys.executable, "-m", "diffprobe", *self.words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environ,
        )  # fmt: skip

    def folder(self):
        return next(iter(sorted(self.root.glob("*"))), None)

    def complete(self):
        """The folders of complete shards, each with its identity on disk."""
        return {path.name: path.stat().st_ino for path in self.root.glob("*/*.tar")}

    def files(self):
        """Digest of each file of all stores, hidden ones included."""
        files = [path for path in self.root.rglob("*") if not path.is_dir()]
        return {str(path.relative_to(self.root)): digest_file(path) for path in sorted(files)}


@pytest.fixture
def store(start, settings, tmp_path):
    return lambda name, root=tmp_path: Store(start, settings, root / name)


@pytest.fixture(scope="session")
def undisturbed(server, settings, tmp_path_factory):
    """The files of the store without any fault, and the seconds that writing takes."""
    from tests.faults.conftest import Command

    folder = tmp_path_factory.mktemp("undisturbed")
    whole = Store(
        lambda *argv, fault: Command(server, list(argv), folder / "log.txt", {}, fault), settings, folder / "whole"
    )
    command = whole.start()
    assert wait_for(lambda: whole.folder() is not None, command=command)
    started = time.monotonic()
    assert command.wait() == 0, command.output()
    seconds = time.monotonic() - started
    assert len(whole.complete()) == N_SHARDS and verify_folder(whole.folder()) == []
    return whole.files(), seconds


def finish(store, files, counts):
    """Run the command again to its end, and count what became of the store."""
    before = store.complete()
    counts["tried"] += 1
    command = store.start()
    assert command.wait() == 0, command.output()
    judge(store, files, before, counts)


def judge(store, files, before, counts):
    found, after = store.files(), store.complete()
    counts["equal"] += found == files
    counts["lost"] += any(after.get(name) != identity for name, identity in before.items())
    counts["doubled"] += bool(set(found) - set(files))


def test_kills_at_random_points(store, undisturbed, capsys):
    files, seconds = undisturbed
    counts, written = Counter(), []
    for i, delay in enumerate(delays(10, seconds, seed=0)):
        killed = store(f"random-{i}")
        command = killed.start()
        if i % 5:  # the others are killed before there is a store
            wait_for(lambda: killed.folder() is not None, command=command)  # noqa: B023
        time.sleep(delay)
        command.send(signal.SIGKILL)
        command.wait()
        written.append(len(killed.complete()))
        finish(killed, files, counts)
    report(f"kills of an extraction at random points ({written} shards were complete)", counts, capsys)
    assert counts == Counter(tried=10, equal=10)


def test_several_kills_of_one_store(store, undisturbed, capsys):
    files, seconds = undisturbed
    killed, counts = store("often"), Counter()
    for delay in delays(5, seconds / 2, seed=1):
        command = killed.start()
        wait_for(lambda: any(killed.root.glob(POINTS["lock"][0])), command=command)
        time.sleep(delay)
        command.send(signal.SIGKILL)
        command.wait()
    finish(killed, files, counts)
    report("5 kills of one extraction", counts, capsys)
    assert counts == Counter(tried=1, equal=1)


POINTS = {
    "manifest": ("*/.manifest.json.*.tmp", 1),
    "lock": ("*/.writing-*.lock", 1),
    "folder": ("*/.writing-*/", 1),
    "cells": ("*/.writing-*/*.safetensors", 1),
    "half of samples": ("*/.writing-*/.samples.json.*.tmp", 1),
    "samples": ("*/.writing-*/samples.json", 1),
    "first shard": ("*/*.tar", 1),
    "last shard": ("*/*.tar", N_SHARDS),
}
"""What lies in the folder of stores at the moment of a kill: how many files of which kind."""


@pytest.mark.parametrize("place", ["the file system of TMPDIR", "another file system"])
def test_kills_at_aimed_points(store, undisturbed, tmp_path, capsys, mounted, place):
    files, _ = undisturbed
    root = mounted(64) if place.startswith("another") else tmp_path
    counts = Counter()
    for point, (pattern, count) in POINTS.items():
        killed = store(f"aimed-{point}", root)
        fault = {"kind": "files", "pattern": f"{killed.root}/{pattern}", "count": count}
        assert killed.start(TMPDIR=str(tmp_path), fault=fault).wait() == -signal.SIGKILL, point
        assert len(list(killed.root.glob(pattern))) >= count, point
        finish(killed, files, counts)
        shutil.rmtree(killed.root)
    report(f"kills of an extraction at aimed points on {place}", counts, capsys)
    assert counts == Counter(tried=len(POINTS), equal=len(POINTS))


def race(store, files, counts, *before, kill=False):
    """Run two processes on one store; the second starts when the first writes. Kill the first one or let it end."""
    first = store.popen(*before)
    assert wait_for(lambda: any(store.root.glob(POINTS["cells"][0]))), first.communicate()
    second = store.popen(*before)
    if kill:
        time.sleep(0.2)
        inner = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split()
        for pid in (*map(int, inner), first.pid):
            os.kill(pid, signal.SIGKILL)
    texts = [process.communicate(timeout=600) for process in (first, second)]
    counts["tried"] += 1
    assert second.returncode == 0, texts[1]
    assert first.returncode == 0 or kill, texts[0]
    found = store.files()
    counts["equal"] += found == files
    counts["lost"] += len(store.complete()) != N_SHARDS
    counts["doubled"] += bool(set(found) - set(files))


@pytest.mark.parametrize("kill", [False, True], ids=["both end", "one is killed"])
def test_two_processes_that_write_one_store(store, undisturbed, capsys, kill):
    counts = Counter()
    for i in range(2):
        race(store(f"race-{i}"), undisturbed[0], counts, kill=kill)
    report(f"two processes on one store, {'one of them killed' if kill else 'both to their end'}", counts, capsys)
    assert counts == Counter(tried=2, equal=2)


@pytest.mark.parametrize("kill", [False, True], ids=["both end", "one is killed"])
def test_containers_with_equal_host_names_and_process_numbers(store, undisturbed, capsys, kill):
    """Each process is number 1 of its own namespace, and both see one host name."""
    enter = ["unshare", "-p", "-f", "--mount-proc"]
    tried = shutil.which(enter[0]) and subprocess.run([*enter, "true"], capture_output=True, text=True)
    if not tried or tried.returncode != 0:
        pytest.skip(f"no PID namespace can be made here: {tried.stderr.strip() if tried else 'no unshare'}")
    counts = Counter()
    for i in range(2):
        race(store(f"space-{i}"), undisturbed[0], counts, *enter, kill=kill)
    report(f"two PID namespaces on one store, {'one killed' if kill else 'both to their end'}", counts, capsys)
    assert counts == Counter(tried=2, equal=2)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_computed(store, undisturbed, mounted):
    small = store("small", mounted(1))
    (small.root.parent / "ballast").write_bytes(bytes(1012 << 10))
    command = small.start()
    assert command.wait() == 2
    assert command.output().startswith("RunFailed: ") and "Traceback" not in command.output()
    assert not small.complete()


def test_a_disk_that_fills_up_keeps_complete_shards(store, undisturbed, mounted, capsys):
    files, _ = undisturbed
    full = store("full", mounted(8))
    command = full.start()
    assert wait_for(lambda: len(full.complete()) >= 2, command=command), command.output()
    fill(full.root.parent / "ballast")
    assert command.wait() == 2
    lines = command.output().splitlines()
    assert lines[0].startswith("RunFailed: the disk of '") and all(line.startswith("  ") for line in lines[1:]), lines
    assert "complete and kept: " in command.output()
    assert len(full.complete()) >= 2
    (full.root.parent / "ballast").unlink()
    counts = Counter()
    finish(full, files, counts)
    report("full disk of an extraction", counts, capsys)
    assert counts == Counter(tried=1, equal=1)


def fill(path):
    """Write until the disk is full."""
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
