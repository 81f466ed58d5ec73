import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae.matryoshka import Config


def test_each_level_decodes_the_latents_of_its_dictionary(make_sae, x):
    sae = make_sae("matryoshka", prefixes=(0.25, 0.5, 1.0))
    out = sae.step(x)
    dense = torch.zeros(200, 48).scatter_add(1, out.code.indices, out.code.values)
    losses = []
    for size in (12, 24, 48):
        residual = x * sae.scale - (dense[:, :size] @ sae.W_dec[:size] + sae.b_pre)
        losses.append(residual.square().sum(1).mean() / 12)
    torch.testing.assert_close(out.loss, sum(losses) / 3)
    torch.testing.assert_close(out.reconstruction, losses[2])
    torch.testing.assert_close(out.terms["level_0"], losses[0].detach())
    assert int((out.code.values > 0).sum()) == 4 * 200


@pytest.mark.parametrize("prefixes", [(), (0.5, 0.25, 1.0), (0.5,), (0.0, 1.0)])
def test_prefixes_rise_to_all_latents(prefixes):
    with pytest.raises(ConfigError, match="prefixes"):
        Config(prefixes=prefixes)


def test_dictionaries_of_one_size_are_named(make_sae):
    with pytest.raises(ConfigError, match=r"\[1, 1, 8\]"):
        make_sae("matryoshka", n_latents=8, prefixes=(0.01, 0.02, 1.0))
