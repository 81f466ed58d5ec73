"""Two gloo processes that share the latents of one autoencoder train as one process that has all of them.

In float64 to 1e-12; in float32 to 1e-5, since the sums over latents are added in another order. An interrupted run
continues bit for bit, each process holds its share of weights and optimiser state, and the files are those of any run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffprobe.probes.predictions import load_predictions
from diffprobe.probes.sae import KSAE
from diffprobe.probes.sae.sharded import SHARED_BY

SCRIPT = Path(__file__).with_name("latents.py")
ROOT = Path(__file__).parents[2]
EXACT = {"single": {"rtol": 1e-5, "atol": 1e-5}, "double": {"rtol": 1e-12, "atol": 1e-12}}
WEIGHTS = ("W_dec", "W_enc", "b_enc", "b_pre")
pytestmark = [pytest.mark.ddp, pytest.mark.slow]


def start(command, *, fails=False, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode != 0) == fails, done.stderr[-4000:]
    return done


def train(folder, *names, world=2, stop=-1):
    folder.mkdir(exist_ok=True)
    place = {"LATENTS_WORLD": str(world), "LATENTS_OUTPUT": str(folder), "LATENTS_STOP": str(stop)}
    return start([sys.executable, str(SCRIPT), *names], fails=stop >= 0, **place)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What one process left, what two left, and what two left after an interruption."""
    root = tmp_path_factory.mktemp("latents")
    train(root / "one", "single", "double", "half", world=1)
    train(root / "two", "single", "double", "half")
    assert "stopped on purpose" in train(root / "cut", "single", stop=10).stderr
    assert len(list((root / "cut/single").glob("last.latents-*"))) == 2 and not (root / "cut/single-0.json").exists()
    train(root / "cut", "single")
    return root / "one", root / "two", root / "cut"


def tensors(folder, name, rank=0):
    return load_file(folder / f"{name}-{rank}.safetensors")


def seen(folder, name, rank=0):
    return json.loads((folder / f"{name}-{rank}.json").read_text())


@pytest.mark.parametrize("name", ["single", "double"])
def test_weights_optimiser_state_and_dead_counts_are_those_of_one_process(folders, name):
    one, parts = tensors(folders[0], name), [tensors(folders[1], name, rank) for rank in (0, 1)]
    assert all(one.keys() == part.keys() for part in parts)
    divided = {key for key, value in one.items() if parts[0][key].shape != value.shape}
    assert {f"sae.{key}" for key in SHARED_BY} <= divided and "dead_latents.last" in divided
    for key, value in one.items():
        if key not in divided:
            assert parts[0][key].equal(parts[1][key]), key  # what every process has stays equal bit for bit
        found = torch.cat([part[key] for part in parts]) if key in divided else parts[0][key]
        torch.testing.assert_close(found, value, **EXACT[name], msg=lambda m, key=key: f"{key}: {m}")
    assert torch.cat([part["dead_latents.last"] for part in parts]).equal(one["dead_latents.last"])


@pytest.mark.parametrize("name", ["single", "double"])
def test_each_step_chooses_the_same_latents_and_has_the_same_losses(folders, name):
    one, first, second = seen(folders[0], name), seen(folders[1], name), seen(folders[1], name, 1)
    assert one["chosen"] == first["chosen"] == second["chosen"] and len(one["chosen"]) == 4 * 6
    assert one["dead"] == [a + b for a, b in zip(first["dead"], second["dead"], strict=True)]
    assert max(one["dead"]) > 0 and any(step["train/aux"] > 0 for step in one["curves"])
    assert first["curves"] == second["curves"]
    for a, b in zip(one["curves"], first["curves"], strict=True):
        assert b == pytest.approx(a, rel=EXACT[name]["rtol"], abs=EXACT[name]["atol"])


@pytest.mark.parametrize("name", ["single", "double"])
def test_metrics_and_predictions_are_those_of_one_process(folders, name):
    one, first, second = seen(folders[0], name), seen(folders[1], name), seen(folders[1], name, 1)
    assert first["records"] == second["records"] and len(one["records"]) == 3 * 6 + 3
    for (*what, value), (*other, found) in zip(one["records"], first["records"], strict=True):
        assert what == other and found == pytest.approx(value, rel=EXACT[name]["rtol"])
    for split in ("val", "test"):
        a, b = (load_predictions(folder / f"{name}-predictions-{split}.safetensors") for folder in folders[:2])
        assert a.keys == b.keys and a.heads[0].kind == b.heads[0].kind
        for key, value in a.tensors.items():
            torch.testing.assert_close(b.tensors[key], value, rtol=2e-3, atol=2e-3)


def test_each_process_holds_its_share_of_weights_and_optimiser_state(folders):
    one, first, second = seen(folders[0], "single"), seen(folders[1], "single"), seen(folders[1], "single", 1)
    row, shared = 2 * 12 + 1, 12  # decoder, encoder and bias of a latent; the pre-bias
    assert one["elements"] == 33 * row + shared and one["state"] == 2 * one["elements"] + 4  # and four step counts
    for n, part in ((16, first), (17, second)):
        assert part["elements"] == n * row + shared and part["state"] == 2 * part["elements"] + 4


def test_an_interrupted_run_continues_bit_for_bit(folders):
    _, whole, cut = folders
    for rank in (0, 1):
        a, b = (tensors(folder, "single", rank) for folder in (whole, cut))
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert value.equal(b[key]), key
        one, other = seen(whole, "single", rank), seen(cut, "single", rank)
        assert one["records"] == other["records"]
        assert one["chosen"][8:] == other["chosen"]  # the last checkpoint before step 10 is that of step 8
    files = [(folder / "single/sae/probe.safetensors").read_bytes() for folder in (whole, cut)]
    assert files[0] == files[1]


def test_the_saved_autoencoder_is_whole_and_an_ordinary_one(folders):
    one, two = (KSAE.from_pretrained(folder / "single/sae") for folder in folders[:2])
    assert two.n_latents == 33 and two.variant == "topk" and two.config == one.config
    for name in WEIGHTS:
        torch.testing.assert_close(getattr(two, name), getattr(one, name), **EXACT["single"])
    x = 5 + torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    assert one.encode(x).indices.equal(two.encode(x).indices)


def test_half_precision_trains_to_about_the_same(folders):
    one, first, second = seen(folders[0], "half"), seen(folders[1], "half"), seen(folders[1], "half", 1)
    assert first["records"] == second["records"]
    for (*what, value), (*other, found) in zip(one["records"], first["records"], strict=True):
        assert what == other and (what[0] != "fvu" or found == pytest.approx(value, abs=0.1))


def test_the_command_line_starts_two_processes_and_writes_one_result(tiny_sd, tiny_shards, tmp_path):
    from diffprobe.config.compose import load_run
    from diffprobe.core.result import read_result
    from diffprobe.runs.extract import extract_run
    from diffprobe.runs.train import train as train_run

    common = [
        f"backbone.path={tiny_sd}",
        "backbone.device=cpu",
        f"data.path={tiny_shards}",
        "data.batch_size=4",
        "features.taps=[mid_block]",
        "features.timesteps=[20]",
        f"features.store={tmp_path / 'stores'}",
        "probe=topk",
        "probe.params.k=2",
        "probe.params.n_latents=15",
        "probe.params.dead_window=8",
        "trainer=cpu",
        "trainer.max_epochs=2",
        "trainer.enable_progress_bar=false",
        "logger=none",
        f"output={tmp_path / 'runs'}",
    ]
    alone = load_run(None, common)
    extract_run(alone, progress=False)
    one = read_result(train_run(alone))
    shared = [*common, "trainer.strategy=latents", "trainer.devices=2"]
    done = start([sys.executable, "-m", "diffprobe", "train", *shared])
    found = sorted((tmp_path / "runs").glob("sae/*/result.json"))
    assert len(found) == 2 and done.stdout.count("result: ") == 1
    (path,) = (path for path in found if path.parent.name != one.run)
    two = read_result(path)
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert (a.name, a.split, a.n) == (b.name, b.split, b.n) and b.value == pytest.approx(a.value, rel=1e-4)
    assert set(one.artifacts) == set(two.artifacts)
    saved = [KSAE.from_pretrained(folder / "probes/sae") for folder in (path.parent, path.parent.parent / one.run)]
    for name in WEIGHTS:
        torch.testing.assert_close(getattr(saved[0], name), getattr(saved[1], name), rtol=1e-4, atol=1e-5)
