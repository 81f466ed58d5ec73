import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.probes.sae.kernels import row_topk as module
from diffprobe.probes.sae.kernels.row_topk import row_topk

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def rows(n, width, dtype=torch.float32, *, seed=0, ties=False):
    h = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return (h.round() if ties else h).to(dtype)


def check(h, k):
    values, indices = row_topk(h, k)
    wanted = h.topk(k, dim=1).values
    assert values.dtype == h.dtype and indices.dtype == torch.int64 and values.shape == indices.shape == (len(h), k)
    torch.testing.assert_close(values, wanted, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(h.gather(1, indices), wanted, rtol=0, atol=0, equal_nan=True)
    assert (indices.sort(1).values.diff(dim=1) > 0).all()  # no place twice
    return indices


@given(
    n=st.integers(0, 5), width=st.integers(1, 700), share=st.floats(0, 1), ties=st.booleans(),
    dtype=st.sampled_from(FLOATS), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape_agrees_with_torch(n, width, share, ties, dtype, seed):
    check(rows(n, width, dtype, seed=seed, ties=ties), max(1, round(share**3 * width)))


@pytest.mark.parametrize("dtype", FLOATS[:3])
@pytest.mark.parametrize("width", [512, 515])  # with and without entries behind the last full group
def test_long_rows_go_through_groups(dtype, width, monkeypatch):
    taken = []
    by_groups = module._by_groups
    monkeypatch.setattr(module, "_by_groups", lambda *args: taken.append(args[2]) or by_groups(*args))
    check(rows(7, width, dtype), 8)
    assert taken == [8]


def test_rows_that_one_thread_each_sorts_and_rows_without_a_thread():
    for n in (1, torch.get_num_threads(), 33):
        check(rows(n, 640), 8)


def test_a_forked_process_has_threads_of_its_own():
    mine, other = module._pool(1, 1), module._pool(1, 2)
    assert mine is module._pool(1, 1) and mine is not other


def test_infinities_zeros_of_both_signs_and_what_is_not_a_number():
    h = rows(6, 512)
    h[0, 5], h[0, 6] = torch.inf, -torch.inf
    h[1] = -torch.inf
    h[1, 400:410] = 1
    h[2] = 0.0
    h[2, ::2] = -0.0
    check(h, 8)
    h[3, 17] = torch.nan
    h[4, 511] = -torch.tensor(torch.nan)  # with the sign bit, as infinity less infinity has it on many machines
    assert {17} <= set(check(h, 8)[3].tolist()) and {511} <= set(check(h, 8)[4].tolist())
    tail = rows(2, 515)
    tail[0, 514] = torch.nan
    assert 514 in check(tail, 8)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_among_equal_entries_the_choice_depends_on_the_row_alone(dtype):
    h = rows(64, 1024, dtype, ties=True)
    together = row_topk(h, 16)[1]
    for i in (0, 1, 63):
        assert row_topk(h[i : i + 1], 16)[1].equal(together[i : i + 1])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert row_topk(h[order], 16)[1].equal(together[order])


def test_rows_need_not_lie_together():
    h = rows(512, 6).T
    check(h, 8)
    check(rows(6, 1024)[:, ::2], 8)
