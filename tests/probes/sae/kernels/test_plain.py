"""Every kernel against its plain reference, gradients included."""

import pytest
import torch

from diffprobe.probes.sae.kernels import encoder_matmul, plain, row_topk, sparse_step, squared_error

N, D, M = 12, 6, 40
AMONG = torch.tensor([2, 3, 11, 17, 30])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(members=None):
    """b_pre, W_enc, b_enc, W_dec."""
    b_pre = draw(D, seed=1) if members is None else draw(members, D, seed=1)
    m = M * (members or 1)
    return [w.requires_grad_() for w in (b_pre, draw(m, D, seed=2), draw(m, seed=3), draw(m, D, seed=4))]


def assert_equal_with_gradients(kernel, reference, leaves):
    for got, wanted in zip(kernel, reference, strict=True):
        torch.testing.assert_close(got, wanted)
    losses = (
        sum((t * draw(*t.shape, seed=9)).sum() for t in found if t.requires_grad) for found in (kernel, reference)
    )
    for got, wanted in zip(*(torch.autograd.grad(loss, leaves) for loss in losses), strict=True):
        torch.testing.assert_close(got, wanted)


def test_encoder_matmul():
    x, (_, W_enc, b_enc, _) = draw(N, D), weights()
    chunks = [h.clone() for _, h in encoder_matmul.encoder_chunks(x, W_enc, b_enc, chunk_bytes=5 * M * 8)]
    assert len(chunks) > 1
    torch.testing.assert_close(torch.cat(chunks), plain.preactivations(x, W_enc, b_enc).detach())


def test_row_topk():
    h = draw(7, 640).float()
    for got, wanted in zip(row_topk.row_topk(h, 8), plain.row_topk(h, 8), strict=True):
        assert got.equal(wanted)


@pytest.mark.parametrize("among", [None, AMONG])
def test_scan(among):
    x, (_, W_enc, b_enc, _) = draw(N, D), weights()
    options = {"k": 4, "among": among, "k_among": 0 if among is None else 2}
    found = sparse_step.scan(x, W_enc, b_enc, chunk_bytes=5 * M * 8, **options)
    expected = plain.scan(x, W_enc.detach(), b_enc.detach(), **options)
    for got, wanted in zip(found, expected, strict=True):
        if wanted is None:
            assert got is None
            continue
        torch.testing.assert_close(got.values, wanted.values)
        assert got.indices.equal(wanted.indices)


@pytest.mark.parametrize("n", [0, N])
def test_scan_above(n):
    x, (_, W_enc, b_enc, _) = draw(n, D), weights()
    threshold = draw(M, seed=5).abs()
    got = sparse_step.scan_above(x, W_enc, b_enc, threshold, chunk_bytes=5 * M * 8)
    wanted = plain.scan_above(x, W_enc.detach(), b_enc.detach(), threshold)
    torch.testing.assert_close(got.values, wanted.values)
    active = wanted.values > 0
    assert got.indices[active].equal(wanted.indices[active])


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("n_parts", [1, 3])
def test_sparse_step(relu, n_parts):
    x, leaves = draw(N, D).requires_grad_(), weights()
    centred = x - leaves[0].detach()
    top, _ = sparse_step.scan(centred.detach(), *leaves[1:3], k=6)
    part = torch.randint(-1, n_parts, top.indices.shape, generator=torch.Generator().manual_seed(0))
    selection = sparse_step.rows_to_bags(*top, part, n_parts)
    found = (module.sparse_step(centred, *leaves, selection, relu=relu) for module in (sparse_step, plain))
    assert_equal_with_gradients(*found, [x, *leaves])


def test_sparse_step_of_two_members():
    x, leaves = draw(2 * N, D).requires_grad_(), weights(members=2)
    centred = x - leaves[0].detach().repeat_interleave(N, dim=0)
    tops = [
        sparse_step.scan(centred[i * N :][:N].detach(), leaves[1][i * M :][:M], leaves[2][i * M :][:M], k=5)[0]
        for i in range(2)
    ]
    values, indices = torch.cat([t.values for t in tops]), torch.cat([t.indices + i * M for i, t in enumerate(tops)])
    selection = sparse_step.rows_to_bags(values, indices, torch.zeros_like(indices), 1)
    found = (module.sparse_step(centred, *leaves, selection) for module in (sparse_step, plain))
    assert_equal_with_gradients(*found, [x, *leaves])


@pytest.mark.parametrize("levels", [1, 3])
def test_squared_error(levels):
    x, b_pre, parts = draw(N, D), draw(D, seed=1), draw(N, levels, D, seed=2)
    leaves = [t.requires_grad_() for t in (x, b_pre, parts)]
    found = (module.squared_error(x - b_pre.detach(), b_pre, parts) for module in (squared_error, plain))
    assert_equal_with_gradients(*found, leaves)
