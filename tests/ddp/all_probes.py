"""Trains and evaluates every probe on toy features: run by test_probes.py in one process and in two.

PROBES_WORLD=2 PROBES_OUTPUT=folder python all_probes.py
"""

import importlib.util
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.registry import probes
from diffprobe.core.result import predictions_file
from diffprobe.probes.classifier import batchnorm_linear, linear
from diffprobe.probes.predictions import save_predictions
from diffprobe.probes.sae.topk import Config
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.classifier_bank import ClassifierBankModule, MemberSpec
from diffprobe.training.direction import DirectionModule
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.trainer import make_trainer, quiet

WORLD, OUTPUT = int(os.environ.get("PROBES_WORLD", "1")), Path(os.environ.get("PROBES_OUTPUT", "."))
GLOBAL_BATCH = 16
CELL = "mid_block@t10:empty:mean"

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)
toy.SIZES["train"] = 92  # even, so that two processes need no repeated sample; the last batch is still short


def settings(precision="32-true"):
    parallel = {"devices": WORLD, "strategy": "ddp"} if WORLD > 1 else {}
    common = {"accelerator": "cpu", "max_epochs": 4, "enable_progress_bar": False, "precision": precision}
    return TrainerConfig(**common, **parallel)


def classifier(precision="32-true"):
    classes = {"label": toy.CLASSES, "style": toy.STYLES, "kind": ("tame", "wild")}
    return ClassifierModule("linear", linear.Config(), widths=toy.WIDTHS, classes=classes, settings=settings(precision))


def bank():
    classes = {"label": toy.CLASSES, "style": toy.STYLES}
    specs = [
        MemberSpec(name=f"m{i}", config=batchnorm_linear.Config(learning_rate=rate), cells=tuple(toy.WIDTHS), seed=i)
        for i, rate in enumerate((0.01, 0.03))
    ]
    return ClassifierBankModule(
        "batchnorm_linear", specs, widths=toy.WIDTHS, classes=classes, settings=settings(), batched=True
    )


def sae(precision="32-true"):
    probe = Config(k=3, n_latents=32, dead_window=60, k_aux=4, learning_rate=1e-3, adam_beta2=0.999)
    return SparseAutoencoderModule(probe, cell=CELL, d_in=12, settings=settings(precision))


def direction(name):
    probe = probes("direction").load(name)
    params = probe.Config(positive="noto", negative="twemoji", n_random=10, n_shuffles=3)
    return DirectionModule(
        name,
        params,
        axes=params.axes([CELL], {"style": toy.STYLES}),
        widths={CELL: 12},
        settings=settings(),
    )


def run(name, module, fit, results):
    source = toy.Families(batch_size=GLOBAL_BATCH // WORLD)
    trainer = make_trainer(module.settings, run_dir=OUTPUT / name)
    if fit:
        trainer.fit(module, datamodule=source)
    trainer.validate(module, datamodule=source, verbose=False)
    trainer.test(module, datamodule=source, verbose=False)
    splits = getattr(module, "scores", ("val", "test"))
    results[name] = [asdict(record) for split in splits for record in module.records(split)]
    if trainer.is_global_zero:
        for split, predictions in getattr(module, "predictions", {}).items():
            save_predictions(predictions, OUTPUT / f"{name}-{predictions_file(split)}")
        tensors = dict(module.state_dict())
        if name.startswith("direction"):
            tensors["found"] = module.directions()[0].vector
        save_file({key: value.contiguous() for key, value in tensors.items()}, OUTPUT / f"{name}.safetensors")


def with_fixed_weights(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def main():
    OUTPUT.mkdir(parents=True, exist_ok=True)
    results = {}
    with quiet():
        run("classifier_fixed", with_fixed_weights(classifier()), False, results)
        run("sae_fixed", with_fixed_weights(sae()), False, results)
        run("classifier", classifier(), True, results)
        run("sae", sae(), True, results)
        run("classifier_bank", bank(), True, results)
        for name in ("mean_difference", "ridge", "ridge_cv", "lda", "pca", "logistic"):
            run(f"direction_{name}", direction(name), name == "logistic", results)
        run("classifier_bf16", classifier("bf16-mixed"), True, results)
        run("sae_bf16", sae("bf16-mixed"), True, results)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        (OUTPUT / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
