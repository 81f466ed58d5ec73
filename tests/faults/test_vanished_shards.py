"""A folder of shards that is renamed away during `diffprobe extract`, as a remount of a network storage does it."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from diffprobe.core.digest import digest_file
from tests.faults.conftest import Command, Start, wait_for

pytestmark = pytest.mark.slow
N_CELLS, N_SHARDS = 12, 7


def files(root: Path) -> dict[str, str]:
    """Return the digest of each file below a folder."""
    return {str(path.relative_to(root)): digest_file(path) for path in sorted(root.rglob("*")) if path.is_file()}


class Extraction:
    """The arguments of an extraction from a copy of the shards, which can be taken away."""

    def __init__(self, start: Start, tiny_sd: Path, tiny_shards: Path, folder: Path) -> None:
        self._start, self.folder, self.shards = start, folder, folder / "shards"
        shutil.copytree(tiny_shards, self.shards)
        self._words = [
            "extract", f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={self.shards}",
            "data.batch_size=2", "features.taps=[mid_block]",
            f"features.timesteps=[{','.join(str(30 * i) for i in range(N_CELLS))}]",
        ]  # fmt: skip

    def start(self, store: str, *more: str) -> Command:
        return self._start(*self._words, f"features.store={self.folder / store}", *more)

    def complete(self, store: str) -> int:
        return len(list((self.folder / store).glob("*/*.tar")))

    def take_away(self, store: str, command: Command) -> Path:
        """Rename the folder once the first shard is written, while the command is stopped."""
        assert wait_for(lambda: self.complete(store) > 0, command=command), command.output()
        command.send(signal.SIGSTOP)
        assert self.complete(store) < N_SHARDS
        away = self.shards.rename(self.folder / "away")
        command.send(signal.SIGCONT)
        return away


@pytest.fixture
def extraction(start: Start, tiny_sd: Path, tiny_shards: Path, tmp_path: Path) -> Extraction:
    return Extraction(start, tiny_sd, tiny_shards, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_comes_back_leaves_no_trace_in_the_store(extraction: Extraction, workers: int) -> None:
    setting = f"data.num_workers={workers}"
    assert extraction.start("whole", setting).wait() == 0
    command = extraction.start("cut", setting)
    away = extraction.take_away("cut", command)
    assert wait_for(lambda: "trying again for 300 s more" in command.output(), command=command), command.output()
    time.sleep(2)
    away.rename(extraction.shards)
    assert command.wait() == 0, command.output()
    text = command.output()
    assert "ENOENT" in text and "the storage is back after" in text
    assert files(extraction.folder / "cut") == files(extraction.folder / "whole")


def test_a_folder_that_stays_away_stops_the_command_and_the_same_command_continues(extraction: Extraction) -> None:
    assert extraction.start("whole").wait() == 0
    command = extraction.start("cut", "data.storage_patience=1")
    away = extraction.take_away("cut", command)
    assert command.wait() == 2
    text = command.output()
    assert "ShardError: " in text and "did not come back within 1 s" in text and "data.storage_patience" in text
    kept = extraction.complete("cut")
    away.rename(extraction.shards)
    assert 0 < kept < N_SHARDS and extraction.start("cut", "data.storage_patience=0").wait() == 0
    assert files(extraction.folder / "cut") == files(extraction.folder / "whole")
