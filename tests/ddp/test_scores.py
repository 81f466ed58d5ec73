"""`diffprobe score` in two processes at the same time, numbered as torchrun does, leaves what one process leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffprobe.core.result import read_result

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ddp, pytest.mark.slow]
FILE = """
kind: score
backbone: {{path: {model}, device: cpu}}
data: {{path: {shards}}}
group_by: colour
candidates: {{n: 3}}
n_timesteps: 3
stages: [{{n_timesteps: 1, kept: 2}}]
chunk: 1
"""


def start(folder: Path, output: str, environ: dict[str, str]) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "diffprobe", "score", "mine", f"output={output}"],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environ}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_at_once_are_one(tmp_path: Path, tiny_sd: Path, tiny_shards: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(FILE.format(model=tiny_sd, shards=tiny_shards))
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} for rank in (0, 1)]
    both = [start(tmp_path, "two", environ) for environ in ranks]
    for process, output in [*((process, process.communicate(timeout=300)) for process in both)]:
        assert process.returncode == 0, output
    alone = start(tmp_path, "one", {})
    assert alone.communicate(timeout=300) and alone.returncode == 0
    (one,), (two,) = (list((tmp_path / name).rglob("result.json")) for name in ("one", "two"))
    assert two.relative_to(tmp_path / "two") == one.relative_to(tmp_path / "one")
    assert read_result(two).metrics == read_result(one).metrics
    bytes_of = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.safetensors")}
        for name in ("one", "two")
    ]
    assert bytes_of[0] == bytes_of[1] and len(bytes_of[0]) == 3 * 4  # two sets of noise and the random denoiser
