"""A world of two Gaussian classes of which one is rare, and its optimal denoiser with one learnt mean per class.

Images are 2 numbers: the first has another mean per class, the second is a nuisance with mean 0 in both.
"""

import torch

from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.regularizers.base import ClassBatch, Regularizer, TrainingClasses

T = 50
SPREAD = 0.3
TRUE = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
CLASSES = TrainingClasses(attribute="role", names=("head", "tail"), counts=(297, 3))


def process() -> ForwardProcess:
    return ForwardProcess(torch.linspace(0.98, 0.02, T))


class Denoiser(torch.nn.Module):
    """The posterior mean of a Gaussian class, as a noise prediction: wrong only as far as the learnt means are."""

    def __init__(self, forward: ForwardProcess) -> None:
        super().__init__()
        self.means, self.forward_process = torch.nn.Parameter(0.01 * TRUE), forward

    def forward(self, noised, timesteps, classes):
        signal, sigma = (
            values[timesteps, None, None, None] for values in (self.forward_process.signal, self.forward_process.sigma)
        )
        shift = noised - signal * self.means[classes][:, :, None, None]
        return sigma * shift / (signal.square() * SPREAD**2 + sigma.square())


def train(regularizer: Regularizer, *, images: torch.Tensor, labels: torch.Tensor, decay: float, steps: int = 400):
    """Return the learnt means; `decay` pulls the means of the classes to each other, as shared weights do."""
    forward = process()
    network = Denoiser(forward)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,), generator=generator)
        clean, classes = images[rows], labels[rows]
        timesteps = torch.randint(T, (128,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        noised = forward.add_noise(clean, noise, timesteps)
        _, target = regularizer.retarget(clean, noise, timesteps, classes, generator)
        prediction = network(noised, timesteps, classes)
        loss = (prediction - target).square().mean()
        loss = loss + regularizer.term(ClassBatch(noised, timesteps, classes, prediction), network, generator)
        loss = loss + decay * (network.means - network.means.mean(0)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.means.detach()


def draw(tail_nuisance: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 297 head images and 3 tail images; the nuisance of the tail images is off by `tail_nuisance`."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0] * 297 + [1] * 3)
    images = TRUE[labels] + SPREAD * torch.randn(300, 2, generator=generator)
    images[297:] = TRUE[1] + torch.tensor([0.0, tail_nuisance])
    return images[:, :, None, None], labels
