import pytest
import torch

from diffprobe.metrics.fvu import fvu
from diffprobe.probes.sae.contract import Code
from diffprobe.training.rows import Rows
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
    assert whole["fvu"] == pytest.approx(fvu(x, x_hat)) and whole["explained_variance"] == 1 - whole["fvu"]
    assert whole["n"] == 20 and whole["l0"] == pytest.approx(float((code.values > 0).sum(1).float().mean()))
    assert list(by_cell) == list(cells if len(cells) > 1 else ())
    for i, found in enumerate(by_cell.values()):
        mine = group == i
        assert found["fvu"] == pytest.approx(fvu(x[mine], x_hat[mine])) and found["n"] == 10
        used = code.indices[mine][code.values[mine] > 0].unique().numel()
        assert found["dead_fraction"] == pytest.approx(1 - used / 6)


def test_computed_rows_are_forgotten():
    x, x_hat, code, group = data()
    scores, rows = SplitScores(4, 6, CELLS), Rows(x, group, group, group)
    scores.update(rows, x_hat, code)
    first = scores.compute()
    scores.update(rows, x_hat, code)
    assert scores.compute() == first and scores.state_dict() == {}
