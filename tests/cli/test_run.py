"""`diffprobe run`: plan and cost before, the table after, and the exit status."""

import re

import pytest

from diffprobe.cli.main import main
from tests.runs.table_of_tiny import settings, write_table


@pytest.fixture
def tiny(tmp_path, monkeypatch, tiny_sd, tiny_shards):
    write_table(tmp_path, {"mid": "mid_block", "up": "up_blocks.1"})
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return settings(tiny_sd, tiny_shards, tmp_path)


@pytest.mark.slow
def test_a_table_is_run_once_and_printed(tiny, capsys):
    command = ["run", "experiments/paper/layers", *tiny, "--quiet"]
    assert main([*command, "--dry-run", "--passes-s", "0.02", "--steps-s", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("paper/layers: 2 rows: 2 missing\n")
    assert "to do: 48 denoiser passes, 4 optimiser steps" in out
    assert "about 0.67 h at 0.02 passes/s, 2 steps/s, as stated" in out
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "hours: at --passes-s X" in out and "**What a tiny model knows (exploratory)**" in out
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "2 rows: 2 finished\n" in out and "to do: 0 denoiser passes, 0 optimiser steps" in out
    assert "[1/" not in err and "diffprobe table paper/layers --results" in err


@pytest.mark.slow
def test_a_failing_row_is_the_status(tiny, tmp_path, capsys):
    write_table(tmp_path, {"mid": "mid_block", "up": "up_blocks.9"})
    command = ["run", "paper/layers", *tiny, "--quiet"]
    assert main([*command, "--dry-run"]) == 1
    assert "UnknownTap: " in capsys.readouterr().out
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "1 of 2 rows failed:" in err and "diffprobe train experiment=paper/layers/up" in err
    assert re.search(r"paper/layers/up +\| +n/a", out)


@pytest.mark.slow
def test_rows_are_submitted_as_submit_does(tiny, capsys):
    command = ["run", "paper/layers", *tiny, "--submit", "--dry-run"]
    assert main([*command, "cluster=local"]) == 0
    out, err = capsys.readouterr()
    assert main(["submit", "table", "paper/layers", *tiny, "cluster=local", "--dry-run"]) == 0
    ours, theirs = (re.findall(r"arguments=\(.*\)", text) for text in (out, capsys.readouterr().out))
    assert ours == theirs and len(ours) == 5 and out.startswith("#!") and "2 rows: 2 missing" in err
    assert main(command) == 2
    assert "cluster=NAME is missing" in capsys.readouterr().err


def test_what_has_no_effect_is_refused(tiny, capsys):
    assert main(["run", "paper/layers", *tiny, "cluster=local"]) == 2
    assert "--submit" in capsys.readouterr().err
    assert main(["run", "paper/layers", *tiny, "--dry-run", "--passes-s", "0"]) == 2
    assert "--passes-s" in capsys.readouterr().err


@pytest.mark.slow
def test_controls_that_are_runs_are_named(capsys):
    assert main(["run", "emoji", "--dry-run", "control=none"]) == 0
    assert "control=ladder" not in capsys.readouterr().out
    assert main(["run", "emoji", "--dry-run"]) == 0
    assert (
        "raw_pixels, vae_latents, random_weights, text_encoder), which control=ladder adds" in capsys.readouterr().out
    )
