"""Every sparse autoencoder against a dense twin written from its formula: one step's gradients, ten steps' weights."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

D, M, K, K_AUX = 16, 60, 5, 3
DEAD = torch.arange(M) >= 50


def make(variant, **settings):
    module = import_module(f"diffprobe.probes.sae.{variant}")
    base = {"k": K, "n_latents": M} | ({} if variant == "revelio_released" else {"k_aux": K_AUX})  # which has no AuxK
    sae = module.make(module.Config(**base, **settings), D, seed=1)
    x = 2 * torch.randn(160, D, generator=torch.Generator().manual_seed(0)) + 6
    sae.initialise(x.double().mean(0), x.double().var(0, unbiased=False), x)
    return sae, x


def keep_rows(h, k):
    return torch.zeros_like(h).scatter(1, h.topk(k).indices, 1.0)


def keep_batch(h, k):
    flat = torch.zeros(h.numel())
    return flat.scatter(0, h.flatten().topk(k * h.shape[0]).indices, 1.0).view_as(h)


def jump(sae, h, log_threshold):
    """JumpReLU's code and penalty. `moved` is 0 and carries the pseudo-derivative of the threshold."""
    threshold, width = log_threshold.exp(), sae.config.bandwidth
    above, near = (h > threshold).to(h), (h - threshold).abs() < width / 2
    moved = threshold - threshold.detach()
    code = h * above - threshold.detach() / width * near * moved
    l0 = (above - near / width * moved).sum(1).mean()
    return code, sae.config.l0_weight * (l0 if sae.config.penalty == "linear" else (l0 / K - 1) ** 2)


def dense_loss(sae, weights, x):
    """The loss of the papers, computed densely and differentiated by autograd."""
    b_pre, W_enc, b_enc, W_dec, *others = weights
    x = x * sae.scale
    h = (x - b_pre) @ W_enc.T + b_enc
    acts = h if sae.variant == "revelio_released" else F.relu(h)
    keep = (keep_batch if sae.variant in ("batch_topk", "matryoshka") else keep_rows)(h, K)
    codes, penalty = [acts * keep], 0.0
    if sae.variant == "jumprelu":
        code, penalty = jump(sae, h, *others)
        codes = [code]
    if sae.variant == "matryoshka":
        codes = [acts * keep * (torch.arange(M) < size) for size in sae.sizes]
    if len(sae.level_weights) > len(codes):
        codes.append(acts * keep_rows(h, 4 * K))
    residuals = [x - (code @ W_dec + b_pre) for code in codes]
    variance = D
    if sae.variant == "revelio_released":
        variance = (x - x.mean(0)).square().sum(1).mean()
    loss = sum(w * r.square().sum(1).mean() / variance for w, r in zip(sae.level_weights, residuals, strict=True))
    target = residuals[sae.main_level].detach()
    hidden = keep_rows(h.masked_fill(~DEAD, -torch.inf), K_AUX)
    miss = (target - (F.relu(h) * hidden) @ W_dec).square().sum() / target.square().sum()
    return loss + sae.config.aux_weight * miss + penalty


CASES = [
    ("topk", {}),
    ("topk", {"aux_weight": 0.5}),
    ("topk", {"multi_k_weight": 1 / 8, "aux_weight": 0.5}),
    ("batch_topk", {"aux_weight": 0.5}),
    ("matryoshka", {"aux_weight": 0.5, "prefixes": (0.25, 0.5, 1.0)}),
    ("jumprelu", {"aux_weight": 0.5, "l0_weight": 0.5}),
    ("jumprelu", {"aux_weight": 0.5, "l0_weight": 0.05, "penalty": "linear", "bandwidth": 3.0}),  # below 0 too
    ("revelio_released", {}),
]
SPARSE = [case for case in CASES if case[0] != "jumprelu"]  # the number of active latents is not bounded there
BY_PRODUCTS = [(name, {**keys, "step": "dense"}) for name, keys in SPARSE]


def parameters(sae):
    found = [sae.b_pre, sae.W_enc, sae.b_enc, sae.W_dec]
    return [*found, sae.log_threshold] if sae.variant == "jumprelu" else found


@pytest.mark.parametrize(
    ("variant", "settings"),
    CASES + BY_PRODUCTS,
    ids=[f"{name}-{len(keys)}{'-dense' * ('step' in keys)}" for name, keys in CASES + BY_PRODUCTS],
)
def test_gradients_are_those_of_dense_autograd_to_a_millionth(variant, settings):
    sae, x = make(variant, **settings)
    # With tied weights the residual is orthogonal to much of the code, so the weights are moved away from them.
    for number, weight in enumerate(parameters(sae)):
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        weight.data += 0.1 * noise
    sae, x = sae.eval(), x[:64]
    out = sae.step(x, dead=DEAD)
    sparse = torch.autograd.grad(out.loss, parameters(sae))
    wide = [weight.detach().double().requires_grad_() for weight in parameters(sae)]
    with torch.no_grad():
        same_choice = dense_loss(sae, [w.detach() for w in parameters(sae)], x)
    torch.testing.assert_close(out.loss.detach(), same_choice, rtol=1e-5, atol=1e-6)
    dense = torch.autograd.grad(dense_loss(sae, wide, x.double()), wide)
    for got, wanted in zip(sparse, dense, strict=True):
        assert float((got - wanted).norm()) <= 1e-6 * float(wanted.norm())


@pytest.mark.parametrize("step", ["sparse", "dense"])
def test_ten_steps_of_training_agree(step):
    sae, x = make("topk", multi_k_weight=1 / 8, aux_weight=0.1, step=step)
    twin = [weight.detach().clone().requires_grad_() for weight in parameters(sae)]
    optimizers = [torch.optim.Adam(weights, lr=0.01) for weights in (parameters(sae), twin)]
    for batch in x.split(16):
        for optimizer, loss in zip(
            optimizers, (sae.step(batch, dead=DEAD).loss, dense_loss(sae, twin, batch)), strict=True
        ):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for got, wanted in zip(parameters(sae), twin, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("variant", "settings"), SPARSE, ids=[f"{name}-{len(keys)}" for name, keys in SPARSE])
def test_no_tensor_of_batch_times_latents_is_kept(variant, settings):
    sae, x = make(variant, **settings)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        sae.step(x, dead=DEAD).loss.backward()
    assert kept and all(t.numel() < 160 * M / 2 or t.shape[0] == M or t.shape[-1] == D for t in kept)
