"""`diffprobe eval backbone`, through the door of the command line."""

import pytest

from diffprobe.cli.main import main

EXPERIMENT = """\
schema: diffprobe.experiment.evaluate_backbone:BackboneEvaluation
defaults:
  - /data: emoji
  - _self_
n_candidates: 2
n_choice_timesteps: 1
group_attribute: style
gates:
  psnr_db/test: -100
"""


@pytest.fixture
def command(tiny_sd, tiny_shards, tmp_path, monkeypatch):
    (tmp_path / "experiments" / "mine").mkdir(parents=True)
    (tmp_path / "experiments" / "mine" / "evaluate.yaml").write_text(EXPERIMENT)
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path))
    settings = ["experiment=mine/evaluate", f"data.path={tiny_shards}", f"output={tmp_path / 'runs'}"]
    return ["eval", "backbone", str(tiny_sd), *settings]


def test_numbers_and_nothing_else_are_printed(command, tmp_path, capfd):
    assert main(command) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("test  psnr_db")][0].endswith(")")  # its nulls
    (choice,) = (line for line in lines if line.startswith("val   caption_of_2_accuracy"))
    assert " [" in choice and "n=4  (chance 0.5)" in choice
    assert f"result: {tmp_path / 'runs' / 'mine' / 'evaluate' / 'result.json'}" in lines
    assert not [line for line in lines if "gate" in line]
    assert err == ""  # no bar, warning or notice of the libraries


def test_a_missed_gate_is_the_exit_status(command, capsys):
    assert main([*command, "gates={psnr_db/test: 200}"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("gate missed: psnr_db/test is ") and last.endswith(", at least 200 is asked for")


def test_errors_are_for_people(command, tmp_path, capsys):
    assert main([*command[:2], str(tmp_path / "nothing"), *command[3:]]) == 2
    assert "WeightsMissing: there is no folder" in capsys.readouterr().err
    assert main([*command, "group_attribute=stile"]) == 2
    assert "unknown group_attribute 'stile'.\n  nearest: style" in capsys.readouterr().err
    assert main([*command, "n_candidate=3"]) == 2
    assert "n_candidates" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
