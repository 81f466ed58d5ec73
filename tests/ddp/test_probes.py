"""Two gloo processes give the numbers of one on the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffprobe.probes.predictions import load_predictions

SCRIPT = Path(__file__).with_name("all_probes.py")
ROOT = Path(__file__).parents[2]
PERMUTED = ("group_by", "groups_permuted_whole", "groups_permuted_within", "changed", "n")
pytestmark = [pytest.mark.ddp, pytest.mark.slow]


def start(command, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("ddp")
    for world in (1, 2):
        start([sys.executable, str(SCRIPT)], PROBES_WORLD=str(world), PROBES_OUTPUT=str(root / str(world)))
    return root / "1", root / "2"


@pytest.fixture(scope="module")
def results(folders):
    one, two = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert one.keys() == two.keys() and len(one) == 13
    return one, two


def assert_equal(results, name, **tolerance):
    one, two = (part[name] for part in results)
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert (a["name"], a["split"], a["cell"], a["n"]) == (b["name"], b["split"], b["cell"], b["n"])
        assert b["value"] == pytest.approx(a["value"], **tolerance), (a["name"], a["split"])
        assert b["controls"] == pytest.approx(a["controls"], **tolerance)
        assert b["detail"].get("shuffled_labels") == a["detail"].get("shuffled_labels")  # one permutation
        nulls = [part["detail"].get("control_nulls", {}).get("shuffled_labels", {}) for part in (a, b)]
        assert [nulls[1].get(key) for key in PERMUTED] == [nulls[0].get(key) for key in PERMUTED]


@pytest.mark.parametrize("name", ["classifier_fixed", "sae_fixed"])
def test_evaluation_of_fixed_weights_is_exact(results, name):
    # Counts are equal; sums differ by what float32 products of 16 rows and of 8 rows do.
    assert_equal(results, name, rel=1e-12 if name == "classifier_fixed" else 1e-7)
    assert {r["n"] for r in results[1][name] if r["split"] == "test" and r["target"] != "label"} == {21}  # 11 + 10


@pytest.mark.parametrize("name", ["classifier_fixed", "sae_fixed", "direction_ridge"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_of_fixed_weights_are_the_same_for_unequal_shares(folders, name, split):
    one, two = (load_predictions(folder / f"{name}-predictions-{split}.safetensors") for folder in folders)
    assert len(one) == {"val": 33, "test": 21}[split]  # odd: one process has a sample more
    assert one.keys == two.keys and one.values == two.values and len(one.heads) == len(two.heads)
    for tensor in one.tensors:  # float32 products of 16 rows and of 8 rows differ in the last bits
        torch.testing.assert_close(two.tensors[tensor], one.tensors[tensor], rtol=2e-3, atol=2e-3)
    if name == "classifier_fixed":
        paths = [folder / f"{name}-predictions-{split}.safetensors" for folder in folders]
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    "name", ["direction_mean_difference", "direction_ridge", "direction_ridge_cv", "direction_lda", "direction_pca"]
)
def test_closed_forms_are_exact(folders, results, name):
    assert_equal(results, name, abs=1e-6)
    one, two = (load_file(folder / f"{name}.safetensors")["found"] for folder in folders)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["classifier", "classifier_bank", "sae", "direction_logistic"])
def test_training_agrees_to_rounding(folders, results, name):
    one, two = (load_file(folder / f"{name}.safetensors") for folder in folders)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")
    assert_equal(results, name, abs=1e-4)


@pytest.mark.parametrize("name", ["classifier_bf16", "sae_bf16"])
def test_bf16_runs_in_two_processes(results, name):
    assert_equal(results, name, abs=0.1)


def test_dead_latent_counters_count_both_processes(folders):
    one, two = (load_file(folder / "sae.safetensors") for folder in folders)
    for name in ("dead_latents.n", "dead_latents.last"):  # one line of samples, whoever saw which
        assert one[name].equal(two[name])
    assert int((one["dead_latents.n"] - 1 - one["dead_latents.last"]).max()) > 92


def test_the_command_line_starts_two_processes_and_writes_one_result(tiny_sd, tiny_shards, tmp_path):
    from diffprobe.config.compose import load_run
    from diffprobe.core.result import read_result
    from diffprobe.runs.extract import extract_run
    from diffprobe.runs.train import train

    settings = [
        f"backbone.path={tiny_sd}",
        "backbone.device=cpu",
        f"data.path={tiny_shards}",
        "features.taps=[mid_block]",
        "features.timesteps=[20]",
        f"features.store={tmp_path / 'stores'}",
        "probe=linear",
        "probe.targets=[style]",
        "trainer.max_epochs=2",
        "trainer.enable_progress_bar=false",
        "logger=wandb",
        f"output={tmp_path / 'runs'}",
    ]
    alone = load_run(None, [*settings, "data.batch_size=4", "logger=none"])
    extract_run(alone, progress=False)
    one = read_result(train(alone))
    both = [*settings, "data.batch_size=2", "trainer=ddp_cpu"]
    netrc = {"NETRC": str(tmp_path / "none"), "WANDB_MODE": "offline"}
    done = start([sys.executable, "-m", "diffprobe", "train", *both], **netrc)
    found = sorted((tmp_path / "runs").glob("classifier/*/result.json"))
    assert len(found) == 2 and done.stdout.count("result: ") == 1
    (path,) = (path for path in found if path.parent.name != one.run)
    two = read_result(path)
    assert two.wandb_run_id and len(list(path.parent.glob("wandb/offline-run-*"))) == 1
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert (a.name, a.n) == (b.name, b.n) and b.value == pytest.approx(a.value)
