import subprocess
import sys
from pathlib import Path

import pytest

from diffprobe.cli.main import main


def test_taps_are_printed_with_aliases_sizes_and_cost(tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taps", str(tiny_sd), "--resolution", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tap", "aliases", "channels", "size", "FLOPs", "to", "reach"]
    assert [line.split()[0] for line in lines[1:]] == [
        *(f"down_blocks.{i}" for i in range(3)),
        "mid_block",
        *(f"up_blocks.{i}" for i in range(3)),
    ]
    mid = next(line for line in lines if line.startswith("mid_block"))
    assert "bottleneck, h-space" in mid and "8 x 8" in mid and mid.endswith("%")


def test_inner_taps_are_printed_when_asked_for(tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taps", str(tiny_sd), "--inner"]) == 0
    assert "up_blocks.1.attentions.0.transformer_blocks.0.attn2" in capsys.readouterr().out


def test_the_pixels_have_one_tap(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taps", "pixels"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["pixels", "-", "768"]


@pytest.mark.parametrize("args", [["no/such/folder"], ["pixels", "--resolution", "0"]])
def test_faults_leave_by_stderr(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taps", *args]) == 2
    assert capsys.readouterr().err


def test_the_verb_imports_nothing_heavy() -> None:
    code = "import sys, diffprobe.cli.taps; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
