"""Adding a table with two rows touches three YAML files; a further row is one more."""

from pathlib import Path

import pytest

from diffprobe.cli.main import main

TABLE = """\
title: What a tiny model knows
metric: accuracy
filter: {experiment: paper/layers, split: test}
exploratory: true
rows:
  - {field: experiment, title: row}
columns: {field: target}
controls:
  - {name: chance, title: chance}
"""
ROW = """\
# {tap} of a tiny model.
#
#   diffprobe train experiment=paper/layers/{name}
defaults:
  - override /probe: linear
  - _self_

features:
  source: live
  taps: [{tap}]
  timesteps: [20]
probe:
  targets: [style]
  params: {{controls: []}}
trainer:
  max_epochs: 1
  enable_progress_bar: false
logger: {{kind: none}}
published:
  {{metric: accuracy, value: 0.5, tolerance: 0.5, source: "Nobody 2025, Table 1", provenance: read in the table}}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    folder = tmp_path / "experiments" / "paper" / "layers"
    folder.mkdir(parents=True)
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path))
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_table_and_its_rows_are_yaml_files(study, tiny_sd, tiny_shards, tmp_path, capsys):
    (study / "table.yaml").write_text(TABLE)
    settings = [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={tiny_shards}", "data.batch_size=8",
        f"output={tmp_path / 'runs'}",
    ]  # fmt: skip

    def add_row(name: str, tap: str) -> None:
        (study / f"{name}.yaml").write_text(ROW.format(name=name, tap=tap))
        assert main(["train", f"experiment=paper/layers/{name}", *settings]) == 0
        capsys.readouterr()

    def rows() -> list[str]:
        assert main(["table", "paper/layers", "--results", str(tmp_path / "runs")]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| paper/layers/")]
        assert all("(0.500 [a], " in line for line in lines)
        return [line.split("|")[1].strip() for line in lines]

    add_row("mid", "mid_block")
    add_row("up", "up_blocks.1")
    assert files(study) == ["mid.yaml", "table.yaml", "up.yaml"]
    assert rows() == ["paper/layers/mid", "paper/layers/up"]
    add_row("early", "up_blocks.0")
    assert files(study) == ["early.yaml", "mid.yaml", "table.yaml", "up.yaml"]
    assert rows() == ["paper/layers/early", "paper/layers/mid", "paper/layers/up"]
