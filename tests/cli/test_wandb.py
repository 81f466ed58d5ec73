"""`diffprobe wandb`: what is listed and printed without a network, and what it says without a login."""

import json

import pytest

from diffprobe.cli.main import main
from tests.training.test_loggers import logged_out  # noqa: F401

pytestmark = pytest.mark.usefixtures("logged_out")


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "runs/e/abc/wandb/offline-run-20261127_130000-abc"
    folder.mkdir(parents=True)
    (folder / "run-abc.wandb").write_bytes(b":W&B")
    return tmp_path / "runs"


def test_offline_runs_are_listed_and_not_sent_without_a_login(results, capsys):
    assert main(["wandb", "sync", "--results", str(results), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(next(results.rglob("offline-run-*")))] and "1 offline run to send" in err
    assert main(["wandb", "sync", "--results", str(results)]) == 2
    assert "WANDB_API_KEY" in capsys.readouterr().err
    empty = results.parent / "empty"
    empty.mkdir()
    assert main(["wandb", "sync", "--results", str(empty)]) == 0  # nothing to send needs no login
    assert "0 offline runs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_workspace_is_printed_and_not_sent_without_a_login(capsys):
    assert main(["wandb", "workspace", "emoji/sae_table", "--entity", "team", "--dry-run"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["entity"], tree["project"]) == ("team", "diffprobe")
    assert main(["wandb", "workspace", "emoji/sae_table"]) == 2
    assert "--dry-run" in capsys.readouterr().err
