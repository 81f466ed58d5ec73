"""Progress bars on a terminal, and silence elsewhere."""

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from diffprobe.core.progress import Countdown, ProgressDisplay


def terminal() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=110, color_system=None), file


def shown_in(file: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def test_a_bar_shows_units_rate_and_description() -> None:
    console, file = terminal()
    with ProgressDisplay(console=console) as display, display.bar(4, "extract", unit="images") as bar:
        bar.update(3)
        bar.update(1)
    last = shown_in(file).splitlines()[-1]
    assert re.search(r"extract .* 4/4 images [\d,.]+/s 0:00:00", last)


def test_bars_share_a_display_and_one_can_be_removed_when_done() -> None:
    console, file = terminal()
    with ProgressDisplay(console=console) as display, display.bar(8, "extract", unit="images") as bar:
        with display.bar(2, "encode", unit="images", keep=False) as side:
            side.update(2)
        bar.update(8)
    assert "8/8" in shown_in(file) and "encode" not in shown_in(file).splitlines()[-1]


def test_a_bar_of_unknown_size_is_restarted_when_the_size_is_known() -> None:
    console, file = terminal()
    with ProgressDisplay(console=console) as display, display.bar(None, "sae") as bar:
        bar.restart(5, "steps")
        bar.update(2)
    assert "2/5 steps" in shown_in(file)


@pytest.mark.parametrize("shown", [True, False])
def test_nothing_is_drawn_outside_of_a_terminal(shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    for console in (Console(file=file), None):
        with ProgressDisplay(console=console, shown=shown) as display, display.bar(4, "extract") as bar:
            bar.update(4)
    assert (file.getvalue().strip(), *capsys.readouterr()) == ("", "", "")


def test_a_display_that_is_not_shown_is_silent_on_a_terminal() -> None:
    console, file = terminal()
    with ProgressDisplay(console=console, shown=False) as display, display.bar(4, "extract") as bar:
        bar.update(4)
    assert not file.getvalue()


def test_where_nothing_is_drawn_a_long_task_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffprobe.core import progress

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressDisplay(console=Console(file=io.StringIO())) as display:
        with display.bar(4000, "extract", unit="images") as bar:
            for _ in range(4):
                now[0] += 20.0
                bar.update(1000)
        with display.bar(None, "sae   topk") as bar:
            now[0] += 31.0
            bar.update(5)
    lines = ["extract: 2,000 of 4,000 images, about 40 s left", "extract: 4,000 of 4,000 images", "sae topk: 5"]
    assert capsys.readouterr().err.splitlines() == lines
    for silent in ({"shown": False}, {"lines": False}):
        with ProgressDisplay(console=Console(file=io.StringIO()), **silent) as display, display.bar(9, "x") as bar:
            now[0] += 100.0
            bar.update(1)
        assert capsys.readouterr().err == ""


def test_progress_needs_no_torch() -> None:
    code = "import sys, diffprobe.core.progress as p\np.ProgressDisplay()\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_are_named_where_there_is_no_terminal_and_counted_where_there_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import functools

    from rich.console import Console

    from diffprobe.core import progress

    with progress.reading_files(2, "reading") as begin:
        begin("a.tar"), begin("b.tar")
    assert capsys.readouterr().err == "reading a.tar\nreading b.tar\n"
    with progress.reading_files(2, "reading", shown=False) as begin:
        begin("a.tar")
    assert capsys.readouterr() == ("", "")
    shown = io.StringIO()
    terminal = functools.partial(progress.ProgressDisplay, console=Console(file=shown, force_terminal=True, width=110))
    monkeypatch.setattr(progress, "ProgressDisplay", terminal)
    with progress.reading_files(2, "reading") as begin:
        begin("a.tar"), begin("b.tar")
    assert "a.tar" not in capsys.readouterr().err and "/2" in shown.getvalue() and "files" in shown.getvalue()


def test_the_time_left_is_that_of_the_mean_speed() -> None:
    lines: list[str] = []
    clock = iter([0.0, 0.0, 30.0, 3 * 3600.0])
    steps = Countdown(3, lines.append, clock=lambda: next(clock))
    for name in "abc":
        steps(name)
    assert lines == ["1/3: a", "2/3, about 1 min left: b", "3/3, about 1 h 30 min left: c"]
