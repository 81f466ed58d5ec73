import pytest
import torch

from diffprobe.probes.sae.kernels.squared_error import squared_error


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_values_and_gradients_are_those_of_the_plain_expression(n, levels):
    generator = torch.Generator().manual_seed(0)
    x, b_pre = torch.randn(n, 5, generator=generator).double(), torch.randn(5, generator=generator).double()
    parts = torch.randn(n, levels, 5, generator=generator).double()
    weights = torch.randn(levels, generator=generator).double()
    leaves = [t.requires_grad_() for t in (x, b_pre, parts)]
    residual = x[:, None] - (parts.cumsum(1) + b_pre)
    wanted = residual.square().sum((0, 2))
    errors, found = squared_error(x - b_pre.detach(), b_pre, parts)
    torch.testing.assert_close(errors, wanted)
    torch.testing.assert_close(found, residual.detach())
    assert not found.requires_grad
    got, plain = (torch.autograd.grad((weights * value).sum(), leaves) for value in (errors, wanted))
    for one, other in zip(got, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_float32_keeps_its_digits_over_many_rows():
    x = torch.randn(20_000, 32, generator=torch.Generator().manual_seed(0))
    errors, _ = squared_error(x, torch.zeros(32), torch.zeros(20_000, 1, 32))
    assert float(errors) == pytest.approx(float(x.double().square().sum()), rel=1e-6)


def test_lower_precision_parts_get_gradients_of_their_own():
    x, parts = torch.ones(3, 4), torch.zeros(3, 1, 4, dtype=torch.bfloat16, requires_grad=True)
    errors, residual = squared_error(x, torch.zeros(4), parts)
    errors.sum().backward()
    assert residual.dtype == errors.dtype == torch.float32 and parts.grad.dtype == torch.bfloat16
    assert parts.grad.eq(-2).all()
