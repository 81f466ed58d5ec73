import pytest
import torch

from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.probes.sae import KSAE
from diffprobe.probes.sae.base import KIND, SCHEMA_VERSION
from diffprobe.probes.sae.transcoder import Config, make
from diffprobe.probes.serialization import save_probe

BASE = {"k": 4, "n_latents": 48, "k_aux": 6, "target_tap": "up_blocks.1"}


@pytest.fixture
def pairs(x):
    generator = torch.Generator().manual_seed(5)
    return x, x @ torch.randn(12, 7, generator=generator) + torch.randn(200, 7, generator=generator) - 3


def fresh(pairs, **settings):
    x, y = (part.double() for part in pairs)
    sae = make(Config(**BASE | settings), 12, seed=0, d_out=7)
    sae.initialise(x.mean(0), x.var(0, unbiased=False))
    sae.set_target(y.mean(0), y.var(0, unbiased=False))
    if sae.config.skip:
        with torch.no_grad():
            sae.W_skip.copy_(0.1 * torch.randn(7, 12, generator=torch.Generator().manual_seed(1)))
    return sae


def reference(sae, x, y, dead):
    """Return reconstruction, fvu and AuxK by the formula of the docstring, dense."""
    centred = x * sae.scale - sae.b_pre
    h = centred @ sae.W_enc.T + sae.b_enc
    top = h.topk(sae.k)
    code = torch.zeros_like(h).scatter(1, top.indices, top.values.relu())
    found = code @ sae.W_dec + sae.b_out
    if sae.config.skip:
        found = found + centred @ sae.W_skip.T
    residual = y * sae.scale_out - found
    of_dead = h[:, dead].topk(sae.k_aux)
    guess = torch.zeros_like(h).scatter(1, dead[of_dead.indices], of_dead.values.relu()) @ sae.W_dec
    target = residual.detach()
    aux = (target - guess).square().sum() / target.square().sum()
    return found / sae.scale_out, residual.square().sum() / len(x) / 7, aux


@pytest.mark.parametrize("skip", [False, True])
def test_forward_loss_and_gradients_are_those_of_the_formula(pairs, skip):
    sae, dead = fresh(pairs, skip=skip, aux_weight=0.5), torch.arange(48) < 20
    out = sae.step(pairs[0], target=pairs[1], dead=dead)
    y_hat, fvu, aux = reference(sae, *pairs, dead.nonzero().squeeze(1))
    torch.testing.assert_close(sae(pairs[0])[0], y_hat, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out.reconstruction, fvu, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.aux, aux, rtol=1e-5, atol=1e-5)
    weights = list(sae.parameters())
    ours, theirs = (torch.autograd.grad(loss, weights) for loss in (out.loss, fvu + 0.5 * aux))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_loss_of_the_mean_is_one(pairs):
    sae = fresh(pairs)
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)  # no latent is active
    out = sae.step(pairs[0], target=pairs[1])
    assert float(out.reconstruction.detach()) == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(sae(pairs[0])[0], pairs[1].mean(0).expand(200, 7), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("skip", [False, True])
def test_saved_and_loaded_it_is_the_same(pairs, tmp_path, skip):
    sae = fresh(pairs, skip=skip)
    back = KSAE.from_pretrained(sae.save_pretrained(tmp_path))
    assert back.d_in == 12 and back.d_out == 7 and back.config.target_tap == "up_blocks.1"
    assert back(pairs[0])[0].equal(sae(pairs[0])[0])
    settings = sae.saved_settings(None) | {"make_arguments": {"d_out": 700_000}}
    save_probe(tmp_path, kind=KIND + "transcoder", schema_version=SCHEMA_VERSION, settings=settings,
               tensors=sae.state_dict())  # fmt: skip
    with pytest.raises(WeightsMismatch, match="700000"):
        KSAE.from_pretrained(tmp_path)


def test_bad_input_is_refused(pairs):
    sae = fresh(pairs)
    with pytest.raises(ConfigError, match=r"\(200, 7\).*none"):
        sae.step(pairs[0])
    with pytest.raises(ConfigError, match=r"\(200, 7\).*\(200, 12\)"):
        sae.step(pairs[0], target=pairs[0])
    with pytest.raises(ConfigError, match="'up_blocks.1' are constant"):
        sae.set_target(torch.ones(7), torch.zeros(7))
    with pytest.raises(TypeError):
        Config(k=4)
    for settings in ({"target_tap": ""}, {"target_tap": "mid_block@t5"}, {"datapoint_blend": 0.8}, {"row_buffer": 9}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            Config(**BASE | settings)
