"""Probes of a tiny transformer with a planted massive channel: read with the channels of their training, or refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffprobe.backbones.families import dit
from diffprobe.core.errors import ConfigError, StoreMismatch
from diffprobe.core.result import RESULT_FILE, STORE, read_result
from diffprobe.evaluation.certificates import dictionary, direction
from diffprobe.evaluation.certificates.method import Method
from diffprobe.evaluation.decode import DecodeConfig, decode
from diffprobe.evaluation.explore_runs import open_explored, open_live
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.evaluation.labels import LabelsEvaluation, evaluate_labels
from diffprobe.evaluation.latent_use import evaluate_latents
from diffprobe.evaluation.latent_use_settings import LatentUseEvaluation
from diffprobe.evaluation.sae import SaeEvaluation, evaluate_sae
from diffprobe.evaluation.steer import SteerConfig, steer
from diffprobe.evaluation.steering import evaluate_steering
from diffprobe.evaluation.steering_settings import SteeringEvaluation
from diffprobe.features.reader import FeatureStore
from diffprobe.runs.massive_notes import DETAIL
from diffprobe.shards.index import build_index
from tests.evaluation.page_runs import DIRECTION, SAE, opened, trainer

PLANTED = 5
TAP = "transformer_blocks.1"
CELL = f"{TAP}@t20:empty:mean"
OF_CELL = (f"features.taps=[{TAP}]", f"probe.cell={TAP}@t20")
TREATED = ("features.massive.treatment=clip", "features.massive.images=6")
"""Settings of treated channels; the rule is the default one."""
ENDS: dict[str, tuple[str, ...]] = {"texture": ("striped", "plain")}
LOOSE = {"min_count": 1, "min_groups": 1, "n_random": 20, "n_permutations": 19, "n_resamples": 20, "terms": 0}


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DiT whose block adds a large number to one channel of the residual stream."""
    folder = dit.tiny(tmp_path_factory.mktemp("planted") / "model")
    file = next((folder / "transformer").glob("*.safetensors"))
    weights = load_file(file)
    weights["transformer_blocks.1.ff.net.2.bias"][PLANTED] += 3e4
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def make(transformer: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    train = trainer(transformer, tiny_shards, tmp_path_factory.mktemp("treated"))
    return lambda *settings: train(*OF_CELL, *settings)


@pytest.fixture(scope="module")
def sae(make: Callable[..., Path]) -> Path:
    return make(*SAE, *TREATED)


@pytest.fixture(scope="module")
def plain_sae(make: Callable[..., Path]) -> Path:
    return make(*SAE)


@pytest.fixture(scope="module")
def others(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images with other splits, so that channels are found on other ones."""
    folder = tmp_path_factory.mktemp("others")
    held = [*sorted(tiny_shards.glob("val-*.tar")), *sorted(tiny_shards.glob("test-*.tar"))]
    for number, file in enumerate(held):
        shutil.copy(file, folder / f"train-{number:04d}.tar")
    for split, file in zip(("val", "test", "test"), sorted(tiny_shards.glob("train-*.tar")), strict=True):
        shutil.copy(file, folder / f"{split}-{file.stem[-4:]}.tar")
    build_index(folder, name="others", licence="CC0-1.0")
    return folder


def store_of(run: Path) -> str:
    result = read_result(run / RESULT_FILE)
    return str(Path(result.config["features"]["store"]) / result.artifacts[STORE][:16])


def probe_of(run: Path) -> Path:
    return next((run / "probes").rglob("probe.json")).parent


def listed(path: Path) -> dict[str, Any]:
    """Return the channels that all records of a result list."""
    (found,) = {json.dumps(one.detail[DETAIL], sort_keys=True) for one in read_result(path).metrics}
    return dict(json.loads(found))


@pytest.mark.slow
def test_runs_on_stores_list_the_channels_of_the_manifest(sae: Path, plain_sae: Path) -> None:
    found = listed(sae / RESULT_FILE)
    recorded = FeatureStore.open(store_of(sae)).manifest.recorded["massive"]["taps"]
    assert found == recorded[TAP] and list(found[CELL]["channels"]) == [str(PLANTED)]
    assert not any(DETAIL in one.detail for one in read_result(plain_sae / RESULT_FILE).metrics)


def test_evaluations_that_read_the_store_of_the_run_list_its_channels(sae: Path, tmp_path: Path) -> None:
    labels = LabelsEvaluation(
        experiment="t", run=str(sae), target="style", top=(1,), n_top_images=2, n_permutations=2, n_renumberings=2,
        held_out=("test",), device="cpu", output=str(tmp_path),
    )  # fmt: skip
    (path,) = evaluate_labels(labels)
    assert listed(path) == listed(sae / RESULT_FILE)


@pytest.mark.slow
@pytest.mark.parametrize("treatment", ["clip", "drop"])
def test_a_direction_is_decoded_with_the_channels_of_its_training(
    make: Callable[..., Path], others: Path, tmp_path: Path, treatment: str
) -> None:
    treated = (f"features.massive.treatment={treatment}", "features.massive.images=6")
    run = make(*DIRECTION, *treated)
    own, _ = decode(probe_of(run), DecodeConfig(store=store_of(run), group_by="sample", **LOOSE), output=tmp_path)
    assert own.ranked
    plain = store_of(make(*DIRECTION))
    with pytest.raises(StoreMismatch, match=rf"treatment={treatment}, channels {PLANTED},(.|\n)*treatment=keep"):
        decode(probe_of(run), DecodeConfig(store=plain, group_by="sample", **LOOSE), output=tmp_path)
    elsewhere = DecodeConfig(
        store=store_of(make(*DIRECTION, *treated, f"data.path={others}")), group_by="sample", **LOOSE
    )  # fmt: skip
    if treatment == "drop":  # the same channels
        assert decode(probe_of(run), elsewhere, output=tmp_path)[0].ranked
        return
    with pytest.raises(StoreMismatch, match="limit"):  # of other images
        decode(probe_of(run), elsewhere, output=tmp_path)
    taken = (f"features.massive.treatment={treatment}", f"features.massive.channels_of={store_of(run)}")
    same = store_of(make(*DIRECTION, *taken, f"data.path={others}"))
    assert decode(probe_of(run), replace(elsewhere, store=same), output=tmp_path)[0].ranked


@pytest.mark.slow
def test_live_runs_are_explored_with_their_channels_or_not_at_all(
    make: Callable[..., Path], sae: Path, plain_sae: Path, tmp_path: Path
) -> None:
    live = make(*SAE, *TREATED, "features.source=live")
    (run,) = opened(live)
    features = open_live(run, str(tmp_path / "one"))
    kept = FeatureStore.open(store_of(sae)).load("test", [CELL]).features[CELL]
    torch.testing.assert_close(features.table("test").features[CELL], kept)
    metrics = [replace(one, detail=json.loads(json.dumps(one.detail).replace('"5":', '"6":')))
               for one in run.result.metrics]  # fmt: skip
    with pytest.raises(StoreMismatch, match=r"channels 6,(.|\n)*channels 5,"):
        open_live(replace(run, result=replace(run.result, metrics=tuple(metrics))), str(tmp_path / "two"))
    config = ExploreConfig(device="cpu")
    assert (
        open_explored(str(sae), config).reads_same_features != open_explored(str(plain_sae), config).reads_same_features
    )
    with pytest.raises(ConfigError, match="massive"):
        open_explored(str(sae), config, seeds=[str(plain_sae)])


def test_what_reads_or_changes_the_network_as_it_is_refuses_them(
    make: Callable[..., Path], transformer: Path, sae: Path, plain_sae: Path, tmp_path: Path
) -> None:
    shared = {"experiment": "t", "run": str(sae), "output": str(tmp_path)}
    steering: dict[str, Any] = {"generator": str(transformer), "prompts": ("a",), "store": store_of(plain_sae)}
    saved = probe_of(make(*DIRECTION, *TREATED))
    refused: list[Callable[[], object]] = [
        lambda: evaluate_sae(SaeEvaluation(**shared, device="cpu")),
        lambda: evaluate_latents(LatentUseEvaluation(**shared, device="cpu", limit=2, read_limit=2)),
        lambda: evaluate_steering(SteeringEvaluation(**shared, model=str(transformer), ends=ENDS)),
        lambda: steer(sae, SteerConfig(**steering, latent=1), output=tmp_path),
        lambda: steer(saved, SteerConfig(**steering), output=tmp_path),
        lambda: steer(saved, SteerConfig(**{**steering, "store": store_of(sae)}), output=tmp_path),
        lambda: direction.certify(Method(name="m", path=saved), direction.Config(backbone=str(transformer))),
        lambda: dictionary.certify(
            Method(name="m", path=sae / "probes" / "sae"), dictionary.Config(backbone=str(transformer))
        ),
    ]  # fmt: skip
    for call in refused:
        with pytest.raises(ConfigError, match="massive.treatment=clip"):
            call()
