"""``diffprobe notebook``: its errors as printed; the notebook itself is tested in tests/notebook."""

from diffprobe.cli.main import main


def test_a_folder_without_runs_is_one_error(tmp_path, capsys):
    assert main(["notebook", str(tmp_path), "--out", str(tmp_path / "a.ipynb")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
