import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.probes.sae import batch_topk, matryoshka
from diffprobe.probes.sae.batch_topk import BatchTopK, Config
from diffprobe.probes.sae.types import SINGLE_PROCESS


def chosen(sae, x, collective=SINGLE_PROCESS):
    selected, _ = sae.select(sae.scaled(x) - sae.b_pre, among=None, k_among=0, collective=collective)
    count = torch.zeros(x.shape[0], sae.n_latents, dtype=torch.int64)
    return count.scatter_add(1, selected.top.indices, (selected.part >= 0).long()) == 1


def whole_numbers(n, m, k, *, low, variant=batch_topk):
    """An autoencoder and rows whose pre-activations are small whole numbers: exact in any precision and often equal."""
    sae = variant.make(variant.Config(k=k, n_latents=m), 3, seed=0)
    generator = torch.Generator().manual_seed(n + m)
    sae.W_enc.data = torch.randint(-1, 2, (m, 3), generator=generator).float()
    return sae, torch.randint(low, 2, (n, 3), generator=generator).float()


def first_of_the_largest(sae, x):
    """The expected selection: the largest; among equal ones, those of earlier samples, then of lower latents."""
    h = sae.preactivations(x).detach().flatten()
    kept = h.argsort(descending=True, stable=True)[: sae.k * len(x)]
    return torch.zeros(len(h), dtype=torch.bool).index_fill(0, kept, True).view(len(x), -1)


@pytest.mark.slow
@given(n=st.integers(1, 9), m=st.integers(1, 30), share=st.floats(0, 1), spread=st.floats(0, 6))
def test_the_largest_of_the_batch_are_kept_however_unequal_its_samples(n, m, share, spread):
    k = 1 + round(share * (m - 1))
    sae = BatchTopK(Config(k=k, n_latents=m), 4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator) * torch.logspace(0, spread, n)[:, None]  # one sample may take it all
    h = sae.preactivations(x).detach()
    bar = h.flatten().topk(k * n).values[-1]
    mask = chosen(sae, x)
    assert (~mask[h > bar]).sum() == 0 and mask[h < bar].sum() == 0 and int(mask.sum()) == k * n


def test_samples_share_the_budget(make_sae, x):
    out = make_sae("batch_topk").step(x)
    counts = (out.code.values > 0).sum(1)
    assert int(counts.sum()) == 4 * 200 and counts.unique().numel() > 1
    assert out.code.values.shape[1] == int(counts.max())


def test_the_threshold_follows_training_and_is_saved(make_sae, x):
    sae = make_sae("batch_topk", threshold_decay=0.5)
    start = float(sae.threshold)
    assert start > 0 and int((sae.encode(x).values > 0).sum()) == 4 * 200 - 1  # all that the batch keeps but the bar
    smallest = sae.step(x * 2).code.values
    smallest = float(smallest[smallest > 0].min())
    assert float(sae.threshold) == pytest.approx((start + smallest) / 2, rel=1e-5)
    assert "threshold" in sae.state_dict()


def test_codes_do_not_depend_on_the_batch(make_sae, x):
    sae = make_sae("batch_topk")
    whole, alone = sae(x)[0], torch.cat([sae(row)[0] for row in x.split(1)])
    torch.testing.assert_close(whole, alone)


def test_two_processes_select_what_one_would(make_sae, x, share_out):
    sae = make_sae("batch_topk")
    x[::2] *= 1.5  # one of them needs more than its half
    first, second = share_out(lambda rows, collective: chosen(sae, rows, collective), x)
    assert torch.stack([first, second], 1).flatten(0, 1).equal(chosen(sae, x)) and int(first.sum()) != int(second.sum())


@pytest.mark.parametrize("m", [4, 8, 40, 200])
def test_equal_latents_of_one_sample(m):
    for k in (1, 2, 3, 4):
        sae = BatchTopK(Config(k=k, n_latents=m), 1)
        sae.W_enc.data.fill_(1.0)
        assert chosen(sae, torch.full((1, 1), 3.0)).nonzero()[:, 1].tolist() == list(range(k))
        assert int((sae.step(torch.full((1, 1), 3.0)).code.values == 3).sum()) == k


@given(n=st.integers(1, 12), m=st.integers(1, 60), share=st.floats(0, 1), low=st.sampled_from([-1, 0, 1]))
def test_of_equal_latents_the_first_are_kept(n, m, share, low):
    sae, x = whole_numbers(n, m, 1 + round(share * (m - 1)), low=low)
    wanted = first_of_the_largest(sae, x)
    assert chosen(sae, x).equal(wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen(sae, x).equal(wanted)


@pytest.mark.parametrize("variant", [batch_topk, matryoshka], ids=["batch_topk", "matryoshka"])
@pytest.mark.parametrize(("k", "m"), [(1, 32), (2, 32), (3, 200), (28, 32), (32, 32)])
def test_two_processes_keep_the_ties_that_one_would(share_out, variant, k, m):
    sae, x = whole_numbers(16, m, k, low=-1, variant=variant)

    def work(rows, collective):
        with torch.autocast("cpu", torch.bfloat16):
            return chosen(sae, rows, collective), sae.step(rows, collective=collective).code

    (first, _), (second, _) = parts = share_out(work, x)
    wanted = first_of_the_largest(sae, x)
    assert torch.stack([first, second], 1).flatten(0, 1).equal(wanted)
    active = int((sae.preactivations(x)[wanted] > 0).sum())
    assert sum(int((code.values > 0).sum()) for _, code in parts) == active > 0


def test_bfloat16_keeps_as_many_as_float32(make_sae, x, share_out):
    sae = make_sae("batch_topk")

    def kept(rows, collective=SINGLE_PROCESS):
        with torch.autocast("cpu", torch.bfloat16):
            return chosen(sae, rows, collective)

    assert int(kept(x).sum()) == 4 * 200 == sum(int(part.sum()) for part in share_out(kept, x))
    with torch.autocast("cpu", torch.bfloat16):
        code = sae.step(x).code
    bar = code.values[code.values > 0].min()
    assert int((code.values > 0).sum()) == 4 * 200 and int((code.values == bar).sum()) > 1  # it was a tie


def test_a_latent_that_is_no_number_makes_the_loss_one(make_sae, x):
    sae = make_sae("batch_topk")
    sae.b_enc.data[7] = float("nan")
    assert sae.step(x).loss.isnan()


def test_an_empty_batch_and_a_missing_threshold_are_named(make_sae, x):
    with pytest.raises(ConfigError, match="0 samples"):
        make_sae("batch_topk").step(x[:0])
    with pytest.raises(RunFailed, match="no threshold"):
        make_sae("batch_topk", start=False).encode(x)
    with pytest.raises(ConfigError, match="threshold_decay = 1"):
        Config(threshold_decay=1.0)
