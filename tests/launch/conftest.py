"""A false SLURM: scripts that note their arguments and answer from files."""

import os
import stat
from pathlib import Path

import pytest

PROGRAMS = {
    "sbatch": """
n=$(cat "$here/next" 2>/dev/null || echo 100); echo $((n + 1)) >"$here/next"
for last; do :; done
if [ -e "$here/refuse" ] && grep -q "$(cat "$here/refuse")" "$last"; then
  echo "sbatch: error: invalid partition specified: nope" >&2
  echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
  exit 1
fi
name=$(sed -n 's/^#SBATCH --job-name=//p' "$last"); array=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$last")
if [ -n "$array" ]; then
  for i in $(seq 0 "$array"); do echo "${n}_$i|$name|PENDING|0:00|10:00|Resources" >>"$here/queue"; done
else
  echo "$n|$name|PENDING|0:00|10:00|Resources" >>"$here/queue"
fi
echo "$n"
""",
    "squeue": 'cat "$here/queue" 2>/dev/null || true',
    "scancel": 'for job in "$@"; do sed -i "/^$job[_|]/d" "$here/queue"; done',
    "scontrol": 'cat "$here/job" 2>/dev/null || { echo "Invalid job id specified" >&2; exit 1; }',
}


class FalseSlurm:
    """The folder of the scripts: `queue` has the lines of squeue, `calls` what was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def queue(self, *lines: str) -> None:
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def refuse(self, text: str) -> None:
        """Let sbatch refuse scripts with this text."""
        (self.folder / "refuse").write_text(text)

    def knows(self, line: str) -> None:
        """Let scontrol answer this."""
        (self.folder / "job").write_text(line)


@pytest.fixture
def false_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FalseSlurm:
    folder = tmp_path / "false-slurm"
    folder.mkdir()
    for name, body in PROGRAMS.items():
        script = folder / name
        script.write_text(f'#!/bin/bash\nhere={folder}\necho "{name} $*" >>"$here/calls"\n{body}\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return FalseSlurm(folder)
