"""Trains caption regressors on toy features: run by test_captions.py in one process and in two.

PROBES_WORLD=2 PROBES_OUTPUT=folder python captions.py
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.registry import probes
from diffprobe.training.caption import CaptionModule
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy_captions import CELL, D_FEATURES, Captioned, ToyEncoder

WORLD, OUTPUT = int(os.environ.get("PROBES_WORLD", "1")), Path(os.environ.get("PROBES_OUTPUT", "."))
GLOBAL_BATCH = 32
SMALL = {"diffdis": {"grid": 1, "width": 16, "blocks": 1}}


def run(name, precision, results):
    parallel = {"devices": WORLD, "strategy": "ddp"} if WORLD > 1 else {}
    settings = TrainerConfig(
        accelerator="cpu", max_epochs=4, enable_progress_bar=False, precision=precision, **parallel
    )  # fmt: skip
    file = probes("caption").load(name)
    module = CaptionModule(
        name, file.Config(vocabulary=20, n_resamples=20, **SMALL.get(name, {})), cell=CELL, d_features=D_FEATURES,
        encoder=ToyEncoder(), settings=settings,
    )  # fmt: skip
    source, key = Captioned(batch_size=GLOBAL_BATCH // WORLD), f"{name}_{precision}"
    trainer = make_trainer(settings, run_dir=OUTPUT / key)
    if module.is_trained:
        trainer.fit(module, datamodule=source)
    trainer.validate(module, datamodule=source, verbose=False)
    trainer.test(module, datamodule=source, verbose=False)
    results[key] = [asdict(record) for split in module.scores for record in module.records(split)]
    if trainer.is_global_zero:
        save_file(dict(module.state_dict()), OUTPUT / f"{key}.safetensors")


def main():
    OUTPUT.mkdir(parents=True, exist_ok=True)
    results = {}
    with quiet():
        for name in ("ridge", "mlp", "contrastive", "diffdis"):
            run(name, "32-true", results)
        run("contrastive", "bf16-mixed", results)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        (OUTPUT / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
