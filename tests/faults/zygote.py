"""A process that has imported everything and starts a command of diffprobe for each line that it reads, by forking.

A kill needs a process of its own, and importing torch takes longer than a tiny run. Each line is a JSON object with
`argv`, `environ`, `log` and `fault`; the answers are the process id when the command starts, and its exit status when
it ends, `OUTSIDE` where a signal came before the command began or after it had ended. A fault lets the command end
itself at a point that no polling from outside would meet for certain:

- `{"kind": "files", "pattern": P, "count": N}`: SIGKILL at the first file operation after N files match P;
- `{"kind": "write", "pattern": P, "count": N, "size": B}`: SIGXFSZ at byte B of the N-th file opened that matches P.
"""

import fnmatch
import gc
import glob
import json
import os
import resource
import signal
import sys
from collections.abc import Callable

import lightning  # noqa: F401

from diffprobe.cli.main import main
from diffprobe.features import extract, live, stored  # noqa: F401
from diffprobe.generative import denoiser, text_encoder  # noqa: F401
from diffprobe.runs import train, train_generative  # noqa: F401
from diffprobe.training import classifier, loggers, sae, trainer  # noqa: F401
from tests.faults.conftest import OUTSIDE


def _outside(number: int, frame: object) -> None:
    os._exit(OUTSIDE)


def serve() -> None:
    """Answer lines until the input ends."""
    signal.signal(signal.SIGTERM, _outside)
    signal.signal(signal.SIGINT, _outside)
    for line in sys.stdin:
        asked = json.loads(line)
        gc.freeze()  # a collection in a child would write to, and so copy, every page of the libraries
        pid = os.fork()
        if pid == 0:
            _run(asked)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(asked: dict) -> None:
    status = 1
    try:
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(asked["environ"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if asked["fault"]:
            sys.addaudithook(
                {"files": _kill_after_files, "write": _kill_within_write}[asked["fault"]["kind"]](asked["fault"])
            )
        status = main(asked["argv"])
        signal.signal(signal.SIGINT, _outside)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        status = OUTSIDE
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _kill_after_files(fault: dict) -> Callable[[str, tuple], None]:
    looking = False

    def hook(event: str, args: tuple) -> None:
        nonlocal looking
        if looking or not event.startswith(("open", "os.")):
            return
        looking = True  # the glob raises events of its own
        try:
            if len(glob.glob(fault["pattern"], include_hidden=True)) >= fault["count"]:
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            looking = False

    return hook


def _kill_within_write(fault: dict) -> Callable[[str, tuple], None]:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and would raise an OSError
    opened = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal opened
        if event == "open" and fnmatch.fnmatch(str(args[0]), fault["pattern"]):
            opened += 1
            if opened == fault["count"]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (fault["size"], resource.RLIM_INFINITY))

    return hook


if __name__ == "__main__":
    serve()
