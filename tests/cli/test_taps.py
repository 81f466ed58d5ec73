import subprocess
import sys
from pathlib import Path

import pytest

from diffprobe.cli.main import main

ATTN = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    """Run the verb and return its lines."""
    assert main(["taps", *args]) == 0
    return capsys.readouterr().out.splitlines()


def rows(lines: list[str]) -> list[str]:
    """Return the lines of the table, the header first."""
    table = lines[lines.index("") + 1 :]
    return table[: table.index("")] if "" in table else table


def test_taps_are_printed_with_aliases_sizes_and_cost(tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, *taps = rows(printed(capsys, str(tiny_sd), "--resolution", "64"))
    assert header.split() == ["tap", "aliases", "form", "channels", "size", "FLOPs", "to", "reach"]
    assert [line.split()[0] for line in taps] == [
        *(f"down_blocks.{i}" for i in range(3)),
        "mid_block",
        *(f"up_blocks.{i}" for i in range(3)),
    ]
    mid = next(line for line in taps if line.startswith("mid_block"))
    assert "bottleneck, h-space" in mid and "8 x 8" in mid and mid.endswith("%")


def test_the_backbone_itself_is_described_first(tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, str(tiny_sd))
    assert "family sd_unet, 32 px, noised as 4 x 16 x 16" in lines[0] and lines[0].endswith("timesteps 0..999")
    assert "conditions: empty, caption" in lines[1] and "MFLOPs per image in the whole denoiser" in lines[1]
    assert lines[-1].endswith("more inside the blocks: --inner")


def test_inner_taps_and_readouts_are_printed_when_asked_for(tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, str(tiny_sd), "--inner")
    forms = {line.split()[0]: line.split()[2:] for line in rows(lines)}
    assert forms[ATTN][:5] == ["tokens", "32", "8", "x", "8"]
    assert forms[f"{ATTN}/probs"][:5] == forms[f"{ATTN}/logits"][:5] == ["attention", "24", "8", "x", "8"]
    assert any(line.startswith("attention: one channel per text token") for line in lines)


def test_warnings_have_a_column_and_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffprobe.backbones.families import flux

    lines = printed(capsys, str(flux.tiny(tmp_path)), "--resolution", "32", "--inner")
    header, *taps = rows(lines)
    last = {line.split()[0]: line.split("%")[-1].strip() for line in taps}
    assert header.split()[-1] == "warnings"
    assert last["transformer_blocks.0"] == "massive, text" and last["transformer_blocks.0/modulated"] == "-"
    assert last["single_transformer_blocks.0.attn"] == "text" and last["transformer_blocks.0.attn/heads"] == "-"
    assert {"warning massive", "warning text"} <= {line.split(":")[0] for line in lines}


def test_the_pixels_have_one_tap(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "pixels")
    assert rows(lines)[1].split()[:4] == ["pixels", "-", "map", "768"]
    assert "timesteps only 0" in lines[0] and "0 FLOPs" in lines[1]


@pytest.mark.parametrize("args", [["no/such/folder"], ["pixels", "--resolution", "0"]])
def test_faults_leave_by_stderr(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taps", *args]) == 2
    assert capsys.readouterr().err


def test_the_verb_imports_nothing_heavy() -> None:
    code = "import sys, diffprobe.cli.taps; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
