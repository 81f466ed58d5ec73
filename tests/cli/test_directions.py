"""`diffprobe directions`."""

from pathlib import Path

import pytest

from diffprobe.cli.main import main
from tests.evaluation.prompt_stores import write_prompt_store

ENDS = ["target=texture", "positive=striped", "negative=plain"]


def test_it_prints_each_direction_and_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_prompt_store(tmp_path / "stores")
    assert main(["directions", str(store), *ENDS, "--output", str(tmp_path / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("note: ") and "up_blocks.0@t199:caption:none" in lines[0]
    assert "split_half contexts" in lines[1] and lines[1].endswith("held-out pairs") and lines[2].endswith("1.000")
    assert [line.split()[0] for line in lines[2:4]] == [
        "mid_block@t199:caption:mean", "mid_block@t200:empty:mean",
    ]  # fmt: skip
    assert lines[4].startswith("4 contexts x 4 seeds") and lines[-1].endswith("result.json")
    assert (Path(lines[-2].partition(": ")[2]) / "texture").is_dir()


def test_a_check_reads_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["directions", str(tmp_path / "none"), *ENDS, "--check"]) == 0
    assert "valid" in capsys.readouterr().out
    assert main(["directions", str(tmp_path / "none"), *ENDS, "--check", "contxt=c"]) == 2
    assert "context" in capsys.readouterr().err
    assert main(["directions", str(tmp_path / "none"), "--check"]) == 2
    assert "target, positive, negative" in capsys.readouterr().err
