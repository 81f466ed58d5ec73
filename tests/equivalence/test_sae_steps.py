"""The dense step of every autoencoder that has one against its sparse step: loss, gradients, weights after training."""

from importlib import import_module

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.core.registry import probes

D, D_OUT, M, K = 16, 12, 60, 5
DEAD = torch.arange(M) >= 50
TIMESTEPS = [25, 200, 500]
SETTINGS = {
    "topk": {"aux_weight": 0.5, "multi_k_weight": 1 / 8},
    "matryoshka": {"aux_weight": 0.5, "prefixes": (0.25, 0.5, 1.0)},
    "revelio_released": {},
    "timestep_topk": {"aux_weight": 0.5, "embedding": 4},
    "transcoder": {"aux_weight": 0.5, "target_tap": "up_blocks.1", "skip": True},
}
"""Settings of variants in which all that they compute has an effect; those of the others are `aux_weight`."""
MORE = {"timestep_topk": {"timesteps": TIMESTEPS}, "transcoder": {"d_out": D_OUT}}
VARIANTS = [name for name in probes("sae").names() if name != "jumprelu"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(variant, step):
    module = import_module(f"diffprobe.probes.sae.{variant}")
    own = SETTINGS.get(variant, {"aux_weight": 0.5})
    sae = module.make(module.Config(k=K, n_latents=M, step=step, **own), D, seed=1, **MORE.get(variant, {}))
    x = 2 * draw(160, D) + 6
    sae.initialise(x.double().mean(0), x.double().var(0, unbiased=False), x)
    for number, (_, weight) in enumerate(sorted(sae.named_parameters())):  # parameters of 0 would hide their gradients
        weight.data += 0.1 * draw(*weight.shape, seed=number)
    return sae, x


def stepped(sae, x):
    more = {"target": draw(len(x), D_OUT, seed=2)} if sae.reads == "pairs" else {}
    if sae.reads == "timesteps":
        sae = sae.at(torch.tensor(TIMESTEPS * len(x))[: len(x)])
    return sae.step(x, dead=DEAD, **more)


def off(one, other):
    return float((one - other).norm() / other.norm().clamp(min=1e-12))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_the_sparse_step(variant, precision):
    found = []
    for step in ("sparse", "dense"):
        sae, x = make(variant, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            out = stepped(sae.eval(), x[:64])
        out.loss.backward()
        found.append((out, {name: weight.grad for name, weight in sae.named_parameters()}))
    (sparse, gradients), (dense, by_products) = found
    assert dense.code.indices.equal(sparse.code.indices) and dense.code.values.equal(sparse.code.values)
    assert dense.loss.dtype == torch.float32
    exact = precision == "float32"
    for name in ("loss", "reconstruction", "aux"):
        assert off(getattr(dense, name).detach(), getattr(sparse, name).detach()) < (1e-6 if exact else 3e-3), name
    for name, gradient in gradients.items():
        assert float(gradient.norm()) > 0 and by_products[name].dtype == torch.float32
        assert off(by_products[name], gradient) < (3e-6 if exact else 1e-2), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_ends_with_the_weights_of_sparse_steps(variant, precision):
    weights = []
    for step in ("sparse", "dense"):
        sae, x = make(variant, step)
        start = {name: weight.detach().clone() for name, weight in sae.named_parameters()}
        optimizer = torch.optim.SGD(sae.parameters(), lr=0.05)
        for batch in x.split(32):
            optimizer.zero_grad()
            sae.begin_step()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = stepped(sae, batch).loss
            loss.backward()
            sae.remove_parallel_gradient()
            optimizer.step()
            sae.end_step()
        weights.append({name: weight.detach() - start[name] for name, weight in sae.named_parameters()})
    for name, moved in weights[0].items():
        assert off(weights[1][name], moved) < (1e-4 if precision == "float32" else 0.1), name


def test_a_variant_without_a_sparse_step_refuses_the_setting():
    with pytest.raises(ConfigError, match="step = dense .*'jumprelu'"):
        import_module("diffprobe.probes.sae.jumprelu").Config(step="dense")
