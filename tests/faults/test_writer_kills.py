"""Kills while stores are written, equal process numbers, a full disk: nothing lost, nothing doubled, equal bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffprobe.core.errors import RunFailed
from diffprobe.features.verify import verify_folder
from diffprobe.features.writer import StoreWriter
from tests.faults.store_writer import PLACES, batches, toy_manifest, write

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
Bytes = dict[str, bytes]


class Launcher:
    """Starts writers, and waits for them."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        assert server.stdin is not None and server.stdout is not None
        self._stdin, self._stdout = server.stdin, server.stdout

    def _ask(self, line: str) -> int:
        self._stdin.write(line + "\n")
        self._stdin.flush()
        return int(self._stdout.readline())

    def start(self, root: Path, process: tuple[int, int] = (0, 1), seconds: float = 0.0, **aim: object) -> int:
        return self._ask(json.dumps({"root": str(root), "process": process, "seconds": seconds, **aim}))

    def wait(self, pid: int) -> int:
        return self._ask(f"wait {pid}")


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    command = [sys.executable, "-m", "tests.faults.store_writer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        yield Launcher(server)
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    return content(tmp_path_factory.mktemp("whole"), write(tmp_path_factory.mktemp("whole")))


def content(root: Path, path: Path | None = None) -> Bytes:
    """Return relative name -> bytes of a store, temporary names included."""
    path = path or root / toy_manifest().folder
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def finish(root: Path, whole: Bytes, counts: Counter[str]) -> None:
    """Write the rest, and count what became of the store."""
    path = root / toy_manifest().folder
    complete = (
        {p.name for p in path.iterdir() if not p.name.startswith(".")} - {"manifest.json"} if path.exists() else set()
    )
    written = {name: content(root).get(name) for name in whole if name.split("/")[0] in complete}
    counts["lost"] += any(whole[name] != data for name, data in written.items())  # what looks complete has to be
    write(root)
    found = content(root)
    counts["tried"] += 1
    counts["equal"] += found == whole
    counts["doubled"] += len(set(found) - set(whole)) > 0
    counts["lost"] += len(set(whole) - set(found)) > 0
    assert verify_folder(path) == []


def report(what: str, counts: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{what}: " + ", ".join(f"{counts[name]} {name}" for name in ("tried", "equal", "lost", "doubled")))


def test_kills_aimed_at_every_step_of_writing(
    launcher: Launcher, whole: Bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: Counter[str] = Counter()
    for place in PLACES:
        for number in (1, 2, 3, 4, 7, 12):
            root = tmp_path / f"{place}-{number}"
            root.mkdir()
            status = launcher.wait(launcher.start(root, place=place, number=number))
            assert status in (0, -signal.SIGKILL), (place, number, status)
            finish(root, whole, counts)
            shutil.rmtree(root)
    report("kills aimed at a step of writing a store", counts, capsys)
    assert counts == Counter(tried=48, equal=48, lost=0, doubled=0)


def test_kills_at_random_points_of_processes_that_write_together(
    launcher: Launcher, whole: Bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: Counter[str] = Counter()
    rng = random.Random(0)
    for trial in range(15):
        root = tmp_path / f"random-{trial}"
        root.mkdir()
        n = rng.randint(1, 3)
        parts = [(i, n) for i in range(n)] + [(0, 1)]  # the last one has the same shards as the others
        started = [launcher.start(root, part, 0.01) for part in parts]
        time.sleep(rng.random() * 0.3)
        killed = rng.sample(started, rng.randint(1, len(started)))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        statuses = {pid: launcher.wait(pid) for pid in started}
        assert all(statuses[pid] == 0 for pid in started if pid not in killed), statuses
        finish(root, whole, counts)
    report("kills of processes that write one store together", counts, capsys)
    assert counts == Counter(tried=15, equal=15, lost=0, doubled=0)


@pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-p", "-f", "true"], check=False).returncode != 0,
    reason="needs the right to make process namespaces (root)",
)
def test_processes_with_the_same_number_on_the_same_host(
    whole: Bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two containers that share host name and disk, each with a process 1; one of them restarts."""
    counts: Counter[str] = Counter()
    command = ["unshare", "-p", "-f", "--kill-child", sys.executable, "-m", "tests.faults.store_writer", str(tmp_path)]

    def start(part: int) -> subprocess.Popen[str]:
        return subprocess.Popen([*command, str(part), "2", "0.2"], stdout=subprocess.PIPE, text=True, cwd=ROOT)

    first, second = start(0), start(1)
    assert first.stdout is not None and second.stdout is not None
    identity = first.stdout.readline()
    assert identity == second.stdout.readline() and identity.startswith("1 ")
    time.sleep(1.0)
    third = start(0)  # as after a restart of a third container, while both are writing
    assert third.stdout is not None and third.stdout.readline() == identity
    time.sleep(0.7)
    first.kill()
    first.wait()
    assert (second.wait(120), third.wait(120)) == (0, 0)
    finish(tmp_path, whole, counts)
    report("processes with equal numbers and host names", counts, capsys)
    assert counts == Counter(tried=1, equal=1, lost=0, doubled=0)


@pytest.fixture
def mount_small(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of some kB, where that is allowed."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk-{kilobytes}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("needs the right to mount a tmpfs (root)")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_keeps_what_is_complete(
    whole: Bytes, tmp_path: Path, mount_small: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    counts: Counter[str] = Counter()
    for kilobytes in (4, 8, 12, 16, 24, 32, 40, 48):
        disk = mount_small(kilobytes)
        kept: set[str] = set()
        try:
            store = StoreWriter(disk, toy_manifest())
            for shard in store.pending():
                store.write(shard, batches(shard))
        except RunFailed as error:
            assert "is full" in error.what and "run the same command again" in str(error.fix)
            kept = set(content(disk)) if (disk / toy_manifest().folder).exists() else set()
            assert not [name for name in kept if name.startswith(".writing-")]
        moved = tmp_path / f"moved-{kilobytes}"
        shutil.copytree(disk, moved)
        finish(moved, whole, counts)
    report("a full disk", counts, capsys)
    assert counts == Counter(tried=8, equal=8, lost=0, doubled=0)
