"""SIGTERM unwinds the main thread once, and its status is that of the signal."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from diffprobe.core.signals import (
    TERMINATED,
    Terminated,
    end_behind,
    end_on_sigterm,
    shield_worker,
)


def test_sigterm_raises_once_and_the_handler_of_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []
    with pytest.raises(Terminated) as caught, end_on_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a launcher sends it twice
            cleaned.append(True)
    assert cleaned and caught.value.code == TERMINATED == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_exception_that_a_library_swallows_is_raised_at_the_end() -> None:
    done = []
    with pytest.raises(Terminated), end_on_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:  # as in a destructor, or in a callback of C
            pass
        done.append("the block went on")
    assert done


@contextmanager
def fails_on_the_way_out() -> Iterator[None]:
    """As a library whose state was left halfway."""
    try:
        yield
    finally:
        raise AttributeError("'NoneType' object has no attribute 'reset'")


def test_an_error_while_a_signal_unwinds_gives_way_to_it() -> None:
    with pytest.raises(Terminated) as terminated, end_on_sigterm(), fails_on_the_way_out():
        os.kill(os.getpid(), signal.SIGTERM)
    assert isinstance(terminated.value.__cause__, AttributeError)
    with pytest.raises(KeyboardInterrupt) as interrupted, end_on_sigterm(), fails_on_the_way_out():
        raise KeyboardInterrupt
    assert isinstance(interrupted.value.__cause__, AttributeError)
    with pytest.raises(AttributeError), end_on_sigterm(), fails_on_the_way_out():
        pass


def test_an_end_is_found_behind_errors_that_were_raised_from_each_other() -> None:
    with pytest.raises(ValueError, match="settings") as caught:
        try:
            with fails_on_the_way_out():
                raise KeyboardInterrupt
        except AttributeError as error:
            raise ValueError("settings cannot be read") from error
    assert isinstance(end_behind(caught.value), KeyboardInterrupt)
    assert end_behind(ValueError("another")) is None and end_behind(None) is None


def test_blocks_are_nested_and_the_next_one_starts_anew() -> None:
    for _ in range(2):
        with pytest.raises(Terminated), end_on_sigterm():
            with end_on_sigterm():
                os.kill(os.getpid(), signal.SIGTERM)
    with end_on_sigterm():
        pass


def test_a_process_that_was_started_to_ignore_the_signal_still_does() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with end_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def ended_by(signals: list[signal.Signals], environ: dict[str, str]) -> int | None:
    """Return the status with which a loader's worker ends by signals; None if it goes on."""
    code = (
        "import time; from diffprobe.core.signals import shield_worker\n"
        "shield_worker(); print(1, flush=True); time.sleep(60)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | environ
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    for number in signals:
        process.send_signal(number)
    try:
        return process.wait(1.0)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.kill()
        process.wait()


def test_a_workers_main_process_answers_the_signals_of_slurm() -> None:
    job = {"SLURM_JOB_ID": "17"}
    assert ended_by([signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM], job) is None
    assert ended_by([signal.SIGUSR1, signal.SIGTERM], {}) == -signal.SIGTERM


def test_workers_of_a_loader_do_not_inherit_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked worker would otherwise requeue the job as the main process does."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGALRM)}
    try:
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        shield_worker(0)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)
        assert 50 < signal.alarm(0) <= 60  # it ends by itself where nobody ends it
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
