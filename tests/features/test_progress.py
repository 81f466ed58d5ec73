"""The bar, and numbers for people."""

from contextlib import contextmanager

from diffprobe.features.progress import make_bar, rate


def test_a_bar_of_ones_own_is_told_the_number_of_images():
    asked = []

    @contextmanager
    def own(n):
        asked.append(n)
        yield None

    with make_bar(12, own):
        assert asked == [12]


def test_the_bar_shows_images_a_second_and_the_time_left(capsys):
    with make_bar(4, True) as bar:
        bar.update(2)
        bar.update(2)
    shown = capsys.readouterr().err
    assert "4/4" in shown and "image/s" in shown and "extract" in shown


def test_no_bar_is_silent(capsys):
    with make_bar(4, False) as bar:
        bar.update(4)
    assert capsys.readouterr() == ("", "")


def test_a_rate_over_no_time_is_a_number():
    assert rate(0, 0.0) == "0 images in 0.0 s (0.0 images/s)"
