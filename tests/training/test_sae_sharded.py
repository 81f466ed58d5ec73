"""One process with all latents trains as the plain module does. Several: tests/ddp/test_latents.py."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae import KSAE, topk
from diffprobe.probes.sae.latent_shards import LatentShards
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.sae_sharded import ShardedAutoencoderModule
from diffprobe.training.trainer import make_trainer, quiet

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)
CELL = "mid_block@t10:empty:mean"
CONFIG = topk.Config(k=3, n_latents=20, dead_window=40, k_aux=4)


def trained(make, folder, config=CONFIG, **options):
    settings = TrainerConfig(accelerator="cpu", max_epochs=1, enable_progress_bar=False, gradient_clip=0.5, **options)
    module = make(config, cell=CELL, d_in=12, settings=settings)
    with quiet():
        trainer = make_trainer(settings, run_dir=folder)
        trainer.fit(module, datamodule=toy.Toy(cells=(CELL,)))
        trainer.test(module, datamodule=toy.Toy(cells=(CELL,)), verbose=False)
        module.save_together(folder / "probes")
    module.save(folder / "probes")
    return module


def test_one_process_with_all_latents_is_the_plain_autoencoder(tmp_path):
    one = trained(SparseAutoencoderModule, tmp_path / "one")
    all_ = trained(ShardedAutoencoderModule, tmp_path / "all")
    for name, value in one.state_dict().items():
        torch.testing.assert_close(all_.state_dict()[name], value, rtol=1e-6, atol=1e-6)
    for split in ("train", "test"):
        for a, b in zip(one.records(split), all_.records(split), strict=True):
            assert (a.name, a.n, a.detail) == (b.name, b.n, b.detail) and b.value == pytest.approx(a.value, rel=1e-5)
    found = [KSAE.from_pretrained(tmp_path / name / "probes/sae").state_dict() for name in ("one", "all")]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-6)


def test_half_precision_can_be_clipped(tmp_path):
    for make in (SparseAutoencoderModule, ShardedAutoencoderModule):
        trained(make, tmp_path / make.__name__, replace(CONFIG, dead_window=16), precision="bf16-mixed", max_steps=2)


def test_a_place_that_is_not_that_of_the_process_is_refused(tmp_path):
    def make(*args, **options):
        return ShardedAutoencoderModule(*args, **options, shards=LatentShards(1, 2))

    with pytest.raises(ConfigError, match="part 1 of 2, its process number 0 of 1"):
        trained(make, tmp_path)
