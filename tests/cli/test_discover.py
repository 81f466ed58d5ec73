"""`diffprobe discover`."""

from pathlib import Path

import pytest

from diffprobe.cli.main import main
from tests.evaluation.discover_stores import prompt_store


def test_it_prints_what_was_found_and_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = prompt_store(tmp_path)
    words = ["cell=mid_block@t100", "subject=role", "n_permutations=399", "n_resamples=50", "max_components=6"]
    assert main(["discover", str(store.path), *words, "--output", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert "hidden association" in shown and "role0" in shown and "discovery.html" in shown
    assert Path(shown.split("page: ")[1].strip()).is_file()


def test_a_check_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", "nowhere", "cell=mid_block", "--check"]) == 0
    assert "valid" in capsys.readouterr().out
    assert main(["discover", "nowhere", "--check"]) == 2
    assert "cell" in capsys.readouterr().err
    assert main(["discover", "nowhere", "cel=mid_block", "--check"]) == 2
    assert "nearest" in capsys.readouterr().err and main(["discover", "nowhere", "cell=mid_block"]) == 2
