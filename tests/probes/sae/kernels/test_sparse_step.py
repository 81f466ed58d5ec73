import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.probes.sae.kernels.sparse_step import entry_products, join, rows_to_bags, scan, sparse_step


def problem(n=9, d=6, m=20, seed=0, dtype=torch.float64, ties=False):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        values = torch.randn(*shape, generator=generator, dtype=dtype)
        return values.round() if ties else values

    weights = [draw(d), draw(m, d), draw(m), draw(m, d)]  # b_pre, W_enc, b_enc, W_dec
    return draw(n, d), [w.requires_grad_() for w in weights]


def one_part(top):
    return rows_to_bags(*top, torch.zeros_like(top.indices), 1)


def dense_code(x, weights, indices, relu=True):
    """The same selection as a dense matrix: what every sparse result has to equal."""
    b_pre, W_enc, b_enc, _ = weights
    h = F.linear(x - b_pre, W_enc, b_enc)
    return torch.zeros_like(h).scatter(1, indices, 1.0) * (F.relu(h) if relu else h)


def agree(ours, dense, weights, rel):
    assert float((ours - dense).detach().norm()) <= rel * float(dense.detach().norm()) + 1e-30
    probe = torch.randn(dense.shape, dtype=dense.dtype, generator=torch.Generator().manual_seed(1))
    one = torch.autograd.grad((ours * probe).sum(), weights)
    two = torch.autograd.grad((dense * probe).sum(), weights)
    for got, wanted in zip(one, two, strict=True):
        assert float((got - wanted).norm()) <= rel * float(wanted.norm()) + 1e-30


@given(
    n=st.integers(1, 9), d=st.integers(1, 7), m=st.integers(1, 20), share=st.floats(0, 1), ties=st.booleans(),
    relu=st.booleans(), rows=st.integers(1, 9),
)  # fmt: skip
def test_any_shape_agrees_with_the_dense_computation(n, d, m, share, ties, relu, rows):
    x, weights = problem(n, d, m, ties=ties)
    b_pre, W_enc, b_enc, _ = weights
    k = 1 + round(share * (m - 1))  # from 1 to all latents
    top, none = scan(x - b_pre, W_enc, b_enc, k=k, chunk_bytes=rows * m * 8)
    assert none is None and top.indices.sort(1).values.diff(dim=1).gt(0).all()
    decoded, _ = sparse_step(x - weights[0].detach(), *weights, one_part(top), relu=relu)
    agree(decoded, dense_code(x, weights, top.indices, relu) @ weights[3], weights, 1e-10)


def test_float32_gradients_are_exact_to_a_millionth():
    x, weights = problem(200, 24, 96, dtype=torch.float32)
    top, _ = scan(x - weights[0], weights[1], weights[2], k=5)
    decoded, _ = sparse_step(x - weights[0].detach(), *weights, one_part(top))
    agree(decoded, dense_code(x, weights, top.indices) @ weights[3], weights, 1e-6)


def test_one_scan_serves_two_selections_and_their_gradients_add_up():
    x, weights = problem()
    among = torch.tensor([2, 3, 11, 17])
    top, other = scan(x - weights[0], weights[1], weights[2], k=4, among=among, k_among=2, chunk_bytes=1)
    assert torch.isin(other.indices, among).all()
    both = join([one_part(top), one_part(other)])
    decoded, _ = sparse_step(x - weights[0].detach(), *weights, both)
    dense = torch.cat([dense_code(x, weights, t.indices) @ weights[3] for t in (top, other)])
    agree(decoded, dense, weights, 1e-10)


def test_parts_are_separate_bags_and_part_minus_one_is_left_out():
    x, weights = problem()
    top, _ = scan(x - weights[0], weights[1], weights[2], k=6)
    part = torch.randint(-1, 3, top.indices.shape, generator=torch.Generator().manual_seed(0))
    decoded, _ = sparse_step(x - weights[0].detach(), *weights, rows_to_bags(*top, part, 3))
    code = dense_code(x, weights, top.indices)
    where = torch.full_like(code, -1).scatter(1, top.indices, part.to(code.dtype))
    dense = torch.stack([(code * (where == p)) @ weights[3] for p in range(3)], 1).flatten(0, 1)
    agree(decoded, dense, weights, 1e-10)


def test_activations_and_features_carry_gradients_too():
    x, weights = problem()
    x.requires_grad_()
    top, _ = scan((x - weights[0]).detach(), weights[1], weights[2], k=4)
    decoded, activations = sparse_step(x - weights[0].detach(), *weights, one_part(top))
    code = dense_code(x, weights, top.indices)
    loss, dense = decoded.square().sum() + activations.sum(), (code @ weights[3]).square().sum() + code.sum()
    one, two = (torch.autograd.grad(value, [x, *weights]) for value in (loss, dense))
    for got, wanted in zip(one, two, strict=True):
        torch.testing.assert_close(got, wanted)


def test_nothing_dense_is_kept_for_backward():
    x, weights = problem(n=32, m=500)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        top, _ = scan(x - weights[0], weights[1], weights[2], k=4)
        decoded, _ = sparse_step(x - weights[0].detach(), *weights, one_part(top))
        decoded.square().sum().backward()
    assert kept and not [t.shape for t in kept if t.numel() >= 32 * 500 or tuple(t.shape) == (32, 500)]


def test_autocast_lowers_the_encoder_product_alone():
    x, weights = problem(n=40, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        top, _ = scan(x - weights[0], weights[1], weights[2], k=4)
        decoded, values = sparse_step(x - weights[0].detach(), *weights, one_part(top))
    assert values.bfloat16().float().equal(values) and decoded.dtype == torch.float32
    dense = dense_code(x, weights, top.indices) @ weights[3]
    torch.testing.assert_close(decoded.detach(), dense.detach(), rtol=0.05, atol=0.2)
    decoded.sum().backward()
    assert {w.grad.dtype for w in weights} == {torch.float32}


def test_gradients_repeat_bit_for_bit():
    def gradients():
        x, weights = problem(300, 16, 64, dtype=torch.float32)
        top, _ = scan(x - weights[0], weights[1], weights[2], k=8)
        sparse_step(x - weights[0].detach(), *weights, one_part(top))[0].square().sum().backward()
        return [w.grad for w in weights]

    assert all(one.equal(two) for one, two in zip(gradients(), gradients(), strict=True))


def test_no_sample_gives_zero_gradients():
    x, weights = problem(n=0)
    top, _ = scan(x - weights[0], weights[1], weights[2], k=4)
    decoded, _ = sparse_step(x - weights[0].detach(), *weights, one_part(top))
    decoded.sum().backward()
    assert decoded.shape == (0, 6) and all(float(w.grad.abs().sum()) == 0 for w in weights)


def test_entry_products_are_those_of_the_gathered_rows():
    x, weights = problem()
    top, _ = scan(x - weights[0], weights[1], weights[2], k=4)
    places = one_part(top)
    there = entry_products(x, weights[3].detach(), places.latents, places.starts)
    wanted = (x[:, None] * weights[3].detach()[top.indices]).sum(2).flatten()
    torch.testing.assert_close(there, wanted)
