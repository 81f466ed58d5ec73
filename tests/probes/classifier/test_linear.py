import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier.linear import Config, LinearBank, LinearProbe


def bank():
    torch.manual_seed(0)
    made = LinearBank(6, [3, 4])
    with torch.no_grad():
        made.weight.normal_()
        made.bias.normal_()
    made.standardise(torch.randn(6).double(), torch.tensor([1.0, 4, 9, 0, 2, 3]).double())
    return made


def test_standardisation_uses_the_training_set_and_survives_constants():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) * 5 + 3
    x[:, 2] = 7.0
    made = LinearBank(6, [2])
    made.standardise(x.double().mean(0), torch.where(x.std(0) > 0, x.double().var(0, unbiased=False), 0.0))
    with torch.no_grad():
        made.weight.copy_(torch.eye(6)[:2] + torch.eye(6)[1:3])  # reads dimensions 0+1 and 1+2
    first, second = made(x)[0].T
    assert float(second.detach().std(unbiased=False)) == pytest.approx(
        1, rel=1e-4
    )  # the constant dimension adds nothing
    assert torch.isfinite(first).all()


def test_a_head_taken_out_is_the_same_classifier(tmp_path):
    made, x = bank(), torch.randn(9, 6, generator=torch.Generator().manual_seed(2))
    probe = made.head(1)
    torch.testing.assert_close(probe.logits(x), made(x)[1])
    probe.save_pretrained(tmp_path, cell="mid_block@t1:empty:mean", target="label", classes=("a", "b", "c", "d"))
    back = LinearProbe.from_pretrained(tmp_path)
    assert back.predict(x).equal(made(x)[1].argmax(1)) and back.inverse_std[3] == 0


def test_bad_settings():
    with pytest.raises(ConfigError, match="at least 2 classes, got 1"):
        LinearBank(4, [3, 1])
    with pytest.raises(ConfigError, match="'random'"):
        Config(controls=("random",))
