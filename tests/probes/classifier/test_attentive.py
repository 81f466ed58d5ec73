import pytest
import torch

from diffprobe.probes.classifier import ClassifierProbe
from diffprobe.probes.classifier.attentive import Config

CELL = "up@t20:empty:none"
SHAPE = (3, 4, 2)
CONFIG = Config(width=12, heads=3)


@pytest.mark.slow
def test_it_finds_a_mark_whose_place_changes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, *SHAPE, generator=generator)
    y = torch.arange(80) % 2
    place = torch.randint(0, 8, (80,), generator=generator)
    x.flatten(2)[torch.arange(80), 0, place] += 6 * (2 * y - 1)
    probe = ClassifierProbe("attentive", CONFIG, shapes={CELL: SHAPE}).fit(x, y, max_steps=60)
    assert probe.score(x, y) > 0.9
    probe.save_pretrained(tmp_path, cell=CELL)
    back = ClassifierProbe.from_pretrained(tmp_path)
    assert back.shapes == {CELL: SHAPE} and back.logits(x).equal(probe.logits(x))
    assert back.logits(x.flatten(1)).equal(back.logits(x)) and back.vector({CELL: x}).equal(x.flatten(1))


def test_a_sample_does_not_depend_on_its_batch():
    probe = ClassifierProbe("attentive", CONFIG, n_classes=3, shapes={CELL: SHAPE}).eval()
    x = torch.randn(6, *SHAPE)
    torch.testing.assert_close(probe(x)[2:3], probe(x[2:3]), rtol=1e-5, atol=1e-6)
