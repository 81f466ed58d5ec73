import torch

from diffprobe.training.ended_heads import EndedHeads


def test_an_ended_head_leaves_no_trace_in_gradients():
    ends = EndedHeads(3)
    logits = [torch.randn(4, 2, requires_grad=True) for _ in range(3)]
    bad = [logits[0], logits[1] * torch.nan, logits[2] * 1e30 * 1e30]
    losses = []
    for i, one in enumerate(bad):
        masked, usable = ends.masked(i, one)
        losses.append(torch.where(usable, masked.square().sum(), torch.nan))
    total, finite = ends.add_up(torch.stack(losses))
    total.backward()
    assert finite.tolist() == [True, False, False] and float(total) == float(logits[0].square().sum())
    assert logits[0].grad.equal(2 * logits[0])
    assert ends.failed.tolist() == [0.0, 1.0, 1.0] and ends.step.tolist() == [-1, -1, -1]
    assert ends.take(ends.failed, step=7) == [1, 2] and ends.step.tolist() == [-1, 7, 7]
    assert ends.take(ends.failed, step=8) == [] and ends.failed.tolist() == [0.0] * 3


def test_it_stays_ended_on_finite_logits_and_over_a_checkpoint():
    ends, again = EndedHeads(2), EndedHeads(2)
    ends.take(torch.tensor([0.0, 1.0]), step=3)
    again.load_state_dict(ends.state_dict())
    masked, usable = again.masked(1, torch.ones(4, 2))
    assert not usable and not masked.any() and again.step.tolist() == [-1, 3]
