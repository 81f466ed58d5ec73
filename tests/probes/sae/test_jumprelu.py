import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae.jumprelu import Config
from diffprobe.probes.sae.types import Collective


def test_what_lies_above_a_threshold_passes_as_it_is(make_sae, x):
    sae = make_sae("jumprelu")
    sae.log_threshold.data += torch.linspace(-0.5, 0.5, 48)
    values, indices = sae.encode(x)
    h = sae.preactivations(x).detach()
    dense = torch.zeros_like(h).scatter(1, indices, values)
    torch.testing.assert_close(dense, h * (h > sae.threshold))
    assert (values > 0).sum(1).unique().numel() > 1


def test_training_starts_with_k_latents_on_average(make_sae, x):
    out = make_sae("jumprelu", k=4).step(x)
    assert (out.code.values > 0).sum() / 200 == pytest.approx(4, abs=0.1)


def test_all_latents_start_equally_active(make_sae, x):
    """Independent of the variance along the direction of a latent, as long as it is ever active."""
    sae = make_sae("jumprelu", k=4)
    active = (sae.preactivations(x) > sae.threshold).float().mean(0)
    torch.testing.assert_close(active, torch.full_like(active, 4 / 48), atol=1 / 200, rtol=0)


def test_thresholds_learn_by_the_kernel_of_the_paper(make_sae, x):
    sae = make_sae("jumprelu", penalty="linear", l0_weight=0.05, bandwidth=0.4)
    out = sae.step(x)
    (got,) = torch.autograd.grad(out.loss, [sae.log_threshold])
    h, threshold = sae.preactivations(x).detach(), sae.threshold.detach()
    near = ((h - threshold).abs() < 0.2) / 0.4
    residual = x * sae.scale - ((h * (h > threshold)) @ sae.W_dec + sae.b_pre)
    to_activation = -2 * (residual @ sae.W_dec.T) / 12 / 200
    by_hand = (to_activation * -threshold * near).sum(0) - 0.05 / 200 * near.sum(0)
    torch.testing.assert_close(
        got, (by_hand * threshold).detach(), rtol=1e-4, atol=1e-6
    )  # d threshold = threshold d log


def test_negative_preactivations_are_not_near_a_low_threshold(make_sae, x):
    """After a ReLU, all of them would be within the kernel of a threshold of 0.3."""
    sae = make_sae("jumprelu", penalty="linear", l0_weight=1.0, bandwidth=0.8, aux_weight=0)
    sae.log_threshold.data.fill_(torch.tensor(0.3).log())
    h, threshold = sae.preactivations(x).detach(), sae.threshold.detach()
    near = ((h > threshold - 0.4) & (h < threshold + 0.4)).float()
    assert 0.1 < near.mean() < 0.6 and ((h.relu() - threshold).abs() < 0.4).float().mean() > near.mean() + 0.2
    out = sae.step(x)
    (got,) = torch.autograd.grad(out.loss - out.reconstruction, [sae.log_threshold])
    torch.testing.assert_close(got, -near.mean(0) / 0.8 * threshold)


def test_a_higher_price_leaves_fewer_latents(make_sae, x):
    def l0(price):
        sae = make_sae("jumprelu", penalty="linear", l0_weight=price, bandwidth=0.5)
        optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            sae.step(x).loss.backward()
            sae.remove_parallel_gradient()
            optimizer.step()
            sae.end_step()
        return float((sae.encode(x).values > 0).sum() / 200)

    assert l0(0.1) < 0.7 * l0(0.0)


def test_the_target_penalty_is_that_of_the_global_batch(make_sae, x):
    """Its value on every process; and the mean of the gradients over processes is the gradient for all samples."""
    sae = make_sae("jumprelu", l0_weight=3.0, aux_weight=0)
    sae.log_threshold.data -= 0.3
    halves = x[:60], x[60:120]
    counts = [(sae.preactivations(half) > sae.threshold).float().sum() / 60 for half in halves]
    collective = Collective(mean=lambda _: (counts[0] + counts[1]) / 2, size=2)
    whole = sae.step(x[:120])
    parts = [sae.step(half, collective=collective) for half in halves]
    for part in parts:
        torch.testing.assert_close(part.terms["l0_penalty"], whole.terms["l0_penalty"])
    assert whole.terms["l0_penalty"] == pytest.approx(3.0 * float((counts[0] + counts[1]) / 2 / 4 - 1) ** 2, rel=1e-5)
    of_parts = [torch.autograd.grad(part.loss, [sae.log_threshold])[0] for part in parts]
    (of_whole,) = torch.autograd.grad(whole.loss, [sae.log_threshold])
    torch.testing.assert_close((of_parts[0] + of_parts[1]) / 2, of_whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("start", [2.0, 8.0])
def test_the_target_penalty_brings_k_latents(make_sae, x, start):
    sae = make_sae("jumprelu", l0_weight=5.0)
    with torch.no_grad():
        cut = sae.preactivations(x).flatten().topk(int(200 * start)).values[-1]
        sae.log_threshold.fill_(float(cut.log()))
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        sae.step(x).loss.backward()
        optimizer.step()
        sae.end_step()
    assert float((sae.encode(x).values > 0).sum() / 200) == pytest.approx(4, rel=0.1)


def test_a_dead_latent_is_revived(make_sae, x):
    sae = make_sae("jumprelu")
    sae.log_threshold.data[:3] = 5.0
    before = sae.log_threshold.detach().clone()
    dead = torch.arange(48) < 2
    sae.step(x, dead=dead)
    sae.end_step()
    active = (sae.preactivations(x) > sae.threshold).any(0)
    assert active[:2].all() and not active[2]
    assert sae.log_threshold[2:].equal(before[2:])


def test_under_autocast_a_latent_is_revived_too(make_sae, x):
    """In bfloat16, 0.999 of a number rounds to the number itself."""
    sae, dead = make_sae("jumprelu"), torch.ones(48, dtype=torch.bool)
    sae.log_threshold.data.fill_(5.0)
    with torch.autocast("cpu", torch.bfloat16):
        sae.step(x, dead=dead)
        sae.end_step()
        seen = sae.preactivations(x).float()
        values, indices = sae.encode(x)
    active = seen > sae.threshold
    assert active.any(0).all() and (sae.threshold > 0.998 * seen.amax(0)).all()
    assert set(indices[values > 0].tolist()) == set(range(48)) and int((values > 0).sum()) == int(active.sum())


def test_a_latent_that_no_threshold_makes_active_stays_dead(make_sae, x):
    sae = make_sae("jumprelu")
    sae.log_threshold.data[:3] = 5.0
    highest = sae.preactivations(x).detach().amax(0)
    sae.b_enc.data[:2] -= highest[:2] + torch.tensor([1.0, -5e-4])  # all negative; below the lowest threshold
    sae.step(x, dead=torch.arange(48) < 3)
    sae.end_step()
    assert sae.log_threshold[:2].tolist() == [5.0, 5.0] and sae.log_threshold[2] < 5.0
    sae.step(x + 30 * sae.W_enc.detach()[0] / sae.scale, dead=torch.arange(48) < 3)  # here the first one is positive
    sae.end_step()
    assert sae.log_threshold[0] < 5.0


def test_a_batch_without_samples_revives_nothing(make_sae, x):
    sae = make_sae("jumprelu")
    before = sae.log_threshold.detach().clone()
    sae.step(x[:0], dead=torch.ones(48, dtype=torch.bool)).loss.backward()
    sae.end_step()
    assert sae.log_threshold.equal(before)


def test_a_process_without_samples_takes_the_others_word(make_sae, x):
    sae, dead = make_sae("jumprelu"), torch.arange(48) < 2
    sae.log_threshold.data[:2] = 5.0
    highest = sae.preactivations(x)[:, :2].detach().amax(0)
    sae.step(x[:0], dead=dead, collective=Collective(gather=lambda own: torch.cat([own, highest]), size=2))
    sae.end_step()
    assert (highest > sae.threshold[:2]).all()


def test_settings_out_of_range():
    with pytest.raises(ConfigError, match="bandwidth"):
        Config(bandwidth=0.0)
    with pytest.raises(ConfigError, match="l0_weight"):
        Config(l0_weight=-1.0)
