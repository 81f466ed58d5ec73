"""The sparse autoencoder against a dense twin written from the formula, over several training steps."""

import torch
import torch.nn.functional as F

from diffprobe.probes.sae.topk import KSAE


class DenseTwin(torch.nn.Module):
    """relu(topk) by scatter, decode by matrix product; parameters copied."""

    def __init__(self, sae):
        super().__init__()
        self.k, self.scale, self.d_in = sae.k, sae.scale.clone(), sae.d_in
        for name, value in sae.named_parameters():
            self.register_parameter(name, torch.nn.Parameter(value.detach().clone()))

    def loss(self, x, dead, k_aux, weight):
        x = x * self.scale
        h = (x - self.b_pre) @ self.W_enc.T + self.b_enc
        keep = torch.zeros_like(h).scatter(1, h.topk(self.k).indices, 1.0)
        residual = x - ((F.relu(h) * keep) @ self.W_dec + self.b_pre)
        hidden = h.masked_fill(~dead, -torch.inf)
        keep = torch.zeros_like(h).scatter(1, hidden.topk(k_aux).indices, 1.0)
        target = residual.detach()
        miss = (target - (F.relu(h) * keep) @ self.W_dec).square().sum() / target.square().sum()
        return residual.square().sum(1).mean() / self.d_in + weight * miss


def test_ten_steps_of_training_agree():
    x = 2 * torch.randn(160, 10, generator=torch.Generator().manual_seed(0)) + 6
    sae = KSAE(10, 40, 5, seed=1)
    sae.initialise(x.double().mean(0), x.double().var(0, unbiased=False))
    twin = DenseTwin(sae)
    dead = torch.arange(40) >= 30
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in (sae, twin)]
    for batch in x.split(16):
        losses = [
            sae.step(batch, dead=dead, k_aux=3, aux_weight=0.1).loss,
            twin.loss(batch, dead, 3, 0.1),
        ]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for (name, one), other in zip(sae.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
