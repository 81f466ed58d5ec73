import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.probes.sae.batch_topk import BatchTopK, Config
from diffprobe.probes.sae.contract import ALONE, Joint


def chosen(sae, x, joint=ALONE):
    picked, _ = sae.pick(sae.scaled(x) - sae.b_pre, among=None, k_among=0, joint=joint)
    count = torch.zeros(x.shape[0], sae.n_latents, dtype=torch.int64)
    return count.scatter_add(1, picked.top.indices, (picked.part == 0).long()) == 1


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


def test_two_processes_select_what_one_would(make_sae, x):
    sae = make_sae("batch_topk")
    halves = x[:100], x[100:] * 1.5
    sent = []
    for half in halves:
        with pytest.raises(StopIteration):
            chosen(sae, half, Joint(gather=lambda values: sent.append(values) or next(iter(())), size=2))
    joint = Joint(gather=lambda values: torch.cat(sent), size=2)
    both = torch.cat([chosen(sae, half, joint) for half in halves])
    assert both.equal(chosen(sae, torch.cat(halves)))


def test_an_empty_batch_and_a_missing_threshold_are_named(make_sae, x):
    with pytest.raises(ConfigError, match="this one is empty"):
        make_sae("batch_topk").step(x[:0])
    with pytest.raises(RunFailed, match="no threshold yet"):
        make_sae("batch_topk", start=False).encode(x)
    with pytest.raises(ConfigError, match="threshold_decay = 1"):
        Config(threshold_decay=1.0)
