"""Trains the other variants and a bank, in both of its ways, on toy features, as test_sae_bank.py has them compared.

PROBES_WORLD=2 PROBES_OUTPUT=folder python sae_bank.py
"""

import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffprobe.probes.sae import batch_topk, jumprelu, matryoshka, revelio_released, topk
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.sae_bank import MemberSpec, SparseAutoencoderBankModule
from diffprobe.training.trainer import make_trainer, quiet

_spec = importlib.util.spec_from_file_location("all_probes", Path(__file__).with_name("all_probes.py"))
probes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(probes)

SHAPE = {"n_latents": 32, "dead_window": 40, "k_aux": 4}
BATCH_TOPK, MATRYOSHKA = batch_topk.Config(k=3, **SHAPE), matryoshka.Config(k=3, **SHAPE)


class Watched(SparseAutoencoderModule):
    """Notes how many latents this process kept, how many were dead, and what it logged, step by step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept, self.n_dead, self.aux, self.curves = [], [], [], []

    def log_dict(self, dictionary, *args, **kwargs):
        if "train/loss" in dictionary and self.trainer.training:
            self.curves.append({name: float(value) for name, value in dictionary.items()})
        super().log_dict(dictionary, *args, **kwargs)

    def account(self, out, batch):
        self.kept.append(int((out.code.values > 0).sum()))
        self.n_dead.append(int(self.dead_latents.mask.sum()))
        self.aux.append(float(out.aux.detach()))
        return super().account(out, batch)

    def seen(self):
        return {"kept": self.kept, "dead": self.n_dead, "aux": self.aux, "scores": self.scores, "curves": self.curves}


def watched(config, precision="32-true"):
    return Watched(config, cell=probes.CELL, d_in=12, settings=probes.settings(precision))


def choice_among_ties(module, rank):
    """Which latents this process keeps, and in which part, where pre-activations are small whole numbers."""
    sae, generator = module.sae, torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (probes.GLOBAL_BATCH, 12), generator=generator).float()[rank :: probes.WORLD]
    sae.W_enc.data = torch.randint(-1, 2, (32, 12), generator=generator).float()
    sae.b_enc.data.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        selected, _ = sae.select(x, among=None, k_among=0, collective=module.collective)
    return torch.zeros(len(x), 32, dtype=torch.int64).scatter_add(1, selected.top.indices, selected.part + 1)


def members():
    configs = {"k2": topk.Config(k=2, **SHAPE), "k3": topk.Config(k=3, **SHAPE), "shared": BATCH_TOPK}
    return [
        MemberSpec(name=name, config=config, cell=probes.CELL, d_in=12, seed=seed)
        for seed, (name, config) in enumerate(configs.items())
    ]


def run(name, module):
    source = probes.toy.Toy(batch_size=probes.GLOBAL_BATCH // probes.WORLD)
    trainer = make_trainer(module.settings, run_dir=probes.OUTPUT / name)
    trainer.fit(module, datamodule=source)
    trainer.test(module, datamodule=source, verbose=False)
    if trainer.is_global_zero:
        tensors = {key: value.clone().contiguous() for key, value in module.state_dict().items()}
        save_file(tensors, probes.OUTPUT / f"{name}.safetensors")
        module.save(probes.OUTPUT / name)
    return trainer.global_rank


def main():
    probes.OUTPUT.mkdir(parents=True, exist_ok=True)
    settings = probes.settings()
    alone = {
        "batch_topk": watched(BATCH_TOPK),
        "matryoshka": watched(MATRYOSHKA),
        "jumprelu": watched(jumprelu.Config(k=3, **SHAPE)),
        "revelio_released": watched(revelio_released.Config(k=3, n_latents=32, learning_rate=0.01)),
        "batch_topk_bf16": watched(BATCH_TOPK, "bf16-mixed"),
        "matryoshka_bf16": watched(MATRYOSHKA, "bf16-mixed"),
    }
    with quiet():
        rank = max(run(name, module) for name, module in alone.items())
        run("bank", SparseAutoencoderBankModule(members(), settings=settings))
        run("batched", SparseAutoencoderBankModule(members(), settings=settings, batched=True))
    seen = {name: module.seen() for name, module in alone.items()}
    (probes.OUTPUT / f"seen-{rank}.json").write_text(json.dumps(seen))
    ties = {name: choice_among_ties(alone[name], rank) for name in ("batch_topk", "matryoshka")}
    save_file(ties, probes.OUTPUT / f"ties-{rank}.safetensors")


if __name__ == "__main__":
    main()
