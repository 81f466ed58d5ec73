"""`diffprobe extract`, from the command line."""

import math
import re

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


@pytest.mark.slow
def test_extract_then_list_show_and_verify(settings, tmp_path, capsys):
    assert main(["extract", *settings, "--process", "1/2", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "part 1/2 is written; 4 shards of the store are missing" in out
    assert main(["store", "list", str(tmp_path / "stores")]) == 0
    assert "4 of 7 shards missing" in capsys.readouterr().out

    assert main(["extract", *settings]) == 0
    captured = capsys.readouterr()
    store = captured.out.strip()
    assert "to write: 15 images x 1 cells" in captured.err and "15 images in " in captured.err
    assert main(["extract", *settings]) == 0
    assert capsys.readouterr() == (f"{store}\n", f"the store is complete: {store}\n")
    assert main(["extract", *settings, "--quiet"]) == 0
    assert capsys.readouterr() == (f"{store}\n", "")

    assert main(["store", "list", str(tmp_path / "stores")]) == 0
    assert "1 cells; train 16, val 4, test 4" in capsys.readouterr().out
    assert main(["store", "show", store]) == 0
    out = capsys.readouterr().out
    assert "cell       mid_block@t20:empty:mean (32)" in out and "backbone   seed = 0" in out
    assert "tap        mid_block: 32 channels, 4 x 4" in out
    kept = math.prod(1 - (0.00085**0.5 + i / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2 for i in range(21))  # alpha bar
    sigma, snr = map(float, re.search(r"timestep   20: sigma (\S+), SNR (\S+)", out).groups())
    assert (sigma, snr) == pytest.approx((((1 - kept) / kept) ** 0.5, kept / (1 - kept)), rel=1e-3)
    assert "condition  empty" in out
    assert "weights    vae " in out and "licence    CC0-1.0" in out and "made with  torch " in out
    assert main(["store", "verify", store]) == 0
    assert "all 14 files match their checksums" in capsys.readouterr().out


def test_a_wrong_part_is_refused_before_anything_is_loaded(settings, capsys):
    for part in ("2/2", "x", "1"):
        with pytest.raises(SystemExit):
            main(["extract", *settings, "--process", part])
        assert "I/N with I from 0 to N-1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "process 1/2 (RANK=1, WORLD_SIZE=2)"),
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"},
            "process 1/2 (SLURM_PROCID=1, SLURM_STEP_NUM_TASKS=2)",
        ),
    ],
)
def test_the_part_comes_from_what_started_the_process(settings, capsys, monkeypatch, environ, shown):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(["extract", *settings]) == 0
    captured = capsys.readouterr()
    assert shown in captured.err
    assert "part 1/2 is written; 4 shards of the store are missing" in captured.out
    assert main(["extract", *settings, "--process", "0/1"]) == 0  # what is asked for goes first
    captured = capsys.readouterr()
    assert "process" not in captured.err.splitlines()[0] and "missing" not in captured.out


@pytest.mark.slow
def test_latents_are_reused_listed_shown_and_verified(settings, tmp_path, capsys):
    root = tmp_path / "latents"
    cached = [*settings, f"features.latent_cache={root}"]
    assert main(["extract", *cached]) == 0
    assert "latents: 0 of 7 shards reused, 7 to encode" in capsys.readouterr().err
    assert main(["extract", *cached, "features.timesteps=[30]", "features.snr=[1.0]"]) == 0
    captured = capsys.readouterr()
    assert f"latents: 7 of 7 shards reused, 0 to encode: {root}" in captured.err
    assert main(["store", "show", captured.out.strip()]) == 0
    assert "requested as SNR 1" in capsys.readouterr().out

    (latents,) = root.iterdir()
    assert main(["store", "list", str(root)]) == 0
    assert "latents; test 4, train 16, val 4" in capsys.readouterr().out
    assert main(["store", "show", str(latents)]) == 0
    out = capsys.readouterr().out
    assert "latent_store" in out and "cell       vae_latents (4)" in out and "weights    vae " in out
    assert main(["store", "verify", str(latents)]) == 0
    assert "all 14 files match their checksums" in capsys.readouterr().out
    (latents / "val-0000.tar" / "vae_latents.safetensors").unlink()
    assert main(["store", "verify", str(latents)]) == 1
    assert "val-0000.tar/vae_latents.safetensors: missing" in capsys.readouterr().out


def test_an_unknown_key_is_refused_with_the_nearest(settings, capsys, tmp_path):
    assert main(["extract", *settings, "features.timestep=[3]"]) == 2
    assert "features.timesteps" in capsys.readouterr().err
    assert not (tmp_path / "stores").exists()


@pytest.mark.slow
def test_check_prints_stores_and_cost_and_writes_nothing(settings, tmp_path, capsys):
    assert main(["extract", *settings, "--check"]) == 0
    first, store, to_write, passes = capsys.readouterr().out.splitlines()
    assert first == "the configuration is valid" and store.endswith(", new") and "24 images x 1 cells" in to_write
    assert passes == "denoiser passes: 24 (1 per image)" and not (tmp_path / "stores").exists()
    assert main(["extract", *settings, "control=ladder", "--check", "--process", "1/2"]) == 0
    out = capsys.readouterr().out
    assert "raw_pixels:" in out and out.count(", new") == out.count("of them by process 1/2") >= 4
    assert main(["extract", *settings, "--check", "features.taps=[mid_blok]"]) == 2
    assert main(["extract", *settings, "--check", "features.source=live"]) == 2
    assert "features.source=stored" in capsys.readouterr().err


def test_live_features_need_no_store(settings, capsys):
    assert main(["extract", *settings, "features.source=live"]) == 2
    assert "features.source=stored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("control", "cell"), [("raw_pixels", "pixels@t0:empty:mean"), ("random_weights", "mid_block@t20")]
)
def test_a_control_has_a_store_of_its_own(settings, control, cell, capsys):
    assert main(["extract", *settings, "--quiet"]) == 0
    own = capsys.readouterr().out
    assert main(["extract", *settings, f"control={control}", "--quiet"]) == 0
    store = capsys.readouterr().out
    assert store != own
    assert main(["store", "show", store.strip()]) == 0
    assert cell in capsys.readouterr().out


@pytest.mark.slow
def test_prompts_are_extracted_listed_shown_and_verified(tiny_sd, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("prompt,animal\na red cat,cat\na dog,dog\n")
    words = [
        "extract", "experiment=emoji/prompts", f"prompts={tmp_path / 'p.csv'}", f"backbone.path={tiny_sd}",
        "backbone.device=cpu", "features.taps=[mid_block]", "features.timesteps=[499]", "sampling.steps=2",
        "sampling.seeds=2", f"features.store={tmp_path / 'stores'}",
    ]  # fmt: skip
    assert main(words) == 0
    captured = capsys.readouterr()
    store = captured.out.strip()
    assert "2 prompts x 2 seeds, ddim with 2 steps, guidance 3: 5 passes per sample" in captured.err
    assert main(["store", "list", str(tmp_path / "stores")]) == 0
    assert "2 cells; train 4" in capsys.readouterr().out
    assert main(["store", "show", store]) == 0
    out = capsys.readouterr().out
    assert "cell       mid_block@t499:caption:mean (32)" in out and "attributes: animal, prompt_id, seed" in out
    assert '"grid": [999, 499]' in out and "condition  empty" in out
    assert main(["store", "verify", store]) == 0
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == store
    assert main([*words, "features.timesteps=[500]"]) == 2
    assert "nearest: 499" in capsys.readouterr().err
    assert main([*words, "features.condition=caption"]) == 2
    assert "condition" in capsys.readouterr().err
