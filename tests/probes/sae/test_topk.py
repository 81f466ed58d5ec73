import pytest
import torch
import torch.nn.functional as F

from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.probes.sae.topk import KSAE, Config, make


def features(n=200, d=12, seed=0):
    return 3 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 20


def fresh(d=12, m=48, k=4, x=None):
    sae, x = KSAE(d, m, k), features(d=d) if x is None else x
    sae.initialise(x.double().mean(0), x.double().var(0, unbiased=False))
    return sae


def test_initialise_centres_and_scales():
    x = features()
    sae = fresh(x=x)
    centred = (x * sae.scale - sae.b_pre).detach()
    assert centred.mean(0).abs().max() < 1e-4
    assert float(centred.square().sum(1).mean()) == pytest.approx(12, rel=1e-4)
    assert sae.W_enc.equal(sae.W_dec) and sae.W_enc.data_ptr() != sae.W_dec.data_ptr()


def test_code_is_sparse_and_decode_equals_a_dense_scatter_with_its_gradients():
    x, sae = features(), fresh()
    values, indices = sae.encode(x)
    assert values.shape == (200, 4) and (values >= 0).all() and (indices.sort(1).values.diff(dim=1) > 0).all()
    out = sae.step(x)
    sparse = torch.autograd.grad(out.loss, list(sae.parameters()))
    h = F.linear(x * sae.scale - sae.b_pre, sae.W_enc, sae.b_enc)
    dense_code = torch.zeros_like(h).scatter(1, indices, F.relu(h).gather(1, indices))
    x_hat = dense_code @ sae.W_dec + sae.b_pre
    loss = (x * sae.scale - x_hat).square().sum(1).mean() / 12
    dense = torch.autograd.grad(loss, list(sae.parameters()))
    torch.testing.assert_close(out.x_hat, x_hat / sae.scale)
    for one, two in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_aux_reaches_the_encoder_of_dead_latents_only_and_not_through_the_target():
    x, sae = features(), fresh()
    dead = torch.zeros(48, dtype=torch.bool)
    dead[:20] = True
    out = sae.step(x, dead=dead, k_aux=6, aux_weight=1.0)
    gradient = torch.autograd.grad(out.aux, [sae.W_enc, sae.W_dec, sae.b_enc])
    for part in gradient:
        assert part[:20].abs().sum() > 0 and part[20:].abs().sum() == 0
    # The share of the residual that is left, with the residual as a constant and without the pre-bias.
    residual = (x * sae.scale - sae.decode(sae.encode(x)) * sae.scale).detach()
    h = sae.preactivations(x)[:, :20]
    values, indices = h.topk(6, dim=1)
    guess = torch.zeros_like(h).scatter(1, indices, values.relu()) @ sae.W_dec[:20]
    share = (residual - guess).square().sum() / residual.square().sum()
    assert float(out.aux) == pytest.approx(float(share), rel=1e-4)


def test_no_dead_latent_means_no_aux():
    sae, x = fresh(), features()
    assert float(sae.step(x, dead=torch.zeros(48, dtype=torch.bool), k_aux=6, aux_weight=1.0).aux) == 0


def test_decoder_keeps_unit_norm_and_parallel_gradient_goes():
    sae, x = fresh(), features()
    sae.step(x).loss.backward()
    sae.remove_parallel_gradient()
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-6
    torch.optim.Adam(sae.parameters(), lr=0.1).step()
    sae.normalise_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))


def test_autocast_keeps_sums_in_float32():
    sae, x = fresh(), features()
    with torch.autocast("cpu", torch.bfloat16):
        out = sae.step(x, dead=torch.ones(48, dtype=torch.bool), k_aux=3, aux_weight=1.0)
    assert out.code.values.dtype == torch.bfloat16 and out.x_hat.dtype == torch.float32
    out.loss.backward()
    assert sae.W_enc.grad.dtype == torch.float32
    assert float(out.loss) == pytest.approx(
        float(sae.step(x, dead=torch.ones(48).bool(), k_aux=3, aux_weight=1.0).loss), rel=0.05
    )


def test_save_and_load(tmp_path):
    sae, x = fresh(), features()
    sae.save_pretrained(tmp_path, cell="mid_block@t100:empty:mean")
    back = KSAE.from_pretrained(tmp_path)
    assert back.encode(x).indices.equal(sae.encode(x).indices) and back(x)[0].equal(sae(x)[0])
    text = (tmp_path / "probe.json").read_text()
    (tmp_path / "probe.json").write_text(text.replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(SchemaError, match="schema version 9"):
        KSAE.from_pretrained(tmp_path)


def test_bad_settings():
    with pytest.raises(ConfigError, match=r"k = 9 must lie in 1\.\.n_latents, and n_latents is 8"):
        KSAE(4, 8, 9)
    with pytest.raises(ConfigError, match="at least 1"):
        Config(k=0)
    with pytest.raises(ConfigError, match="constant"):
        KSAE(4, 8, 2).initialise(torch.ones(4), torch.zeros(4))
    assert make(Config(k=2, expansion=3), 5, seed=0).n_latents == 15
