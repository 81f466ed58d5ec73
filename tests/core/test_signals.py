"""SIGTERM unwinds the main thread once, and its status is that of the signal."""

import os
import signal

import pytest

from diffprobe.core.signals import TERMINATED, Terminated, end_on_sigterm


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
