"""The time left: by the mean speed, in the largest units that tell it."""

import pytest

from diffprobe.core.time_left import time_left


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (0, 9, 50.0, "time left unknown"),
        (1, 2, 30.0, "about 30 s left"),
        (1, 2, 59.9, "about 59 s left"),
        (2, 4, 90.0, "about 1 min left"),
        (1, 3, 1800.0, "about 1 h 0 min left"),
    ],
)
def test_it_is_formatted(done: int, total: int, seconds: float, text: str) -> None:
    assert time_left(done, total, seconds) == text
