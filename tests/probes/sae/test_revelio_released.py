import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae.revelio_released import Config


def test_negative_activations_are_kept_and_nothing_is_scaled(make_sae, x):
    sae = make_sae("revelio_released", k=40)  # 40 of 48: some are negative
    values, indices = sae.encode(x)
    assert values.min() < 0 and float(sae.scale) == 1
    h = (x - sae.b_pre) @ sae.W_enc.T
    torch.testing.assert_close(values, h.gather(1, indices).detach())
    torch.testing.assert_close(sae.b_pre.detach(), x.mean(0))


def test_the_loss_is_the_error_over_the_variance_of_the_batch(make_sae, x):
    sae = make_sae("revelio_released")
    out = sae.step(x[:50])
    wanted = (x[:50] - sae(x[:50])[0]).square().sum() / (x[:50] - x[:50].mean(0)).square().sum()
    torch.testing.assert_close(out.loss, wanted)


def test_two_processes_divide_by_the_variance_of_the_joint_batch(make_sae, x, share_out):
    sae = make_sae("revelio_released")
    x[::2] += 9  # what one of them has lies elsewhere
    found = share_out(sae.variance_of, x)
    assert found[0] == found[1] == pytest.approx(float(x.var(0, unbiased=False).sum()), rel=1e-5)
    losses = share_out(lambda rows, collective: sae.step(rows, collective=collective).loss.detach(), x)
    assert float(sum(losses)) / 2 == pytest.approx(float(sae.step(x).loss.detach()), rel=1e-5)


def test_the_encoder_starts_small_and_the_decoder_is_normalised_before_the_step(make_sae):
    sae = make_sae("revelio_released", n_latents=600)
    assert 0.9 * (6 / 600) ** 0.5 < float(sae.W_enc.detach().abs().max()) <= (6 / 600) ** 0.5
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(600))
    sae.W_dec.data *= 2
    sae.end_step()
    assert float(sae.W_dec[0].detach().norm()) == pytest.approx(2)
    sae.begin_step()
    assert float(sae.W_dec[0].detach().norm()) == pytest.approx(1)


def test_what_the_released_code_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="aux_weight = 0.1 of probe 'revelio_released'"):
        Config(aux_weight=0.1)
