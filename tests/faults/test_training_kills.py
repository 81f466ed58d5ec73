"""Kills of a training run: at random points, within the writing of a checkpoint, and a full disk."""

import signal
import time
from collections import Counter

import pytest

from diffprobe.training.checkpoint_file import verify_checkpoint
from tests.faults.conftest import delays, report

pytestmark = pytest.mark.slow

FINISHED = {
    "inputs.json", "last.ckpt", "predictions-test.safetensors", "predictions-val.safetensors", "probes", "result.json",
}  # fmt: skip
"""What a finished run without a logger leaves in its folder."""


def finish(run, output, whole, counts):
    """Run the command again to its end, and count what became of it."""
    folder = run.folder(output)
    last = None if folder is None else folder / "last.ckpt"
    counts["tried"] += 1
    if last is not None and last.exists():
        verify_checkpoint(last)
    command = run.start(output)
    status = command.wait()
    found = run.outcome(output)
    if status != 0 or found is None:
        counts["lost"] += 1
        return
    folder = run.folder(output)
    counts["equal"] += found == whole
    names = {path.name for path in folder.iterdir()}
    counts["doubled"] += names != FINISHED or len(list((output / "sae").iterdir())) != 1


def test_kills_at_random_points(run, whole, tmp_path, capsys):
    counts = Counter()
    started = time.monotonic()
    assert run.start(tmp_path / "timed").wait() == 0
    longest = time.monotonic() - started
    for i, delay in enumerate(delays(12, longest, seed=0)):
        output = tmp_path / f"random-{i}"
        command = run.start(output)
        time.sleep(delay)
        command.send(signal.SIGKILL)
        command.wait()
        finish(run, output, whole, counts)
    report("kills of a training run at random points", counts, capsys)
    assert counts == Counter(tried=12, equal=12)


@pytest.mark.parametrize("place", ["the file system of TMPDIR", "another file system"])
def test_kills_within_the_writing_of_a_checkpoint(run, whole, tmp_path, capsys, mounted, place):
    root = mounted(400) if place.startswith("another") else tmp_path
    size = next((tmp_path / "whole").rglob("last.ckpt")).stat().st_size
    counts = Counter()
    for number, share in ((1, 0.0), (2, 0.2), (3, 0.5), (5, 0.8), (8, 0.99)):
        output = root / f"aimed-{number}"
        fault = {"kind": "write", "pattern": "*/.last.ckpt.*.tmp", "count": number, "size": int(share * size)}
        assert run.start(output, TMPDIR=str(tmp_path), fault=fault).wait() == -signal.SIGXFSZ
        (cut,) = (output / "sae").glob("*/.last.ckpt.*.tmp")
        assert cut.stat().st_size <= fault["size"]
        finish(run, output, whole, counts)
    report(f"kills within the writing of a checkpoint on {place}", counts, capsys)
    assert counts == Counter(tried=5, equal=5)


def test_a_full_disk_leaves_the_last_good_checkpoint(run, whole, tmp_path, capsys, mounted):
    size = next((tmp_path / "whole").rglob("last.ckpt")).stat().st_size
    output = mounted(int(size * 1.5) >> 20) / "run"  # one checkpoint has room, and not a second beside it
    command = run.start(output)
    assert command.wait() == 2
    lines = command.lines()
    assert sum(not line.startswith("  ") for line in lines) == 1, lines
    assert lines[0].startswith("RunFailed: the checkpoint '") and "No space left on device" in lines[0]
    folder = run.folder(output)
    verify_checkpoint(folder / "last.ckpt")
    assert {path.name for path in folder.iterdir()} == {"inputs.json", "last.ckpt"}
    mounted(400)
    counts = Counter()
    finish(run, output, whole, counts)
    report("full disk", counts, capsys)
    assert counts == Counter(tried=1, equal=1)
