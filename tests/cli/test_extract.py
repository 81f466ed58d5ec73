"""`diffprobe extract`, through the door of the command line."""

import pytest

from diffprobe.cli.main import main


@pytest.fixture
def settings(tiny_sd, tiny_shards, tmp_path):
    return [
        f"backbone.path={tiny_sd}",
        "backbone.device=cpu",
        f"data.path={tiny_shards}",
        "data.batch_size=8",
        "features.taps=[mid_block]",
        "features.timesteps=[20]",
        f"features.store={tmp_path / 'stores'}",
    ]


def test_extract_then_list_show_and_verify(settings, tmp_path, capsys):
    assert main(["extract", *settings, "--process", "1/2", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "part 1/2 is written; 4 shards of the store are left to the other parts." in out
    assert main(["store", "list", str(tmp_path / "stores")]) == 0
    assert "4 of 7 shards missing" in capsys.readouterr().out

    assert main(["extract", *settings]) == 0
    captured = capsys.readouterr()
    store = captured.out.strip()
    assert "15/15" in captured.err and "image/s" in captured.err  # the bar counts what was left to do
    assert main(["extract", *settings]) == 0
    assert capsys.readouterr() == (f"{store}\n", "")

    assert main(["store", "list", str(tmp_path / "stores")]) == 0
    assert "1 cells; train 16, val 4, test 4" in capsys.readouterr().out
    assert main(["store", "show", store]) == 0
    out = capsys.readouterr().out
    assert "cell       mid_block@t20:empty:mean (32)" in out and "backbone   seed = 0" in out
    assert main(["store", "verify", store]) == 0
    assert "all 14 files are as they were written" in capsys.readouterr().out


def test_a_wrong_part_is_refused_before_anything_is_loaded(settings, capsys):
    for part in ("2/2", "x", "1"):
        with pytest.raises(SystemExit):
            main(["extract", *settings, "--process", part])
        assert "write I/N with I from 0 to N-1" in capsys.readouterr().err


def test_an_unknown_key_is_refused_with_the_nearest(settings, capsys, tmp_path):
    assert main(["extract", *settings, "features.timestep=[3]"]) == 2
    assert "features.timesteps" in capsys.readouterr().err
    assert not (tmp_path / "stores").exists()


def test_live_features_need_no_store(settings, capsys):
    assert main(["extract", *settings, "features.source=live"]) == 2
    assert "it needs no store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("null", "cell"), [("raw_pixels", "pixels@t0:empty:mean"), ("random_weights", "mid_block@t20")]
)
def test_a_null_has_a_store_of_its_own(settings, null, cell, capsys):
    assert main(["extract", *settings, "--quiet"]) == 0
    own = capsys.readouterr().out
    assert main(["extract", *settings, f"null={null}", "--quiet"]) == 0
    store = capsys.readouterr().out
    assert store != own
    assert main(["store", "show", store.strip()]) == 0
    assert cell in capsys.readouterr().out
