import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffprobe.cli.completion import script, setting_words
from diffprobe.cli.main import main, verbs


def complete(line: str, tmp_path: Path) -> list[str]:
    """Return what bash offers at the end of a line; `diffprobe` is the one that is tested."""
    program = tmp_path / "diffprobe"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m diffprobe "$@"\n')
    program.chmod(0o755)
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    code = (
        f"PATH='{tmp_path}':$PATH\n{script('bash')}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        f"COMP_LINE='{line}'; COMP_POINT={len(line)}; _diffprobe; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("diffprobe ext", {"extract"}),
        ("diffprobe taps --re", {"--resolution", "--revision"}),
        ("diffprobe store ver", {"verify"}),
        ("diffprobe submit ext", {"extract"}),
        ("diffprobe extract backbone.lo", {"backbone.lora="}),
        ("diffprobe extract backbone=sdxl-", {"sdxl-turbo"}),
    ],
)
def test_bash_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    if "backbone=" in line:  # bash replaces what follows the `=`
        expected = {word.rpartition("=")[2] for word in expected}
    assert set(complete(line, tmp_path)) == expected


def test_both_scripts_have_all_verbs_and_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    bash = capsys.readouterr().out
    assert all(f"            {verb})" in bash for verb in verbs())
    subprocess.run(["bash", "-n"], input=bash, text=True, check=True)
    zsh = script("zsh")
    assert zsh.startswith("autoload -Uz compinit") and bash.strip() in zsh
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n"], input=zsh, text=True, check=True)


def test_words_are_keys_presets_and_experiments() -> None:
    words = setting_words()
    assert {"backbone=sd15", "backbone.lora=", "data.fields.image=", "seed="} <= set(words)
    assert any(word.startswith("experiment=emoji/") for word in words)


def test_words_need_nothing_heavy() -> None:
    code = (
        "import sys; from diffprobe.cli.main import main; main(['completion', 'words']); "
        "assert not {'torch', 'hydra', 'diffusers', 'numpy'} & set(sys.modules)"
    )
    environment = {**os.environ, "DIFFPROBE_SHAPE_CHECKS": "0"}  # the checks of the tests load numpy
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=environment)
