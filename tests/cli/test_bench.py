import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffprobe.cli.main import main


@pytest.mark.slow
def test_a_table_is_printed_and_everything_written(tmp_path, capsys) -> None:
    file = tmp_path / "bench.json"
    arguments = ["--size", "small", "--resolution", "32", "--images", "1", "--repeats", "1", "--device", "cpu"]
    assert main(["bench", "extraction", *arguments, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "| 4 taps x 5 timesteps |" in out and "ours / floor" in out
    assert len(json.loads(file.read_text())["rows"]) == 2


@pytest.mark.slow
def test_the_autoencoder_step_has_a_table_too(tmp_path, capsys) -> None:
    file = tmp_path / "bench.json"
    sizes = ["--shape", "32,16,64,4", "--steps", "2", "--rounds", "1"]
    assert main(["bench", "ksae", *sizes, "--no-peers", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "| 32, 16, 64, 4 | bfloat16 | dense step |" in out and "| bfloat16 | ours, step=dense |" in out
    assert "| fastest other / ours | ours / encoder |" in out
    written = json.loads(file.read_text())
    assert len(written["rows"][0]["measured"]) == 8 and written["versions"] == written["absent"] == {}


@pytest.mark.slow
def test_the_quality_of_autoencoders_has_a_table(tmp_path, capsys) -> None:
    rows, file = tmp_path / "rows.safetensors", tmp_path / "bench.json"
    save_file({name: torch.randn(64, 8) for name in ("train", "val", "test")}, rows)
    sizes = ["--k", "2", "--batch", "16", "--lengths", "2,3", "--rates", "0.001", "--try", "decay=0,0.5"]
    words = ["--quality", "--rows", str(rows), *sizes, "--no-peers", "--json", str(file)]
    assert main(["bench", "ksae", *words]) == 0
    out = capsys.readouterr().out
    assert "rows: 64 training rows of width 8, 64 latents, k = 2, batch 16" in out and "| 3 | ours, defaults |" in out
    assert len(json.loads(file.read_text())["trials"]) == 2 + 2 * 1 * 2
    assert not Path(f"{file}.partial.jsonl").exists()


@pytest.mark.slow
def test_a_stopped_quality_continues_after_its_finished_trainings(tmp_path, capsys, monkeypatch) -> None:
    from diffprobe.benchmarks import ksae_quality

    rows, file = tmp_path / "rows.safetensors", tmp_path / "bench.json"
    save_file({name: torch.randn(64, 8) for name in ("train", "val", "test")}, rows)
    words = ["bench", "ksae", "--quality", "--rows", str(rows), "--k", "2", "--batch", "16", "--lengths", "2"]
    words += ["--rates", "0.001", "--no-peers", "--json", str(file)]

    def stop(*args: object, **given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ksae_quality, "QualityReport", stop)  # after the last training
    assert main(words) == 130 and not file.exists()
    assert "finished trainings are in FILE.partial.jsonl" in capsys.readouterr().err
    kept = [json.loads(line)["found"] for line in Path(f"{file}.partial.jsonl").read_text().splitlines()]
    monkeypatch.undo()
    assert main(words) == 0 and not Path(f"{file}.partial.jsonl").exists()
    assert json.loads(file.read_text())["trials"] == kept and len(kept) == 2  # with their seconds


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--k", "2", "--try", "decay=0"], "--k, --try has no effect without --quality"),
        (["--quality", "--rows", "r", "--steps", "2"], "--steps has no effect with --quality"),
        (["--quality"], "--store FOLDER --cell CELL, or on --rows FILE"),
        (["--quality", "--store", "s"], "--store FOLDER --cell CELL, or on --rows FILE"),
        (["--quality", "--rows", "r", "--images", "3"], "--images has no effect"),
        (["--quality", "--rows", "r", "--peer", "sparsify", "--no-peers"], "--peer contradicts --no-peers"),
        (["--quality", "--rows", "r", "--try", "decai=0"], "nearest: decay"),
    ],
)
def test_options_of_the_quality_without_effect_are_refused(words, says, capsys) -> None:
    assert main(["bench", "ksae", *words]) == 2
    assert says in capsys.readouterr().err


def test_prompts_have_a_table(tiny_sd, tmp_path, capsys) -> None:
    file = tmp_path / "bench.json"
    words = ["--backbone", str(tiny_sd), "--prompts", "2", "--seeds", "1", "--steps", "2", "--device", "cpu"]
    assert main(["bench", "prompts", *words, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "2 prompts x 1 seeds x 2 steps, batches of 2 samples" in out and "| extraction / bare |" in out
    assert json.loads(file.read_text())["passes"] == 4


def test_growth_has_a_table(tmp_path, capsys) -> None:
    file = tmp_path / "bench.json"
    assert main(["bench", "scale", "--samples", "80", "--classes", "80", "--cells", "8", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "growth exponents" in out and "| scan of an index: classes | 10 / 20 / 40 / 80 |" in out
    assert len(json.loads(file.read_text())["rows"]) == 7


PLAN = [
    "--gpu-rate", "50", "--gpus", "10", "--images", "1000000", "--image-bytes", "1e5", "--cells", "5", "--width", "500",
    "--read-bandwidth", "1e4", "--write-bandwidth", "1e3",
]  # fmt: skip


def test_a_plan_has_a_table_and_everything_is_written(tmp_path, capsys) -> None:
    rates, file = tmp_path / "rates.json", tmp_path / "plan.json"
    found = {"read_mb_s": 500.0, "checksum_mb_s": 1000.0, "decode_images_s": 250.0, "write_mb_s": 200.0}
    rates.write_text(json.dumps({"rates": found}))
    assert main(["bench", "plan", "--rates", str(rates), *PLAN, "--json", str(file)]) == 0
    assert "limited by the GPUs" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["plan"]["limit"] == "the GPUs" and written["rates"] == found
    assert main(["bench", "plan", "--rates", str(rates), *PLAN, "--gpus", "0"]) == 2
    assert capsys.readouterr().err.startswith("ConfigError: gpus=0")


def test_numbers_of_processes_are_numbers(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "scaling", "--processes", "1,two"])
    assert "1,two" in capsys.readouterr().err


def test_an_invalid_shape_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "ksae", "--shape", "32x16"])
    assert "batch,d_in,n_latents,k" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["extraction", "ksae", "scale"])
def test_a_file_that_cannot_be_written_is_reported_before_anything_is_measured(what, tmp_path, capsys) -> None:
    assert main(["bench", what, "--json", str(tmp_path / "gone" / "bench.json")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("FileNotFoundError: ") and "bench.json" in err and "measuring" not in err


@pytest.mark.parametrize(
    ("option", "words"),
    [("--device=tpu", "device=tpu"), ("--resolution=0", "resolution=0")],
)
def test_invalid_settings_are_reported(option, words, tmp_path, capsys) -> None:
    file = tmp_path / "bench.json"
    assert main(["bench", "extraction", option, "--json", str(file)]) == 2
    assert words in capsys.readouterr().err and not file.exists()


def test_an_unknown_size_is_named(capsys) -> None:
    assert main(["bench", "extraction", "--size", "huge"]) == 2
    assert "sizes: sd15, sdxl, flux, dit, mmdit, small" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["cooking"]])
def test_what_is_measured_must_be_said(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        main(["bench", *arguments])


def test_a_dictionary_without_a_folder_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "dictionaries", "scenes", "--own", "mine"])
    assert "NAME=FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_dictionaries_have_tables_and_a_record(tiny_sd, tmp_path, capsys, monkeypatch) -> None:
    from diffprobe.benchmarks import leaderboard_ground
    from diffprobe.benchmarks.timed_dictionaries import TrainingSettings
    from diffprobe.report.leaderboard_table import read_leaderboard

    board = leaderboard_ground.Board(
        name="scenes", backbone=str(tiny_sd), cell="conv_in@t500:empty:none", factors=("texture",), pointing=(),
        target_tap="up_blocks.1", n_fit=8, n_train=30, n_test=20, resolution=32, n_permutations=19, n_resamples=10,
        training=TrainingSettings(k=2, expansion=2, batch=256),
    )  # fmt: skip
    monkeypatch.setitem(leaderboard_ground.BOARDS, "scenes", board)
    file, table = tmp_path / "a.json", tmp_path / "a.csv"
    words = ["--seconds", "0.05", "--seeds", "0", "--no-peers", "--output", str(tmp_path / "kept")]
    assert main(["bench", "dictionaries", "scenes", *words, "--json", str(file), "--csv", str(table)]) == 0
    out = capsys.readouterr().out
    assert "| factors with a latent |" in out and "| TopK, labels permuted | texture |" in out
    found = read_leaderboard(file)
    names = {"TopK", "BatchTopK", "Matryoshka", "JumpReLU", "transcoder", "raw neurons"}
    assert {row.name for row in found.rows} >= names
    assert len(table.read_text().splitlines()) == 1 + len(found.rows)
