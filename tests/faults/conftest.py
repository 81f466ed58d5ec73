"""Commands as processes that can be killed, the tiny runs that are killed, and a file system that is not TMPDIR's."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffprobe.core.digest import digest_file
from diffprobe.core.result import MetricRecord, read_result

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = 90
"""Exit status of a process that a signal met before its command began, or after it had ended."""


class Command:
    """One command of diffprobe in a process of its own."""

    def __init__(
        self,
        server: subprocess.Popen[str],
        argv: list[str],
        log: Path,
        environ: dict[str, str],
        fault: dict[str, str | int] | None = None,
    ) -> None:
        assert server.stdin is not None and server.stdout is not None
        self._server, self.log = server, log
        self._status: int | None = None
        log.write_text("")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PYTEST_"))}
        asked = {"argv": argv, "environ": {**clean, **environ}, "log": str(log), "fault": fault}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def send(self, number: signal.Signals) -> None:
        """Send a signal; the process may have ended already."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def wait(self) -> int:
        """Return the exit status; minus the number of the signal that ended the process."""
        if self._status is None:
            assert self._server.stdout is not None
            self._status = int(self._server.stdout.readline())
        return self._status

    def end(self) -> None:
        """Kill the process if nobody has waited for it."""
        if self._status is None:
            self.send(signal.SIGKILL)
            self.wait()

    def output(self) -> str:
        """Return what it has printed."""
        return self.log.read_text()

    def lines(self) -> list[str]:
        """Return the lines that it has printed, but for Python's warnings."""
        return [line for line in self.output().splitlines() if "UserWarning" not in line and "warn" not in line]


Start = Callable[..., Command]


@pytest.fixture(scope="session")
def server() -> Iterator[subprocess.Popen[str]]:
    """The process that starts the others."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.zygote"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)


@pytest.fixture
def start(server: subprocess.Popen[str], tmp_path: Path) -> Iterator[Start]:
    """Start a command; one at a time. What a failed test leaves running is ended: the next would read its status."""
    started: list[Command] = []

    def make(*argv: str, fault: dict[str, str | int] | None = None, **environ: str) -> Command:
        started.append(Command(server, list(argv), tmp_path / "log.txt", environ, fault))
        return started[-1]

    yield make
    for command in started:
        command.end()


class Run:
    """A tiny training run whose checkpoints take a while to write, and its undisturbed outcome."""

    def __init__(self, start: Start, settings: list[str]) -> None:
        self._start, self.settings = start, settings

    def start(self, output: Path, *more: str, fault: dict[str, str | int] | None = None, **environ: str) -> Command:
        """Start the run in a folder; `zygote` says what a fault may be."""
        return self._start("train", *self.settings, f"output={output}", *more, fault=fault, **environ)

    def folder(self, output: Path) -> Path | None:
        """Return the folder of the run, once it exists."""
        return next(iter(sorted((output / "sae").glob("*"))), None) if (output / "sae").is_dir() else None

    def outcome(self, output: Path) -> tuple[tuple[MetricRecord, ...], dict[str, str]] | None:
        """Return metrics and the digests of the written probes, None without a result."""
        folder = self.folder(output)
        if folder is None or not (folder / "result.json").exists():
            return None
        files = sorted(folder.rglob("*.safetensors"))
        return read_result(folder / "result.json").metrics, {
            str(path.relative_to(folder)): digest_file(path) for path in files
        }


@pytest.fixture(scope="session")
def run_settings(tiny_sd: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        f"backbone.path={tiny_sd}",
        "backbone.device=cpu",
        f"data.path={tiny_shards}",
        "data.batch_size=4",
        "features.taps=[mid_block]",
        "features.timesteps=[20]",
        f"features.store={tmp_path_factory.mktemp('stores')}",
        "probe=topk",
        "probe.params.k=4",
        "probe.params.n_latents=8000",
        "probe.params.dead_window=100",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=6",
        "trainer.checkpoint_every_steps=2",
        "trainer.enable_progress_bar=false",
        "logger=none",
    ]


@pytest.fixture
def run(start: Start, run_settings: list[str]) -> Run:
    assert start("extract", *run_settings, "--quiet").wait() == 0  # the store of a session is written once
    return Run(start, run_settings)


@pytest.fixture
def whole(run: Run, tmp_path: Path) -> tuple[tuple[MetricRecord, ...], dict[str, str]]:
    """The outcome of the run without any fault, and how long it takes in `whole_seconds`."""
    command = run.start(tmp_path / "whole")
    assert command.wait() == 0, command.output()
    found = run.outcome(tmp_path / "whole")
    assert found is not None and found[0] and found[1]
    return found


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a tmpfs of some MiB, as another file system than TMPDIR; skipped where mounting is not allowed."""
    target = tmp_path / "mounted"
    target.mkdir()

    def mount(size: int) -> Path:
        option = f"size={size}m" + (",remount" if os.path.ismount(target) else "")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", option, "diffprobe-test", str(target)], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip() or 'not root'}")
        assert os.stat(target).st_dev != os.stat(tmp_path).st_dev
        return target

    try:
        yield mount
    finally:
        if os.path.ismount(target):
            subprocess.run(["umount", "-l", str(target)], check=True)


def wait_for(condition: Callable[[], bool], *, seconds: float = 120.0, command: Command | None = None) -> bool:
    """Poll until a condition holds; return whether it did before the time was over or the command had ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return True
        except FileNotFoundError:  # pathlib's glob in Python 3.11 raises where a folder goes while it is listed
            continue
        if command is not None and not is_alive(command.pid):
            return condition()
        time.sleep(0.0005)
    return False


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and waits for its parent does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def report(what: str, counts: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Print the counts of a test, also where pytest captures output."""
    with capsys.disabled():
        shown = ", ".join(f"{counts[name]} {name}" for name in ("tried", "equal", "lost", "doubled"))
        print(f"\n{what}: {shown}")


def delays(n: int, longest: float, *, seed: int) -> list[float]:
    """Return n random delays in seconds."""
    generator = random.Random(seed)
    return [generator.uniform(0.05, longest) for _ in range(n)]
