"""The contract of a class-contrast term, the classes it is defined on, and the distance of reverse kernels.

A regularizer changes the training of a class-conditional denoiser in one or both of two ways: it adds a term to the
loss, for which it may run the network again under other classes or read the output of its mid block, and it replaces
the clean image that a noised one is denoised to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.config.parse import parse, to_tree
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.registry import REGULARIZERS
from diffprobe.generative.objectives.base import ForwardProcess

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noised latents, timesteps, class numbers) -> the network's prediction under these classes, with gradient."""

ClassDistribution = Literal["uniform", "sqrt", "frequency"]
"""How a class is drawn: all alike, by the square root of its number of images, or by its number of images."""

NO_CLASS = -1
"""Class number of a sample that is trained without a class (the empty caption)."""


@dataclass(frozen=True, kw_only=True)
class RegularizerConfig:
    """Which class-contrast term a denoiser is trained with (the `regularizer` block of an experiment file)."""

    name: str
    """File of `generative/regularizers/`."""
    params: dict[str, Any] = field(default_factory=dict)
    """Its settings, keys of the `Config` of that file; unset keys have the defaults of the file."""


@dataclass(frozen=True)
class TrainingClasses:
    """The classes of a training split.

    Attributes:
        attribute: what the classes are values of.
        names: name of each class.
        counts: images of each class, at least 2.
    Raises: ConfigError for fewer than two classes; EmptyClass for a class with fewer than two images, by its name.
    """

    attribute: str
    names: tuple[str, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.counts):
            raise ConfigError(f"{len(self.names)} classes have {len(self.counts)} counts.")
        if len(self.names) < 2:
            raise ConfigError(
                f"'{self.attribute}' has {len(self.names)} class in the training split: {', '.join(self.names)}.",
                "a class-contrast term compares at least 2",
                fix="regularizer=null, or another attribute",
            )
        for name, count in zip(self.names, self.counts, strict=True):
            if count < 2:
                raise EmptyClass(
                    f"class '{name}' of '{self.attribute}' has {count} image in the training split; at least 2 are"
                    " needed.",
                    fix="a larger data.limit, or leave the class out",
                )

    def probabilities(self, distribution: ClassDistribution) -> Float[Tensor, " class"]:
        """Return the probability of each class, float64."""
        power = {"uniform": 0.0, "sqrt": 0.5, "frequency": 1.0}[distribution]
        weights = torch.tensor(self.counts, dtype=torch.float64) ** power
        return weights / weights.sum()


@dataclass(frozen=True)
class ClassBatch:
    """A batch as a regularizer sees it.

    Attributes:
        noised: latents x_t.
        timesteps: on the training grid.
        classes: class number of each sample, `NO_CLASS` for a sample that is trained without one.
        prediction: the network's output for the batch, with gradient.
        embedding: output of the regularizer's head at the mid block in the same pass, with gradient; None without one.
    """

    noised: Float[Tensor, "batch c h w"]
    timesteps: Int[Tensor, " batch"]
    classes: Int[Tensor, " batch"]
    prediction: Float[Tensor, "batch c h w"]
    embedding: Float[Tensor, "batch width"] | None = None

    def with_class(self) -> "ClassBatch":
        """Return the samples that have a class."""
        rows = self.classes != NO_CLASS
        embedding = None if self.embedding is None else self.embedding[rows]
        return ClassBatch(self.noised[rows], self.timesteps[rows], self.classes[rows], self.prediction[rows], embedding)

    def __len__(self) -> int:
        return len(self.classes)


class Regularizer:
    """A class-contrast term; a file overrides what it needs.

    Attributes:
        extra_passes: passes of the network, with gradient, per sample and step beyond the one of plain training.
    """

    extra_passes: int = 0

    def make_head(self, channels: int, seed: int) -> nn.Module | None:
        """Return a network from the mid block's output, (batch, channels, h, w), to `ClassBatch.embedding`.

        It is trained with the denoiser and not saved with it. None, the default, reads nothing of the mid block.

        Args:
            channels: of the output of the mid block.
            seed: of the initial weights.
        """
        return None

    def change_network(self, network: nn.Module, seed: int) -> None:
        """Change the layers of the denoiser before training; it keeps its configuration, inputs and outputs.

        What `low_rank_reserve.merged` cannot undo must not be changed: the saved network has the original layers. The
        default changes nothing.

        Args:
            network: the U-Net.
            seed: of new initial weights.
        """

    def retarget(
        self,
        clean: Float[Tensor, "batch c h w"],
        noise: Float[Tensor, "batch c h w"],
        timesteps: Int[Tensor, " batch"],
        classes: Int[Tensor, " batch"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "batch c h w"], Float[Tensor, "batch c h w"]]:
        """Return the clean latents and the noise of the target; both give the noised latents of the arguments."""
        return clean, noise

    def term(self, batch: ClassBatch, predict: Predict, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return what is added to the loss: `contrast` of the samples with a class, 0 for a batch without any.

        Args:
            batch: the samples and the predictions under their own classes.
            predict: runs the network under other classes.
            generator: source of all randomness, on the CPU.
        """
        own = batch.with_class()
        return self.contrast(own, predict, generator) if len(own) else batch.prediction.sum() * 0

    def contrast(self, own: ClassBatch, predict: Predict, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the term of samples that all have a class, its weight included: a mean over them.

        Args:
            own: at least one sample.
            predict, generator: see `term`.
        """
        return own.prediction.sum() * 0


class ReverseKernels(nn.Module):
    """Factors that turn a distance of predictions into one of predicted noises, and into a divergence of kernels.

    A reverse kernel p(x_{t-1} | x_t, c) is Gaussian with the mean of q(x_{t-1} | x_t, x_0) at the predicted x_0 and the
    variance beta_t (Ho et al., 2006.11239, section 3.2). For two classes the Kullback-Leibler divergence is then
    w_t * |eps_i - eps_j|^2 with w_t = beta_t / (2 alpha_t (1 - abar_t)) (DiffROP, 2402.10821; the identity is exact).

    Args:
        process: the forward process; before timestep 0 the image is taken as clean.
        prediction_type: what the network predicts.
    Raises: ConfigError for a kind of prediction without such kernels.
    """

    noise_factor: Tensor
    divergence_factor: Tensor

    def __init__(self, process: ForwardProcess, prediction_type: str) -> None:
        super().__init__()
        signal, sigma = process.signal.double().cpu(), process.sigma.double().cpu()
        before = torch.cat([torch.ones(1, dtype=torch.float64), signal[:-1]])
        sigma_before = torch.cat([torch.zeros(1, dtype=torch.float64), sigma[:-1]])
        beta = sigma.square() - (signal / before).square() * sigma_before.square()
        kinds = {"epsilon": sigma / signal, "v_prediction": sigma, "sample": torch.ones_like(sigma)}
        if prediction_type not in kinds:
            raise ConfigError(
                f"class-contrast terms are not defined for predictions of kind '{prediction_type}'.",
                f"allowed: {', '.join(kinds)}",
                fix="objective=noise_prediction",
            )
        to_clean = kinds[prediction_type]
        divergence = (to_clean * before).square() * beta / (2 * sigma**4)
        self.n_timesteps = len(signal)
        self.register_buffer("noise_factor", (to_clean * signal / sigma).float(), persistent=False)
        self.register_buffer("divergence_factor", divergence.float(), persistent=False)

    def noise_distance(
        self, first: Float[Tensor, "batch c h w"], second: Float[Tensor, "batch c h w"], t: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return the mean squared difference of the predicted noises of each sample, in float32."""
        distance = (first.float() - second.float()).square().flatten(1).mean(1)
        return self.noise_factor.to(t.device)[t].square() * distance

    def divergence(
        self, first: Float[Tensor, "batch c h w"], second: Float[Tensor, "batch c h w"], t: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return the Kullback-Leibler divergence of the two kernels of each sample in nats, in float32."""
        distance = (first.float() - second.float()).square().flatten(1).sum(1)
        return self.divergence_factor.to(t.device)[t] * distance


def draw_classes(
    probabilities: Float[Tensor, " class"], n: int, generator: torch.Generator, *, but: Sequence[int] | None = None
) -> Int[Tensor, " n"]:
    """Draw n classes on the CPU, each different from its entry in `but` where that is given."""
    weights = probabilities.repeat(n, 1)
    if but is not None:
        weights[torch.arange(n), torch.tensor(list(but), dtype=torch.long)] = 0
    if n == 0:
        return torch.zeros(0, dtype=torch.long)
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)


def complete_regularizer(config: RegularizerConfig) -> RegularizerConfig:
    """Validate the settings of a regularizer and fill in its defaults, so that a record names every one of them.

    Raises: UnknownName for a regularizer that does not exist, ConfigError for settings that its file refuses.
    """
    params = parse(REGULARIZERS.load(config.name).Config, config.params, at="regularizer.params")
    tree: Mapping[str, Any] = to_tree(params)
    return replace(config, params=dict(tree))


def make_regularizer(
    config: RegularizerConfig, process: ForwardProcess, prediction_type: str, classes: TrainingClasses
) -> Regularizer:
    """Build the regularizer that a configuration names. Raises: UnknownName, ConfigError."""
    module = REGULARIZERS.load(config.name)
    params = parse(module.Config, config.params, at="regularizer.params")
    regularizer: Regularizer = module.make(params, process, ReverseKernels(process, prediction_type), classes)
    return regularizer


def require_range(name: str, value: float, *, zero: bool) -> None:
    """Check that a setting is above 0, or at least 0 with `zero`. Raises: ConfigError."""
    if not (value > 0 or (zero and value == 0)) or value == float("inf"):
        allowed = "at least 0" if zero else "more than 0"
        raise ConfigError(f"{name}={value} is out of range: {allowed}, finite.")
