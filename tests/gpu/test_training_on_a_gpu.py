"""Probes trained on a GPU: the numbers of the CPU within rounding, mixed precision, and an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from diffprobe.config.compose import load_run
from diffprobe.core.result import RunResult, read_result
from diffprobe.probes.sae import topk
from diffprobe.runs.extract import extract_run
from diffprobe.runs.train import train

AUTOENCODERS = ("topk", "batch_topk", "matryoshka", "jumprelu")
SAE = ("probe.cell=up_blocks.1@t25", "probe.params.n_latents=256", "trainer.max_epochs=6", "data.batch_size=256")
PROBES = {
    **{name: (f"probe={name}", *SAE) for name in AUTOENCODERS},
    "dense step": ("probe=topk", *SAE, "probe.params.step=dense"),
    "linear": ("probe=linear", "probe.targets=[label,style]", "trainer.max_epochs=10"),
    "logistic": (
        "probe=logistic",
        "probe.cell=mid_block@t25",
        "probe.targets=[style]",
        "probe.params.positive=noto",
        "probe.params.negative=twemoji",
    ),
    "bank": ("probe=topk", *SAE, "probe.grid.k=[4,8,16]", "probe.batched=true"),
}
MAIN = {"sae": "fvu", "classifier": "accuracy", "direction": "auroc"}


class Interrupted(Exception):
    pass


class StopAt(Callback):
    """Raise at the end of a training epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise Interrupted


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def run(stores: Path, output: Path, name: str, *settings: str, callbacks: tuple[Callback, ...] = ()) -> RunResult:
    config = load_run(
        None,
        [
            "backbone=emoji-sd",
            "data=emoji",
            "data.limit=1024",
            "features.taps=[mid_block,up_blocks.1]",
            "features.timesteps=[25]",
            f"features.store={stores}",
            "trainer.enable_progress_bar=false",
            f"output={output}",
            *PROBES[name],
            *settings,
        ],
    )
    if config.features.source == "stored":
        extract_run(config, progress=False)
    path = train(config, callbacks=callbacks)
    members = sorted((path.parent / "members").glob("*/result.json"))
    return read_result(members[0] if members else path)


def main_metric(result: RunResult) -> float:
    return next(r.value for r in result.metrics if r.name == MAIN[result.kind] and r.split == "test")


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_scores_as_on_the_cpu(name: str, stores: Path, tmp_path: Path) -> None:
    expected = main_metric(run(stores, tmp_path / "cpu", name, "trainer.accelerator=cpu"))
    precisions = ["32-true", "bf16-mixed", *(["16-mixed"] if name != "bank" else [])]  # a bank refuses the last
    for precision in precisions:
        settings = ("trainer.accelerator=gpu", f"trainer.precision={precision}")
        found = main_metric(run(stores, tmp_path / precision, name, *settings))
        print(f"{name} {precision}: {found:.4f}, on the CPU in float32 {expected:.4f}")
        assert found == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("topk", "32-true"), ("topk", "16-mixed"), ("bank", "bf16-mixed"), ("linear", "32-true"), ("linear", "16-mixed")],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(name: str, precision: str, stores: Path, tmp_path: Path) -> None:
    settings = ("trainer.accelerator=gpu", f"trainer.precision={precision}")
    whole = run(stores, tmp_path / "whole", name, *settings)
    with pytest.raises(Interrupted):
        run(stores, tmp_path / "parts", name, *settings, callbacks=(StopAt(3),))
    resumed = run(stores, tmp_path / "parts", name, *settings)
    for a, b in zip(whole.metrics, resumed.metrics, strict=True):
        assert b.value == pytest.approx(a.value, abs=2e-3), (a.name, a.cell)


@pytest.mark.parametrize("placement", ["memory", "device", "mapped"])
def test_the_place_of_the_features_changes_no_number(placement: str, stores: Path, tmp_path: Path) -> None:
    gpu = ("trainer.accelerator=gpu",)
    expected = run(stores, tmp_path / "auto", "linear", *gpu)
    found = run(stores, tmp_path / placement, "linear", *gpu, f"features.placement={placement}")
    for a, b in zip(expected.metrics, found.metrics, strict=True):
        assert b.value == pytest.approx(a.value, abs=1e-6), (a.name, a.cell)


def test_live_features_on_the_card(stores: Path, tmp_path: Path) -> None:
    gpu = ("trainer.accelerator=gpu", "trainer.max_epochs=2")
    expected = run(stores, tmp_path, "linear", *gpu)
    found = run(stores, tmp_path, "linear", *gpu, "features.source=live")
    assert main_metric(found) == pytest.approx(main_metric(expected), abs=0.05)
    assert torch.cuda.max_memory_allocated() > 0 and found.hardware["accelerators"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_dense_step_has_the_gradients_of_the_sparse_one(precision: str) -> None:
    x = torch.randn(1024, 256, generator=torch.Generator().manual_seed(0))
    found = []
    for step in ("sparse", "dense"):
        config = topk.Config(k=16, n_latents=2048, step=step, aux_weight=0.5)  # type: ignore[arg-type]
        sae = topk.make(config, 256, seed=0)
        sae.initialise(x.mean(0), x.var(0, correction=0))
        sae = sae.to("cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            out = sae.step(x.to("cuda"), dead=torch.arange(2048, device="cuda") < 300)
        out.loss.backward()
        found.append([weight.grad for weight in sae.parameters()])
    for sparse, dense in zip(*found, strict=True):
        off = float((dense - sparse).norm() / sparse.norm())
        assert off < (1e-5 if precision == "float32" else 2e-2), off
