import pytest
import torch
from torch import nn

from diffprobe.backbones.intervention import Splice, replaced
from diffprobe.backbones.layout import OutputLayout
from diffprobe.core.errors import ConfigError, RunFailed

POOLS = ("mean", "grid2", "none", "tokens3")


def maps(memory_format=torch.contiguous_format, dtype=torch.float32):
    x = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0)) + 2
    return x.to(dtype).contiguous(memory_format=memory_format)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_features_give_the_same_bits_in_the_same_layout(pool, memory_format, dtype):
    x, splice = maps(memory_format, dtype), Splice(pool)
    before = splice.read(x)
    written = splice.write(x, before, before.clone())
    assert torch.equal(written, x) and written.stride() == x.stride() and written.dtype == dtype
    assert written.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("pool", POOLS)
def test_what_is_written_is_read_again(pool):
    x, splice = maps(), Splice(pool)
    before = splice.read(x)
    after = torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(splice.read(splice.write(x, before, after)), after)
    filled = splice.fill(x, after[0])
    torch.testing.assert_close(splice.read(filled), after[0].expand_as(before))
    assert filled.shape == x.shape


def test_a_mean_changes_all_places_alike_and_nothing_else():
    x, splice = maps(), Splice("mean")
    before = splice.read(x)
    written = splice.write(x, before, before + torch.arange(5.0))
    torch.testing.assert_close(written - x, torch.arange(5.0)[None, :, None, None].expand_as(x))
    assert float(splice.fill(x, before[0]).var((2, 3)).max()) == 0


def test_a_place_is_a_row():
    x = maps()
    assert torch.equal(Splice("none").read(x)[6 + 1], x[0, :, 1, 1])


def test_what_is_replaced_is_said():
    assert Splice("none").description == Splice("tokens3").description == "every place of the map"
    assert Splice("mean").description == "the mean over places; the rest of the map stays"
    assert Splice("grid2").description == "the mean over places of each of 4 parts; the rest of the map stays"


def test_poolings_that_cannot_be_put_back_are_refused():
    with pytest.raises(ConfigError, match="pool=max"):
        Splice("max")
    with pytest.raises(ConfigError, match="4 x 6 places of tap 'mid' .* 4 x 4"):
        Splice("grid4").check_size("mid", (4, 6))
    Splice("grid2").check_size("mid", (4, 6))


class Skips(nn.Module):
    """Hands its map on twice beside another one, as a down block does."""

    def forward(self, x):
        out = x * 2
        return out, (x, out)


class Tokens(nn.Module):
    def __init__(self, channels_first=False):
        super().__init__()
        self.channels_first = channels_first

    def forward(self, x):
        tokens = x.flatten(2)
        return {"sample": tokens.contiguous() if self.channels_first else tokens.transpose(1, 2).contiguous()}


def run(module, change, x):
    network = nn.Sequential()
    network.add_module("tap", module)
    with replaced(network, "tap", OutputLayout(size=(4, 6)), change):
        return network(x)


def test_a_map_is_replaced_wherever_it_is_handed_on():
    x = maps()
    new, (first, second) = run(Skips(), lambda x: x + 1, x)
    assert torch.equal(new, x * 2 + 1) and torch.equal(second, new) and torch.equal(first, x)
    assert torch.equal(run(Skips(), lambda x: None, x)[0], x * 2)


def test_tokens_are_maps_too():
    x = maps()
    tokens = run(Tokens(), lambda x: x * torch.arange(6.0), x)["sample"]
    assert torch.equal(tokens, (x * torch.arange(6.0)).flatten(2).transpose(1, 2))


def test_channels_may_stand_before_the_tokens():
    x = torch.randn(2, 24, 4, 6)
    layout = OutputLayout(size=(4, 6), channels_first="tap")
    network = nn.Sequential()
    network.add_module("tap", Tokens(channels_first=True))
    with replaced(network, "tap", layout, lambda x: x * torch.arange(6.0)):
        found = network(x)["sample"]
    assert torch.equal(found, (x * torch.arange(6.0)).flatten(2)) and found.is_contiguous()


def test_heads_and_what_is_no_module_are_refused():
    network = nn.Sequential()
    network.add_module("tap", nn.Identity())
    layout = OutputLayout(size=(4, 6), heads="tap")
    with pytest.raises(ConfigError, match="'tap'.*heads"), replaced(network, "tap", layout, lambda x: x):
        network(torch.randn(2, 3, 24, 8))
    with pytest.raises(RunFailed, match="no feature map"), replaced(network, "tap", layout, lambda x: x):
        network(torch.randn(2, 3))
    with pytest.raises(ConfigError, match="'tap/probs'"), replaced(network, "tap/probs", layout, lambda x: x):
        pass
    assert not network.tap._forward_hooks
