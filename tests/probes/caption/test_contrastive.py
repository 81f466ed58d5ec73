import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.core.errors import ConfigError
from diffprobe.probes.caption.contrastive import Config, contrast, info_nce, make


def draw(n, d=5, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def by_hand(images, captions, names, scale):
    """InfoNCE with loops: each sample against those with another caption, both ways."""
    total = 0.0
    for i in range(len(names)):
        others = [j for j in range(len(names)) if names[j] != names[i]]
        own = scale * float(images[i] @ captions[i])
        ways = [images[i] @ captions[j] for j in others], [images[j] @ captions[i] for j in others]
        for wrong in ways:
            total += math.log(math.exp(own) + sum(math.exp(scale * float(score)) for score in wrong)) - own
    return total / (2 * len(names))


def same(names):
    return torch.tensor([[a == b for b in names] for a in names])


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), st.floats(0.1, 20))
def test_it_equals_a_plain_loop_for_any_captions(names, scale):
    images, captions = draw(len(names)), draw(len(names), seed=1)
    found = info_nce(images, captions, same(names), torch.tensor(scale, dtype=torch.float64))
    assert float(found) == pytest.approx(by_hand(images, captions, names, scale), rel=1e-6, abs=1e-9)


def test_equal_captions_are_not_negatives_of_each_other():
    images, captions = draw(3).requires_grad_(), draw(3, seed=1)
    captions[1] = captions[0]
    scale = torch.tensor(5.0, dtype=torch.float64)
    assert float(info_nce(images[:2], captions[:2], same("aa"), scale).detach()) == pytest.approx(0)
    different = float(info_nce(images[:2], captions[:2], same("ab"), scale).detach())
    assert different > 0.3  # a model that knew all would still be punished for two images of one caption
    (gradient,) = torch.autograd.grad(info_nce(images, captions, same("aab"), scale), images)
    assert torch.isfinite(gradient).all() and gradient[2].norm() > 0


def test_the_order_of_a_batch_does_not_matter():
    images, captions, names = draw(8), draw(8, seed=1), "abcabcde"
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    scale = torch.tensor(3.0, dtype=torch.float64)
    shuffled = [names[i] for i in order.tolist()]
    one = info_nce(images, captions, same(names), scale)
    torch.testing.assert_close(one, info_nce(images[order], captions[order], same(shuffled), scale))


def test_norms_do_not_matter_and_the_temperature_is_learned():
    module = make(Config(temperature=0.5), 4, 5, seed=0)
    assert float(module.scale.detach()) == pytest.approx(2)
    found, captions = module(torch.randn(6, 4)), draw(6).float()
    loss = contrast(module, 3 * found, 7 * captions, torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(loss, contrast(module, found, captions, torch.eye(6, dtype=torch.bool)))
    loss.backward()
    assert module.log_scale.grad is not None and module.log_scale.grad != 0
    with torch.no_grad():
        module.log_scale.fill_(9.0)
    assert float(module.scale.detach()) == pytest.approx(100)


@pytest.mark.parametrize("params", [{"hidden": -1}, {"temperature": 0.0}, {"temperature": float("inf")}])
def test_settings_out_of_range_are_refused(params):
    with pytest.raises(ConfigError, match=next(iter(params))):
        Config(**params)


def test_a_hidden_layer_is_optional():
    assert [len(list(make(Config(hidden=width), 4, 5, seed=0).net.parameters())) for width in (0, 7)] == [2, 4]
