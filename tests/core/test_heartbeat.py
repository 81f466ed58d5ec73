"""The progress file of a job: what it holds, when it is renewed, and when it counts as stopped."""

from pathlib import Path

import pytest

from diffprobe.core.heartbeat import INTERVAL, STALE, Heartbeat, beating, heartbeat_path, read_progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_steps_of_earlier_starts_are_done_and_do_not_count_for_the_speed(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "progress.json"
    beat = Heartbeat(path, what="train", unit="steps", total=100, done=40, clock=clock)
    first = read_progress(path)
    assert first is not None and (first.done, first.total, first.seconds_left) == (40, 100, None)
    clock.now += INTERVAL / 2
    beat.update(5)
    assert read_progress(path) == first  # not each time
    clock.now += INTERVAL / 2
    beat.update(5)
    second = read_progress(path)
    assert second is not None and (second.done, second.seconds_left) == (50, 50 * INTERVAL / 10)
    assert not second.is_stale(clock.now + STALE) and second.is_stale(clock.now + STALE + 1)


def test_long_steps_are_not_stale_early(tmp_path: Path) -> None:
    clock = Clock()
    beat = Heartbeat(tmp_path / "p", what="extract", unit="images", total=4, clock=clock)
    clock.now += 100
    beat.update(1)
    found = read_progress(tmp_path / "p")
    assert found is not None and found.stale_after == 2000


def test_the_end_of_a_block_is_written(tmp_path: Path) -> None:
    with beating(8, what="extract", unit="images", path=tmp_path / "p") as bar:
        bar.update(3)
    found = read_progress(tmp_path / "p")
    assert found is not None and (found.what, found.done, found.total) == ("extract", 3, 8)


def test_only_the_main_process_of_a_job_writes() -> None:
    named = {"DIFFPROBE_HEARTBEAT": "x"}
    assert heartbeat_path(named) == Path("x") and heartbeat_path({}) is None
    assert heartbeat_path({**named, "SLURM_PROCID": "1"}) is None


def test_a_disk_that_takes_nothing_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Heartbeat(tmp_path / "file" / "p", what="train", unit="steps", total=1).update(1)


@pytest.mark.parametrize("text", ["", "[]", '{"done": "x"}', '{"what": "train", "unit": "steps", "done": true}'])
def test_a_file_that_is_not_readable_is_no_progress(tmp_path: Path, text: str) -> None:
    (tmp_path / "p").write_text(text)
    assert read_progress(tmp_path / "p") is None and read_progress(tmp_path / "none") is None
