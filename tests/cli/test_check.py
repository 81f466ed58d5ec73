import subprocess
import sys
from pathlib import Path

import pytest

from diffprobe.cli.main import main


def test_a_backbone_that_can_be_read_gives_status_0(tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tiny_sd), "--batch-size", "4", "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    for fact in ("family: sd_unet, 32 px", "licence: not stated", "unet (UNet2DConditionModel): ", "parameters"):
        assert fact in out
    assert "memory for a batch of 4 images in bfloat16: about" in out and "(an estimate)" in out
    assert out.endswith("it can be read\n")


@pytest.mark.slow
def test_offload_and_8_bits_are_named_and_lower_the_estimate(tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {}
    for way in ((), ("--offload", "blocks"), ("--quantize", "int8")):
        assert main(["check", str(tiny_sd), "--batch-size", "4", *way]) == 0
        lines[way] = [
            line for line in capsys.readouterr().out.splitlines() if "memory for" in line or "weights" in line
        ]
    plain, apart, packed = lines.values()
    assert "in float32, offload=blocks: about" in apart[0] and "in float32, quantize=int8: about" in packed[0]
    assert "while they are read" in packed[1] and "while they are read" not in apart[1] + plain[1]
    assert len({found[1].partition(";")[0] for found in lines.values()}) == 3


def test_one_that_cannot_gives_status_1_and_the_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert (
        "it cannot be read, 1 fault:" in out and "WeightsMissing" in out and "model_index.json" in out and "fix:" in out
    )


@pytest.mark.parametrize("options", [("--resolution", "0"), ("--batch-size", "0"), ("--resolution", "33")])
def test_a_wrong_option_gives_status_2(
    options: tuple[str, str], tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tiny_sd), *options]) == 2
    assert "ConfigError" in capsys.readouterr().err


def test_the_verb_imports_nothing_heavy() -> None:
    code = "import sys, diffprobe.cli.check; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
