import pytest
import torch

from diffprobe.core.errors import NonFinite
from diffprobe.features.batch import FeatureBatch
from diffprobe.probes.sae.types import SINGLE_PROCESS
from diffprobe.training.sae_rows import ChosenRows
from diffprobe.training.training_statistics import FirstPass

CELLS = ("mid_block@t10:empty:tokens2", "mid_block@t90:empty:tokens2")


def batches(n=7, size=3):
    generator = torch.Generator().manual_seed(0)
    x = {cell: 5 + torch.randn(n, 2, 4, generator=generator) for cell in CELLS}
    for part in torch.arange(n).split(size):
        features = {cell: values[part] for cell, values in x.items()}
        yield FeatureBatch(
            features, [f"sample/{i}" for i in part.tolist()], torch.zeros(len(part), dtype=torch.int64), {}
        )


def collect(*wanted, cells=CELLS):
    first = FirstPass(cells, 4, torch.device("cpu"))
    chosen = [first.choose(n, seed=seed) for n, seed in wanted]
    for batch in batches():
        first.update(batch)
    return first, [one.compute(SINGLE_PROCESS) for one in chosen]


def test_the_moments_are_those_of_all_rows():
    first, _ = collect()
    x = torch.cat([batch.features[cell].reshape(-1, 4) for batch in batches() for cell in CELLS]).double()
    sums = first.moments.compute()
    torch.testing.assert_close(sums.mean, x.mean(0))
    torch.testing.assert_close(sums.variance, x.var(0, unbiased=False))


def test_what_one_gets_does_not_depend_on_who_else_asks():
    _, (alone,) = collect((5, 1))
    _, (together, other, none, again) = collect((5, 1), (5, 2), (0, 1), (5, 1))
    assert together.equal(alone) and again.equal(alone) and not other.equal(alone) and none is None
    first = FirstPass(CELLS, 4, torch.device("cpu"))
    assert first.choose(5, seed=1) is first.choose(5, seed=1)
    assert isinstance(first.choose(4, seed=1), ChosenRows)


def test_features_that_are_no_numbers_are_named():
    first, (batch, *_) = FirstPass(CELLS, 4, torch.device("cpu")), batches()
    batch.features[CELLS[1]][1:, 0, 2] = float("inf")
    with pytest.raises(
        NonFinite, match=rf"cell '{CELLS[1]}' has NaN or infinity in 2 samples, the first is 'sample/1'"
    ):
        first.update(batch)
