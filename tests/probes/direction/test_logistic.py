import torch
import torch.nn.functional as F

from diffprobe.probes.direction.logistic import LogisticDirections


def test_directions_are_those_of_the_raw_features():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator) * torch.tensor([1.0, 10, 0.1, 3]) + 5
    model = LogisticDirections(4, 2)
    model.standardise(x.double().mean(0), x.double().var(0, unbiased=False))
    with torch.no_grad():
        model.weight.normal_(generator=generator)
    logits, projection = model(x), x.double() @ model.directions()
    # Up to a constant a column, the logits are the projections of the raw features.
    offset = logits.double() - projection
    torch.testing.assert_close(offset, offset[:1].expand_as(offset), atol=1e-3, rtol=0)
    loss = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    assert torch.isfinite(loss)
