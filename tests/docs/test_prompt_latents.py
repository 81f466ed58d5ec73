"""The page of prompt latents: its file of prompts, its first command and its Python, in order, on the shipped model."""

import shlex
from pathlib import Path
from typing import Any

from tests.docs.markdown import ROOT, blocks
from tests.docs.test_snippets import execute, run, working_in

PAGE = ROOT / "docs/users/prompt-latents.md"


def test_the_page_from_a_file_of_prompts_to_arrays(tmp_path: Path) -> None:
    found = blocks(PAGE)
    (table,) = [block.code for block in found if block.code.startswith("prompt,")]
    (tmp_path / "prompts.csv").write_text(table + "\n")
    command = next(block.code for block in found if block.code.startswith("diffprobe extract"))
    words = shlex.split(command)[1:]
    with working_in(tmp_path):
        small = ["sampling.seeds=2", "sampling.steps=5", "features.timesteps=[199]", "features.taps=[mid_block]"]
        store = run(*words, *small, "sampling.guidance=0", "--quiet").split()[-1]
    workplace: dict[str, Any] = {"cwd": tmp_path, "store": store}
    first, second = [block.code for block in found if block.language == "python"]
    names = execute(first, workplace)
    assert names["features"].shape == (2, 2, 88) and names["attributes"]["style"] == ["noto", "twemoji"]
    names = execute(second, workplace)
    assert names["x"].shape == (4, 88) and names["y"].tolist() == [0, 0, 1, 1]
    cells = ["mid_block@t199:caption:mean", "mid_block@t200:empty:mean"]
    text = PAGE.read_text("utf-8")
    assert all(f"`{cell}`" in text for cell in cells)
