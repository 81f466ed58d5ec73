"""The dense step against the sparse one: the same sums and gradients from the same selections."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.probes.sae.kernels.dense_step import Chosen, dense_step
from diffprobe.probes.sae.kernels.sparse_step import join, rows_to_bags, scan, sparse_step


def problem(n=9, d_in=6, m=20, d_out=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = [draw(d_in), draw(m, d_in), draw(m), draw(m, d_out)]  # b_pre, W_enc, b_enc, W_dec
    return draw(n, d_in).requires_grad_(), [w.requires_grad_() for w in weights]


def select(x, weights, *, k, parts=1, among=None, k_among=0):
    """A selection in parts with some entries left out, and one of the latents in `among`, which overlap."""
    m = len(weights[2])
    top, other = scan((x - weights[0]).detach(), weights[1], weights[2], k=k, among=among, k_among=k_among)
    part = torch.randint(-1, parts, top.indices.shape, generator=torch.Generator().manual_seed(0))
    found = [Chosen(*top, part, (range(m),) * parts)]
    if other is not None:
        found.append(Chosen(*other, torch.zeros_like(other.indices), (range(m),)))
    return found


def both(x, weights, chosen, *, autocast=None, **settings):
    """Sums and gradients of the sparse step, and of the dense one."""
    relu = settings.get("relu", True)
    centred = x - weights[0].detach()
    bags = join([rows_to_bags(one.values, one.latents, one.part, len(one.spans)) for one in chosen])
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        found = sparse_step(centred, *weights, bags, relu=relu)[0], dense_step(centred, *weights, chosen, **settings)
    probe = torch.randn(found[0].shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    return [
        [one.detach(), *torch.autograd.grad((one * probe).sum(), [x, *weights], retain_graph=True)] for one in found
    ]


@given(
    n=st.integers(0, 9), m=st.integers(1, 20), share=st.floats(0, 1), parts=st.integers(1, 3), relu=st.booleans(),
    n_among=st.integers(0, 20), rows=st.integers(1, 9),
)  # fmt: skip
def test_any_selection_agrees_with_the_sparse_step(n, m, share, parts, relu, n_among, rows):
    x, weights = problem(n, m=m)
    among = torch.arange(min(n_among, m))
    chosen = select(x, weights, k=1 + round(share * (m - 1)), parts=parts, among=among, k_among=(len(among) + 1) // 2)
    sparse, dense = both(x, weights, chosen, relu=relu, chunk_bytes=rows * m * 8)
    for got, wanted in zip(dense, sparse, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_a_part_with_a_span_is_multiplied_with_its_latents_only():
    x, weights = problem()
    top, _ = scan((x - weights[0]).detach(), weights[1], weights[2], k=8)
    spans = (range(3), range(3, 11), range(11, 20))
    part = torch.bucketize(top.indices, torch.tensor([3, 11]), right=True)
    sparse, dense = both(x, weights, [Chosen(*top, part, spans)])
    for got, wanted in zip(dense, sparse, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_the_products_and_nothing_else(dtype):
    x, weights = problem(n=64, d_in=32, m=96, d_out=32, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        chosen = select(x, weights, k=6)
    sparse, dense = both(x, weights, chosen, autocast=dtype)
    plain = both(x, weights, chosen)[1]
    eps = torch.finfo(dtype).eps
    for got, wanted, exact in zip(dense, sparse, plain, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(exact, wanted, rtol=1e-4, atol=1e-4)
        off = float((got - wanted).norm() / wanted.norm())
        assert eps / 50 < off < 2 * eps


def test_nothing_of_the_size_of_the_code_is_kept_for_backward():
    x, weights = problem(n=32, m=500)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        dense_step(x - weights[0].detach(), *weights, select(x, weights, k=4)).square().sum().backward()
    assert kept and all(t.numel() < 32 * 500 / 2 for t in kept)


def test_gradients_repeat_bit_for_bit():
    def gradients():
        x, weights = problem(300, 16, 64, dtype=torch.float32)
        chosen = select(x, weights, k=8, parts=2, among=torch.arange(40), k_among=9)
        return both(x, weights, chosen, chunk_bytes=4 * 64 * 70)[1]

    assert all(one.equal(two) for one, two in zip(gradients(), gradients(), strict=True))
