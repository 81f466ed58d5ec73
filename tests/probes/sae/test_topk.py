import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.probes.sae.topk import Config, TopK, make


def test_a_sample_keeps_its_k_largest(make_sae, x):
    sae = make_sae()
    values, indices = sae.encode(x)
    wanted = sae.preactivations(x).topk(4)
    assert values.equal(wanted.values.relu()) and indices.equal(wanted.indices)


def test_aux_reaches_the_encoder_of_dead_latents_only_and_not_through_the_target(make_sae, x):
    sae = make_sae(aux_weight=1.0)
    dead = torch.arange(48) < 20
    out = sae.step(x, dead=dead)
    gradient = torch.autograd.grad(out.aux, [sae.W_enc, sae.W_dec, sae.b_enc])
    for part in gradient:
        assert part[:20].abs().sum() > 0 and part[20:].abs().sum() == 0


def test_no_dead_latent_means_no_aux(make_sae, x):
    sae = make_sae(aux_weight=1.0)
    assert float(sae.step(x, dead=torch.zeros(48, dtype=torch.bool)).aux) == 0
    assert float(make_sae(aux_weight=0.0).step(x, dead=torch.ones(48, dtype=torch.bool)).aux) == 0


def test_the_wide_level_has_four_times_as_many_latents(make_sae, x):
    sae, alone = make_sae(multi_k_weight=1 / 8), make_sae()
    out, plain = sae.step(x), alone.step(x)
    torch.testing.assert_close(out.reconstruction, plain.reconstruction)
    assert out.code.values.shape == (200, 4)
    total = out.reconstruction + out.terms["level_1"] / 8
    torch.testing.assert_close(out.loss, total)


@given(
    n=st.integers(0, 6), m=st.integers(1, 12), share=st.floats(0, 1), n_dead=st.integers(0, 12), wide=st.booleans(),
    equal=st.booleans(),
)  # fmt: skip
def test_any_batch_gives_a_finite_loss_and_finite_gradients(n, m, share, n_dead, wide, equal):
    k = 1 + round(share * (m - 1))
    sae = TopK(Config(k=k, n_latents=m, k_aux=3, multi_k_weight=float(wide)), 5)
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(0))
    if equal:
        x = torch.ones_like(x)  # ties: all samples are one
        sae.W_enc.data[:] = sae.W_enc[0].clone()  # and all latents too
    out = sae.step(x, dead=torch.arange(m) < n_dead)  # none to all
    out.loss.backward()
    assert torch.isfinite(out.loss) and all(torch.isfinite(p.grad).all() for p in sae.parameters())
    assert (out.code.indices.shape == (n, k)) if n else (float(out.loss.detach()) == 0)
    assert sae.encode(x).values.shape == (n, k) and sae(x)[0].shape == x.shape


def test_make():
    sae = make(Config(k=2, expansion=3), 5, seed=0)
    assert sae.n_latents == 15 and sae.k_aux == 2
    assert not sae.W_dec.equal(make(Config(k=2, expansion=3), 5, seed=1).W_dec)
    with pytest.raises(TypeError):
        Config(kk=3)
