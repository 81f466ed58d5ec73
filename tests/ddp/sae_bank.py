"""Trains BatchTopK, JumpReLU and a bank, in both of its ways, on toy features, as test_sae_bank.py has them compared.

PROBES_WORLD=2 PROBES_OUTPUT=folder python sae_bank.py
"""

import importlib.util
import json
from pathlib import Path

from safetensors.torch import save_file

from diffprobe.probes.sae import batch_topk, jumprelu, topk
from diffprobe.training.bank import MemberSpec, SparseAutoencoderBankModule
from diffprobe.training.fit import make_trainer, quiet
from diffprobe.training.sae import SparseAutoencoderModule

_spec = importlib.util.spec_from_file_location("all_probes", Path(__file__).with_name("all_probes.py"))
probes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(probes)

SHAPE = {"n_latents": 32, "dead_after": 40, "k_aux": 4}
BATCH_TOPK = batch_topk.Config(k=3, **SHAPE)


class Watched(SparseAutoencoderModule):
    """Notes how many latents this process kept and how many were dead, step by step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept, self.n_dead, self.aux = [], [], []

    def account(self, out, batch):
        self.kept.append(int((out.code.values > 0).sum()))
        self.n_dead.append(int(self.dead_latents.mask.sum()))
        self.aux.append(float(out.aux.detach()))
        return super().account(out, batch)


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
    with quiet():
        alone = Watched(BATCH_TOPK, cell=probes.CELL, d_in=12, settings=settings)
        rank = run("batch_topk", alone)
        jumps = jumprelu.Config(k=3, **SHAPE)
        run("jumprelu", SparseAutoencoderModule(jumps, cell=probes.CELL, d_in=12, settings=settings))
        run("bank", SparseAutoencoderBankModule(members(), settings=settings))
        run("batched", SparseAutoencoderBankModule(members(), settings=settings, batched=True))
    seen = {"kept": alone.kept, "dead": alone.n_dead, "aux": alone.aux, "scores": alone.scores}
    (probes.OUTPUT / f"seen-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
