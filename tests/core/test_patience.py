"""A vanished storage is tried again with growing waits, up to the patience; other errors are not."""

import errno
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from diffprobe.core.errors import RunFailed
from diffprobe.core.patience import LONGEST_WAIT, NO_PATIENCE, Outage, Patience, WholeFile, is_absence, try_again


class Clock:
    """A clock that only its own sleep moves."""

    def __init__(self) -> None:
        self.now, self.waits = 100.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waits.append(seconds)

    def patience(self, seconds: float) -> Patience:
        return Patience(seconds=seconds, clock=lambda: self.now, sleep=self.sleep)


def failed(error: OSError, tried: str) -> RunFailed:
    return RunFailed(f"gone for {tried}: {error.strerror}")


def failing(times: int, error: Exception) -> Callable[[], int]:
    """Return an action that fails so many times, and then returns 7."""
    left = [times]

    def action() -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return 7

    return action


@pytest.mark.parametrize("name", ["ENOENT", "ESTALE", "EIO", "ENOTCONN", "ETIMEDOUT"])
def test_what_vanishes_is_tried_again_with_growing_waits(name: str, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    error = OSError(getattr(errno, name), "gone")
    with caplog.at_level(logging.WARNING):
        assert try_again(failing(5, error), "shard a.tar", clock.patience(60), failed) == 7
    assert clock.waits == [0.25, 0.5, 1, 2, 4]
    assert [record.message for record in caplog.records] == [
        f"shard a.tar: {name}: gone; trying again for 60 s more",
        "shard a.tar: the storage is back after 8 s (5 attempts)",
    ]


def test_the_patience_is_a_total_and_the_last_attempt_is_at_its_end() -> None:
    clock = Clock()
    with pytest.raises(RunFailed, match=r"gone for 100 s \(11 attempts\): stale"):
        try_again(failing(10**6, OSError(errno.ESTALE, "stale")), "a", clock.patience(100), failed)
    assert sum(clock.waits) == 100 and max(clock.waits) <= LONGEST_WAIT


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "denied"), OSError(errno.ENOSPC, "full"), ValueError("wrong digest")]
)
def test_other_errors_are_raised_at_once(error: Exception) -> None:
    clock = Clock()
    with pytest.raises(type(error)) as caught:
        try_again(failing(1, error), "a", clock.patience(100), failed)
    assert caught.value is error and not clock.waits and not is_absence(error)


def test_without_patience_nothing_is_tried_again() -> None:
    with pytest.raises(FileNotFoundError):
        try_again(failing(1, FileNotFoundError(errno.ENOENT, "gone")), "a", NO_PATIENCE, failed)


def test_progress_ends_an_outage_and_the_next_one_has_the_whole_patience() -> None:
    clock = Clock()
    outage = Outage(clock.patience(1.0), "a")
    for _ in range(5):
        assert outage.wait(OSError(errno.EIO, "io"))
        assert outage.wait(OSError(errno.EIO, "io"))
        outage.progress()
    assert clock.waits == [0.25, 0.5] * 5


def test_a_file_that_ends_before_its_size_is_an_absence(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with open(path, "rb") as file:
        whole = WholeFile(file, 8)
        assert whole.read(3) == b"123"
        with pytest.raises(OSError, match="byte 5 of 8") as caught:
            whole.read(3)
        assert is_absence(caught.value)
    for size in (5, None):
        with open(path, "rb") as file:
            assert WholeFile(file, size).read() == b"12345" and WholeFile(file, size).read(2) == b""


def test_a_patience_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(Patience(seconds=3.0))) == Patience(seconds=3.0)
