"""The bar, and numbers for people."""

from contextlib import contextmanager

from diffprobe.features.progress import make_bar, make_side_bar, rate


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


def test_a_side_bar_goes_when_it_is_full_and_stands_beside_no_bar_of_ones_own(capsys):
    for progress in (True, False, lambda n: None):
        with make_side_bar(4, progress, "encode") as bar:
            bar.update(4)
        shown = capsys.readouterr().err
        assert ("encode" in shown) == (progress is True)
        assert "\n" not in shown


def test_a_rate_over_no_time_is_a_number():
    assert rate(0, 0.0) == "0 images in 0.0 s (0.0 images/s)"
