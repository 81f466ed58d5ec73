"""Bars of notebooks: what they show, how often, and that they are emptied; the display takes them inside a kernel."""

import sys
from types import SimpleNamespace

import pytest

from diffprobe.core.notebook_bar import NotebookBar, in_notebook, notebook_bar
from diffprobe.core.progress import ProgressDisplay


class Kernel:
    """IPython as far as a bar sees it."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.display = SimpleNamespace(HTML=str, display=self._display)

    def _display(self, html: str, display_id: bool) -> SimpleNamespace:
        self.shown.append(html)
        return SimpleNamespace(update=self.shown.append)

    def get_ipython(self) -> SimpleNamespace:
        return SimpleNamespace(kernel=object())


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel()
    monkeypatch.setitem(sys.modules, "IPython", found)
    return found


def test_it_shows_units_rate_and_time_left() -> None:
    shown: list[str] = []
    clock = iter([0.0, 10.0, 20.0])
    bar = NotebookBar(shown.append, 40, "<b>extract", "images", clock=lambda: next(clock))
    bar.update(10)
    bar.update(30)
    assert shown[1] == (
        '&lt;b&gt;extract <progress value="10" max="40"></progress> 10 of 40 images, 1.0/s, about 30 s left'
    )
    assert "40 of 40 images, 2.0/s" in shown[2] and "left" not in shown[2]


def test_quick_updates_are_drawn_together() -> None:
    shown: list[str] = []
    now = 0.0
    bar = NotebookBar(shown.append, 1000, "read", "files", clock=lambda: now)
    for _ in range(999):
        bar.update(1)
    assert len(shown) == 1
    now = 1.0
    bar.update(1)
    assert len(shown) == 2 and "1,000 of 1,000" in shown[-1]


def test_the_size_may_be_known_late() -> None:
    shown: list[str] = []
    bar = NotebookBar(shown.append, None, "sae", "")
    assert "<progress" not in shown[-1]
    bar.restart(5, "steps")
    assert 'max="5"' in shown[-1]


def test_a_display_in_a_kernel_draws_there_and_empties_the_cell(kernel: Kernel) -> None:
    assert in_notebook()
    with ProgressDisplay() as display, display.bar(3, "extract", unit="images") as bar:
        assert display.is_drawn
        bar.update(3)
    assert "3 of 3 images" in kernel.shown[-2] and kernel.shown[-1] == ""
    with ProgressDisplay(shown=False) as display, display.bar(3, "extract") as bar:
        bar.update(3)
    assert kernel.shown[-1] == "" and not display.is_drawn


def test_a_bar_is_emptied_after_an_error(kernel: Kernel) -> None:
    with pytest.raises(ValueError, match="stop"), notebook_bar(3, "extract", "images"):
        raise ValueError("stop")
    assert kernel.shown[-1] == ""


def test_outside_of_a_kernel_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))  # a terminal
    assert not in_notebook()
