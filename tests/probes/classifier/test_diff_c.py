import pytest
import torch
import torch.nn.functional as F

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier import ClassifierProbe
from diffprobe.probes.classifier.base import make_head
from diffprobe.probes.classifier.diff_c import Config, make

TAPS = {  # of SD 1.5 and 2.1 at 512 pixels, and of DiT-XL/2 at 512
    "mid_block": (1280, 8, 8),
    "up_blocks.0": (1280, 16, 16),
    "up_blocks.1": (1280, 32, 32),
    "up_blocks.2": (640, 64, 64),
    "up_blocks.3": (320, 64, 64),
    "transformer_blocks.14": (1152, 32, 32),
}


def n_trained(head):
    return sum(p.numel() for p in head.parameters() if p.requires_grad)


@pytest.mark.parametrize("form", ["released", "described"])
@pytest.mark.parametrize("tap", TAPS)
def test_shapes_at_every_tap(form, tap):
    channels, height, width = TAPS[tap]
    with torch.device("meta"):
        head = make(Config(form=form), {f"{tap}@t25:empty:none": TAPS[tap]}, 37, seed=0)
        sizes, x = [], torch.empty(2, *TAPS[tap])
        for layer in head.convolutions:
            x = layer(x)
            sizes.append(tuple(x.shape[1:]))
        logits = head(torch.empty(2, channels * height * width))
    first = height if form == "released" else height // 2
    assert sizes == [(1024, max(first // 2**i, 1), max(first // 2**i, 1)) for i in range(4)]
    assert logits.shape == (2, 37)
    expected = channels * 1024 * 9 + 1024 + 3 * (1024 * 1024 * 9 + 1024) + 4 * 2 * 1024 + 1024 * 37 + 37
    assert n_trained(head) == expected


def test_parameters_are_as_many_as_were_logged_for_pet():
    with torch.device("meta"):
        head = make(Config(), {"up_blocks.1@t25:empty:none": (1280, 16, 16)}, 37, seed=0)
    assert n_trained(head) == 40_158_245  # 40.16 M


@pytest.mark.parametrize("form", ["released", "described"])
def test_it_is_the_plain_network(form):
    shape = (3, 5, 4)
    head = make_head("diff_c", Config(form=form, width=6), 60, 4, seed=0, shapes={"up@t9:empty:none": shape})
    x = torch.randn(7, *shape)

    def normalised(values, weight=None, bias=None):
        return F.batch_norm(values, None, None, weight, bias, training=True, eps=1e-5)

    found = normalised(x)
    for i, layer in enumerate(head.convolutions):
        stride = 1 if i == 0 and form == "released" else 2
        found = F.conv2d(found, layer[0].weight, layer[0].bias, stride=stride, padding=1)
        found = normalised(found, layer[1].weight, layer[1].bias).relu()
    expected = found.mean((2, 3)) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(x.flatten(1)), expected, rtol=1e-5, atol=1e-5)


def test_it_comes_back_from_its_folder_and_refuses_other_maps(tmp_path):
    shapes = {"up@t9:empty:none": (3, 4, 4)}
    probe = ClassifierProbe("diff_c", Config(width=6), n_classes=3, shapes=shapes).eval()
    probe.save_pretrained(tmp_path)
    x = torch.randn(5, 3, 4, 4)
    assert ClassifierProbe.from_pretrained(tmp_path).logits(x).equal(probe.logits(x))
    with pytest.raises(ConfigError, match="width 27.*width 48"):
        probe(torch.randn(5, 3, 3, 3))
    with pytest.raises(ConfigError, match="'diff_c' reads maps"):
        ClassifierProbe("diff_c", Config(width=6), d_in=48, n_classes=3)
    for bad in ({"width": 0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(bad))}="):
            Config(**bad)
