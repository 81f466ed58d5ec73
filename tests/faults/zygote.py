"""A process that has imported everything and starts a command of diffprobe for each line that it reads, by forking.

A kill needs a process of its own, and importing torch takes longer than a tiny run. Each line is a JSON object with
`argv`, `environ` and `log`; the answers are the process id when the command starts, and its exit status when it ends.
"""

import json
import os
import signal
import sys

import lightning  # noqa: F401

from diffprobe.cli.main import main
from diffprobe.features import extract, live, stored  # noqa: F401
from diffprobe.generative import denoiser, text_encoder  # noqa: F401
from diffprobe.runs import train, train_generative  # noqa: F401
from diffprobe.training import classifier, loggers, sae, trainer  # noqa: F401


def serve() -> None:
    """Answer lines until the input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
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
        status = main(asked["argv"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
