"""A table of tiny runs below a search path, for the tests of what runs, costs and submits whole tables."""

from collections.abc import Sequence
from pathlib import Path

TABLE = """\
title: What a tiny model knows
metric: accuracy
filter: {experiment: paper/layers, split: test}
exploratory: true
rows:
  - {field: experiment, title: row, values: [%s]}
columns: {field: target}
"""
ROW = """\
# A row of a tiny table.
#
#   diffprobe train experiment=paper/layers/NAME
defaults:
  - override /probe: linear
  - _self_

features:
  taps: [%s]
  timesteps: [20]
probe:
  targets: [style]
  params: {controls: []}
trainer:
  max_epochs: 1
  enable_progress_bar: false
logger: {kind: none}
"""


def write_table(root: Path, rows: dict[str, str]) -> None:
    """Write the table `paper/layers`: name of each row -> its tap."""
    folder = root / "experiments" / "paper" / "layers"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.yaml").write_text(TABLE % ", ".join(f"paper/layers/{name}" for name in rows))
    for name, tap in rows.items():
        (folder / f"{name}.yaml").write_text(ROW % tap)


def settings(backbone: Path, data: Path, folder: Path) -> Sequence[str]:
    """Return the settings that every row takes: tiny model and data, and folders of results and stores."""
    return (
        f"backbone.path={backbone}", "backbone.device=cpu", f"data.path={data}", "data.batch_size=8",
        f"features.store={folder / 'stores'}", f"output={folder / 'runs'}",
    )  # fmt: skip
