"""Two gloo processes train the same autoencoders as one process on the same global batch.

BatchTopK and Matryoshka select over the global batch, ties included; the penalty of JumpReLU, its revival of dead
latents and the variance of revelio_released are those of the global batch; a bank trains as single runs do.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffprobe.probes.sae import KSAE

SCRIPT = Path(__file__).with_name("sae_bank.py")
ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ddp, pytest.mark.slow]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sae_bank")
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    for world in (1, 2):
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PROBES_WORLD": str(world)}
        environment = {**clean, **own, "PROBES_OUTPUT": str(root / str(world))}
        command = [sys.executable, str(SCRIPT)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
    return root / "1", root / "2"


@pytest.fixture(scope="module")
def seen(folders):
    one, two = folders
    paths = (one / "seen-0.json", two / "seen-0.json", two / "seen-1.json")
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka", "batch_topk_bf16", "matryoshka_bf16"])
def test_processes_share_one_budget(seen, name):
    one, first, second = (part[name]["kept"] for part in seen)
    assert one == [a + b for a, b in zip(first, second, strict=True)] == 4 * [*5 * [3 * 16], 3 * 12]
    assert any(a != b for a, b in zip(first, second, strict=True))  # not half of the budget each


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_processes_keep_the_same_ones_of_equal_latents(folders, name):
    one, two = folders
    first, second = (load_file(two / f"ties-{rank}.safetensors")[name] for rank in (0, 1))
    whole = load_file(one / "ties-0.safetensors")[name]
    assert torch.stack([first, second], 1).flatten(0, 1).equal(whole) and int((whole > 0).sum()) == 3 * 16


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka", "jumprelu", "revelio_released"])
def test_the_mean_loss_of_the_processes_is_that_of_one(seen, name):
    one, first, second = ([step["train/loss"] for step in part[name]["curves"]] for part in seen)
    assert [(a + b) / 2 for a, b in zip(first, second, strict=True)] == pytest.approx(one, rel=1e-3)


def test_both_processes_have_the_same_dead_latents_and_revive_them(seen):
    one, first, second = (part["batch_topk"] for part in seen)
    assert one["dead"] == first["dead"] == second["dead"] and max(one["dead"]) > 0
    assert any(aux > 0 for aux in one["aux"])
    means = [(a + b) / 2 for a, b in zip(first["aux"], second["aux"], strict=True)]
    assert means == pytest.approx(one["aux"], rel=1e-3, abs=1e-6)


def test_scores_agree_and_count_each_sample_once(seen):
    one, first, second = (part["batch_topk"]["scores"] for part in seen)
    assert first == second
    for split in ("train", "test"):
        assert first[split] == pytest.approx(one[split], abs=1e-4)


def test_curves_are_those_of_the_global_batch(seen):
    one, first, second = (part["batch_topk"]["curves"] for part in seen)
    assert first == second and len(one) == len(first) == 4 * 6
    for a, b in zip(one, first, strict=True):
        assert set(a) == {"train/loss", "train/fvu", "train/aux"} and b == pytest.approx(a, rel=1e-3, abs=1e-6)


def test_the_saved_threshold_is_that_of_one_process(folders):
    one, two = (KSAE.from_pretrained(folder / "batch_topk" / "sae") for folder in folders)
    assert float(one.threshold) > 0 and float(two.threshold) == pytest.approx(float(one.threshold), rel=1e-4)


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka", "jumprelu", "revelio_released", "bank", "batched"])
def test_training_agrees_to_rounding(folders, name):
    one, two = (load_file(folder / f"{name}.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


def test_members_that_step_together_are_those_that_step_one_by_one(folders):
    for folder in folders:
        one, other = (load_file(folder / f"{name}.safetensors") for name in ("bank", "batched"))
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")
