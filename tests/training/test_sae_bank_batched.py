import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import NonFinite
from diffprobe.probes.sae import batch_topk, topk
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.sae_bank import MemberSpec, SparseAutoencoderBankModule
from diffprobe.training.sae_bank_batched import groups, step_together
from diffprobe.training.trainer import make_trainer, quiet

WIDTHS = {"mid_block@t10:empty:mean": 12, "up_blocks.0@t10:empty:mean": 7}
WIDE, NARROW = WIDTHS


def member(name, cell=WIDE, kind=topk, seed=0, **settings):
    shared = {"n_latents": 24, "dead_window": 40, "k_aux": 4, "learning_rate": 1e-3, "adam_beta2": 0.999}
    settings = shared | settings
    return MemberSpec(name=name, config=kind.Config(**settings), cell=cell, d_in=WIDTHS[cell], seed=seed)


def bank():
    """Four members that can be stepped together, each with its own AuxK, and three that cannot."""
    return [
        member("k2", k=2),
        member("k5", k=5, seed=1, dead_window=90, k_aux=2),
        member("none", k=3, seed=2, aux_weight=0.0, learning_rate=0.003),
        member("buffer", k=2, seed=3, row_buffer=30),
        member("narrow", cell=NARROW, k=2),
        member("wide", k=2, multi_k_weight=0.1),
        member("shared", kind=batch_topk, k=2),
    ]


def fit(toy, run_dir, module, resume=False, **arguments):
    with quiet():
        trainer = make_trainer(module.settings, run_dir=run_dir, **arguments)
        last = find_checkpoint(run_dir, resume=resume)
        trainer.fit(module, datamodule=toy(), ckpt_path=last, weights_only=True)
        trainer.test(module, datamodule=toy(), verbose=False)
    return module


def make(specs=None, batched=True, **settings):
    settings = TrainerConfig(**{"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 4} | settings)
    return SparseAutoencoderBankModule(specs or bank(), settings=settings, batched=batched)


def saes(n_latents, ks, d=6):
    found = [topk.TopK(topk.Config(k=k, n_latents=n_latents, k_aux=3, aux_weight=0.5), d, seed=k) for k in ks]
    for i, sae in enumerate(found):
        sae.initialise(torch.full((d,), float(i)), torch.full((d,), 1.0 + i))
        sae.b_enc.data += 0.1 * torch.randn(n_latents, generator=torch.Generator().manual_seed(i))
    return found


@given(n=st.integers(0, 9), ks=st.lists(st.integers(1, 12), min_size=2, max_size=4), dead=st.integers(0, 12))
def test_one_step_together_is_a_step_of_each(n, ks, dead):
    found, generator = saes(12, ks), torch.Generator().manual_seed(0)
    xs = [torch.randn(n, 6, generator=generator) + i for i in range(len(ks))]
    is_dead = [torch.arange(12) < (dead + i) % 13 for i in range(len(ks))]  # none to all, another number of each
    alone = [sae.step(x, dead=mask) for sae, x, mask in zip(found, xs, is_dead, strict=True)]
    sum(out.loss for out in alone).backward()
    expected = [[p.grad.clone() for p in sae.parameters()] for sae in found]
    for sae in found:
        sae.zero_grad()
    together = step_together(found, xs, dead=is_dead)
    sum(out.loss for out in together).backward()
    for sae, gradients, out, one in zip(found, expected, together, alone, strict=True):
        assert out.terms == {}
        if n == 0:
            continue
        assert out.code.indices.equal(one.code.indices)
        for name in ("loss", "reconstruction", "aux"):
            torch.testing.assert_close(getattr(out, name), getattr(one, name), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(out.code.values, one.code.values, rtol=1e-6, atol=1e-6)
        for parameter, gradient in zip(sae.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-6)


def test_chunks_of_rows_change_nothing(monkeypatch):
    found, x = saes(12, (2, 5)), torch.randn(9, 6)
    is_dead = [torch.arange(12) < 4] * 2
    whole = step_together(found, [x, x], dead=is_dead)
    monkeypatch.setattr("diffprobe.probes.sae.kernels.encoder_matmul.CHUNK_BYTES", {"cpu": 2 * 2 * 12 * 4, "cuda": 1})
    for one, other in zip(whole, step_together(found, [x, x], dead=is_dead), strict=True):
        assert other.code.indices.equal(one.code.indices)
        torch.testing.assert_close(other.loss, one.loss, rtol=1e-6, atol=1e-6)


def test_who_steps_together():
    members = [part.sae for part in make().members]
    xs = [torch.zeros(5, sae.d_in) for sae in members]
    assert groups(members, xs) == [[0, 1, 2, 3], [4], [5], [6]]
    xs[1] = torch.zeros(6, 12)
    assert groups(members, xs) == [[0, 2, 3], [1], [4], [5], [6]]
    by_products = [topk.TopK(topk.Config(k=2, n_latents=24, step=step), 12) for step in ("sparse", "dense", "sparse")]
    assert groups(by_products, [torch.zeros(5, 12)] * 3) == [[0, 2], [1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "rounding"),
    [({}, 1e-4), ({"gradient_clip": 0.05}, 1e-4), ({"precision": "bf16-mixed"}, 1e-2)],  # bf16 has 8 bits
)
def test_a_bank_agrees_with_its_loop_to_rounding(toy, tmp_path, settings, rounding):
    loop = fit(toy, tmp_path / "loop", make(batched=False, **settings))
    batched = fit(toy, tmp_path / "batched", make(**settings))
    assert any(bool(part.dead_latents.mask.any()) for part in loop.members[:2])
    for name, value in loop.state_dict().items():
        found = batched.state_dict()[name]
        close = {"rtol": 10 * rounding, "atol": rounding}
        if name.endswith(".last") and rounding > 1e-3:
            continue  # when a latent was active is a yes or no, and close ones flip
        torch.testing.assert_close(found, value, **close, msg=lambda m, name=name: f"{name}: {m}")
    for split in ("train", "test"):
        for one, other in zip(loop.members, batched.members, strict=True):
            a, b = one.records(split), other.records(split)
            assert [(r.name, r.cell, r.n) for r in a] == [(r.name, r.cell, r.n) for r in b]
            if rounding < 1e-3:  # counts of histograms, and which rows are the most alike, flip in bf16
                assert [r.detail for r in a] == [r.detail for r in b]
            assert [r.value for r in a] == pytest.approx([r.value for r in b], abs=10 * rounding)


class Interrupt(lightning.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 11:
            raise RuntimeError("stopped")


@pytest.mark.slow
def test_resumed_equals_uninterrupted_bit_for_bit(toy, tmp_path):
    settings = {"checkpoint_every_steps": 4}
    whole = fit(toy, tmp_path / "whole", make(**settings))
    with pytest.raises(RuntimeError, match="stopped"):
        fit(toy, tmp_path / "cut", make(**settings), callbacks=[Interrupt()])
    second = fit(toy, tmp_path / "cut", make(**settings), resume=True)
    for name, value in whole.state_dict().items():
        assert second.state_dict()[name].equal(value), name


def test_a_loss_that_is_no_number_names_the_member(toy, tmp_path):
    module = make(bank()[:3])

    class Break(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 2:
                module.members[1].sae.b_pre.data[0] = float("inf")

    with pytest.raises(NonFinite, match="k5: the loss became"):
        fit(toy, tmp_path, module, callbacks=[Break()])
