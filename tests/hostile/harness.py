"""Run one hostile input at a time in a process of its own, with bounds on time and memory, and say how it ended.

`attempt` runs a function, `attempt_cli` a command. A server process imports the heavy libraries once and forks for
each attempt, so that an attempt costs about 50 ms. Functions have to stand at the top level of a test module, and
their arguments have to be JSON.
"""

import atexit
import gc
import importlib
import io
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEMORY_MB = 2048
"""Largest peak of resident memory that an attempt may reach, the imported libraries (about 600 MB) included."""
SECONDS = 60.0
"""Wall time after which an attempt is killed."""
REFUSED, RAW, KILLED = 2, 70, 137
"""Exit statuses: a DiffprobeError (as on the command line), any other exception, the limit of time."""
INSTALLED = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(ROOT / "diffprobe"))
"""Folders whose modules a server may import after an attempt has: none that an attempt can write to."""


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended.

    Attributes:
        status: exit status; of a function 0, `REFUSED` or `RAW`; `KILLED` after the limit of time; 128 + n by signal n.
        stdout, stderr: what was printed. For a refusal stderr is `ErrorClass: message`, otherwise a traceback.
        peak_mb: largest resident memory of the process, in MB.
        seconds: wall time.
    """

    status: int
    stdout: str
    stderr: str
    peak_mb: float
    seconds: float


def attempt(
    function: Callable[..., object],
    *arguments: Any,
    seconds: float = SECONDS,
    memory_mb: int = MEMORY_MB,
    cwd: Path | str = ROOT,
) -> Outcome:
    """Run a function of a test module in a process of its own; paths are given as texts.

    Args:
        function: at the top level of its module; what it returns is printed, so that it is in `stdout`.
        arguments: JSON values.
        seconds: wall time after which it is killed.
        memory_mb: address space that it may add to that of the libraries; more is a MemoryError inside it.
        cwd: its working directory.
    """
    place = {"file": function.__code__.co_filename, "function": function.__qualname__}
    return _ask(
        {**place, "arguments": [str(x) if isinstance(x, Path) else x for x in arguments]}, seconds, memory_mb, cwd
    )


def attempt_cli(
    argv: Sequence[str], *, seconds: float = SECONDS, memory_mb: int = MEMORY_MB, cwd: Path | str = ROOT
) -> Outcome:
    """Run `diffprobe ARGV...` in a process of its own; see `attempt`."""
    return _ask({"argv": [str(word) for word in argv]}, seconds, memory_mb, cwd)


def assert_refused(outcome: Outcome, *names: str, memory_mb: float = MEMORY_MB, seconds: float = SECONDS) -> None:
    """Check that an attempt ended in a DiffprobeError that has all `names` in its message, within the bounds."""
    said = outcome.stderr[-3000:]
    assert "Traceback" not in said, f"a traceback:\n{said}"
    assert outcome.status == REFUSED, f"ended with status {outcome.status}:\n{said}"
    missing = [name for name in names if name not in said]
    assert not missing, f"the message lacks {missing}:\n{said}"
    assert outcome.peak_mb < memory_mb, f"{outcome.peak_mb:.0f} MB of memory"
    assert outcome.seconds < seconds, f"{outcome.seconds:.1f} seconds"


def assert_ended(outcome: Outcome, *names: str, statuses: Collection[int] = (REFUSED,), seconds: float = 30.0) -> None:
    """Check that a command ended with one of `statuses`, printed text only, and named all `names` unless it worked.

    A refusal has to be lines of an error: its class and message, then indented details; lines of progress precede it.
    """
    from diffprobe.core.terminal import printable

    said = f"{outcome.stdout[-3000:]}\n{outcome.stderr[-3000:]}"
    assert "Traceback" not in said, said
    assert outcome.status in statuses, f"status {outcome.status}:\n{said}"
    assert printable(outcome.stdout) == outcome.stdout and printable(outcome.stderr) == outcome.stderr
    missing = [name for name in names if name not in outcome.stdout + outcome.stderr] if outcome.status else []
    assert not missing, f"the message lacks {missing}:\n{said}"
    if outcome.status == REFUSED:
        lines = outcome.stderr.splitlines()
        starts = [i for i, line in enumerate(lines) if re.match(r"[A-Z]\w+: |diffprobe[a-z ]*: ", line)]
        details = lines[starts[-1] + 1 :] if starts else [said]
        assert starts and all(line.startswith("  ") for line in details), said
        assert max(map(len, lines)) < 2200 and len(details) < 200
    assert outcome.peak_mb < MEMORY_MB, f"{outcome.peak_mb:.0f} MB of memory"
    assert outcome.seconds < seconds, f"{outcome.seconds:.1f} seconds"


class Canary:
    """A file that exists once hostile content was executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def touched(self) -> bool:
        """Whether anything was executed."""
        return self.path.exists()

    def pickle(self) -> bytes:
        """Return a pickle that touches the file when it is loaded."""
        return pickle.dumps(_Touch(str(self.path)))

    def torch_file(self) -> bytes:
        """Return a file in the format of `torch.save` that touches the file when it is loaded without weights_only."""
        import torch

        buffer = io.BytesIO()
        torch.save({"x": _Touch(str(self.path))}, buffer)
        return buffer.getvalue()

    def source(self) -> str:
        """Return Python source that touches the file when it is executed."""
        return f"open({str(self.path)!r}, 'w').close()\n"


@pytest.fixture
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    """Give a canary, and fail the test if it was touched. Import this fixture where it is used."""
    bird = Canary(tmp_path_factory.mktemp("canary") / "touched")
    yield bird
    assert not bird.touched, "hostile content was executed"


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


# ---- the server: a child of pytest, which forks


@cache
def _server() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[bytes]) -> None:
    if server.stdin is not None:
        server.stdin.close()  # it ends by itself when its input does
    server.wait(timeout=10)


def _ask(request: dict[str, Any], seconds: float, memory_mb: int, cwd: Path | str) -> Outcome:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
        request |= {
            **files,
            "modules": str(Path(folder) / "modules"),
            "seconds": seconds,
            "memory_mb": memory_mb,
            "cwd": str(cwd),
        }
        request["environment"] = dict(os.environ)  # as a test may have changed it
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        texts = {name: Path(file).read_text(encoding="utf-8", errors="replace") for name, file in files.items()}
    return Outcome(answer["status"], texts["stdout"], texts["stderr"], answer["peak_mb"], answer["seconds"])


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    _preload()
    for line in requests:
        request = json.loads(line)
        gc.freeze()  # a collection in a child would write to, and so copy, every page of the libraries
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _run(request)  # ends the process
        status, peak = _wait(child, started + request["seconds"])
        _import_what_it_did(request)
        answer = {"status": status, "peak_mb": peak, "seconds": time.monotonic() - started}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _preload() -> None:
    import diffusers  # noqa: F401
    import lightning  # noqa: F401
    import PIL.Image  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    import diffprobe.cli.main
    import diffprobe.probes.classifier.linear
    import diffprobe.probes.sae.convert  # noqa: F401
    from diffprobe.backbones.extractor import DiffusionFeatures
    from diffprobe.backbones.families import sd_unet
    from diffprobe.config.compose import load_run

    load_run("emoji/sae")  # Hydra

    # One whole pass, so that what libraries import on first use is there before the forks.
    with tempfile.TemporaryDirectory() as folder:
        sd_unet.tiny(folder)
        model = DiffusionFeatures.from_pretrained(folder, taps=["mid_block"], timesteps=[0], device="cpu")
        model(torch.zeros(1, 3, 32, 32), keys=["a"])


def _import_what_it_did(request: dict[str, Any]) -> None:
    """Import modules of installed packages that the child imported, so that the next child has them already."""
    file = Path(request["modules"])
    for name in file.read_text("utf-8").split() if file.exists() else []:
        try:
            importlib.import_module(name)
        except Exception:  # such as what may be imported in an order of its own alone
            continue


def _new_modules(before: set[str]) -> Iterator[str]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name not in before and getattr(getattr(module, "__spec__", None), "name", None) == name:
            if file.startswith(INSTALLED):
                yield name


def _wait(child: int, deadline: float) -> tuple[int, float]:
    """Return the exit status and the peak of resident memory in MB; kill the process group after the deadline."""
    killed = False
    while True:
        pid, status, usage = os.wait4(child, 0 if killed else os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return KILLED if killed else code if code >= 0 else 128 - code, usage.ru_maxrss / 1024
        if time.monotonic() > deadline:
            killed = True
            for target in (-child, child):  # the group exists once the child has made it
                try:
                    os.kill(target, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        else:
            time.sleep(0.005)


def _run(request: dict[str, Any]) -> None:
    status = RAW
    before = set(sys.modules)
    try:
        os.setsid()
        for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
            os.dup2(os.open(name, flags), number)
        sys.stdin = open(0, closefd=False)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        limit = _address_space() + request["memory_mb"] * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = _command(request["argv"]) if "argv" in request else _function(request)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        Path(request["modules"]).write_text("\n".join(_new_modules(before)), "utf-8")
        os._exit(status)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _command(argv: list[str]) -> int:
    from diffprobe.cli.main import main

    sys.argv = ["diffprobe", *argv]
    try:
        return main(argv)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)


def _function(request: dict[str, Any]) -> int:
    from importlib.util import module_from_spec, spec_from_file_location

    from diffprobe.core.errors import DiffprobeError

    spec = spec_from_file_location(Path(request["file"]).stem, request["file"])
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        result = getattr(module, request["function"])(*request["arguments"])
    except DiffprobeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return REFUSED
    if result is not None:
        print(result)
    return 0


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print while they are imported is not part of the answer
    _serve(sys.stdin.buffer, answers)
