import pytest
import torch

from diffprobe.metrics.density_histogram import density_histogram
from diffprobe.metrics.fvu import fvu
from diffprobe.metrics.sparsity import count_active
from diffprobe.probes.sae.types import Code
from diffprobe.training.sae_rows import Rows
from diffprobe.training.sae_scores import SplitScores

CELLS = ("mid_block@t10:empty:mean", "mid_block@t90:empty:mean")


def data(n=20):
    generator = torch.Generator().manual_seed(0)
    x = 5 + torch.randn(n, 4, generator=generator)
    code = Code(torch.rand(n, 2, generator=generator), torch.randint(0, 6, (n, 2), generator=generator))
    group = torch.arange(n) % 2
    return x, x + 0.1 * torch.randn(n, 4, generator=generator), code, group


@pytest.mark.parametrize("cells", [CELLS[:1], CELLS])
def test_numbers_over_all_rows_and_of_each_cell(cells):
    x, x_hat, code, group = data()
    group = group if len(cells) > 1 else torch.zeros_like(group)
    scores = SplitScores(4, 6, cells)
    for part in torch.arange(20).split(7):
        none = torch.zeros_like(part)
        rows = Rows(x[part], group[part], none, none)
        scores.update(rows, x_hat[part], Code(code.values[part], code.indices[part]))
    whole, by_cell = scores.compute()
    assert list(by_cell) == list(cells if len(cells) > 1 else ())
    parts = [(whole, torch.ones(20, dtype=torch.bool)), *((one, group == i) for i, one in enumerate(by_cell.values()))]
    for found, mine in parts:
        values, active = found.values, count_active(code.values[mine], code.indices[mine], 6)
        assert found.n == int(mine.sum()) == (10 if found is not whole else 20)
        assert values["fvu"] == pytest.approx(fvu(x[mine], x_hat[mine]))
        assert values["explained_variance"] == 1 - values["fvu"]
        assert values["l0"] == pytest.approx(float((code.values[mine] > 0).sum(1).float().mean()))
        assert values["dead_fraction"] == pytest.approx(float((active == 0).float().mean()))
        assert found.density.counts.equal(density_histogram(active, found.n).counts)
        assert values["dense_fraction"] == pytest.approx(float((active >= 0.1 * found.n).float().mean()))
        spread = x[mine].double().std(0, unbiased=False).norm()
        assert values["gamma"] == pytest.approx(float(x[mine].double().mean(0).norm() / spread))


def test_computed_rows_are_forgotten():
    x, x_hat, code, group = data()
    scores, rows = SplitScores(4, 6, CELLS), Rows(x, group, group, group)
    scores.update(rows, x_hat, code)
    first, first_by_cell = scores.compute()
    scores.update(rows, x_hat, code)
    again, by_cell = scores.compute()
    assert again.values == first.values and again.n == first.n and again.density.counts.equal(first.density.counts)
    assert [one.values for one in by_cell.values()] == [one.values for one in first_by_cell.values()]
    assert scores.state_dict() == {}
