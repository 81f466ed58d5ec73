"""kNN: a weighted vote of the nearest training samples on standardised features. It learns no weights.

The defaults are the protocol of DINO (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers",
section 4.1 and `eval_knn.py`, after Wu et al. 2018): cosine similarity s, k = 20, weights exp(s / 0.07). Features are
standardised before, and votes divided by the size of their class unless `class_weight=none`; both are not in DINO.
`training/knn.py` reads the training set.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier.bank import Bank
from diffprobe.probes.classifier.base import ClassifierConfig, ClassifierProbe, MemoryHead
from diffprobe.probes.neighbours import Distance, Neighbours, nearest, require_enough

TEMPERATURE = 0.07
_LEAST_LOGIT = -30.0
"""Logit of a class without a vote: a share below 1e-13."""


@dataclass(frozen=True, kw_only=True)
class Config(ClassifierConfig):
    """Keys of `probe=knn`, below `probe.params`."""

    k: int = 20
    """Nearest training samples that vote; of equal distances the sample that is first by key."""
    metric: Distance = "cosine"
    """Distance of standardised features: cosine, or euclidean."""
    weights: Literal["exponential", "uniform"] = "exponential"
    """exponential: exp(similarity / temperature), or exp(-distance^2 / d_in / (2 temperature)); uniform: all 1."""
    temperature: float = TEMPERATURE
    """Of exponential weights: smaller values trust the nearest more."""
    class_weight: Literal["balanced", "none"] = "balanced"
    """balanced: votes for a class are divided by its number of training samples; none: they are not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ConfigError(f"k={self.k} is out of range: at least 1.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"temperature={self.temperature} is out of range: above 0.")
        if self.weights == "uniform" and self.temperature != TEMPERATURE:
            raise ConfigError(
                f"temperature={self.temperature}: weights=uniform does not use it.", fix="leave temperature unset"
            )


def make(config: Config, d_in: int, n_classes: int, *, seed: int) -> "KNNHead":
    """Return the head before it has a training set."""
    return KNNHead(config, d_in, n_classes)


def make_bank(config: Config, d_in: int, n_classes: Sequence[int], seeds: Sequence[int] = ()) -> "KNNBank":
    """Return the bank before it has a training set."""
    return KNNBank(config, d_in, n_classes)


def vote(
    found: Neighbours, label: Int[Tensor, " samples"], n_by_class: Int[Tensor, " n_classes"], config: Config
) -> Float[Tensor, "queries n_classes"]:
    """Return the logarithm of each class's share of the votes, float32; -30 for a class without votes.

    Equal shares are equal numbers, so that `argmax` answers with the first of these classes, as scikit-learn does.

    Args:
        found: the neighbours, the nearest first.
        label: class of each training sample; only those of neighbours are read.
        n_by_class: number of training samples of each class.
        config: how votes are weighted.
    """
    weight = torch.ones_like(found.distance)
    if config.weights == "exponential":
        scale = config.temperature if config.metric == "cosine" else 2 * config.temperature
        weight = ((found.distance[:, :1] - found.distance) / scale).exp()  # a common factor cancels in the shares
    classes = label[found.row]
    votes = weight.new_zeros(len(weight), len(n_by_class))
    for i in range(weight.shape[1]):  # one neighbour after the other: the order of the sums is fixed on GPUs too
        votes.scatter_add_(1, classes[:, i : i + 1], weight[:, i : i + 1])
    if config.class_weight == "balanced":
        votes = votes / n_by_class.clamp(min=1)
    return (votes / votes.sum(1, keepdim=True)).log().clamp(min=_LEAST_LOGIT).float()


class KNNHead(MemoryHead):
    """The training samples of one target, and the vote of the nearest.

    Args:
        config: its settings.
        d_in: width of the features.
        n_classes: number of classes.
    """

    features: Tensor
    labels: Tensor
    n_by_class: Tensor

    def __init__(self, config: Config, d_in: int, n_classes: int) -> None:
        super().__init__()
        self.config, self.d_in, self.n_classes = config, d_in, n_classes
        self.register_buffer("features", torch.zeros(0, d_in))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("n_by_class", torch.zeros(n_classes, dtype=torch.int64))

    def memorise(self, x: Float[Tensor, "samples d_in"], label: Int[Tensor, " samples"]) -> None:
        """Keep the training samples; earlier ones are the nearer of equal distances.

        Args:
            x: standardised features.
            label: class ids in 0..n_classes-1.

        Raises: ConfigError for fewer samples than neighbours.
        """
        require_enough(self.config.k, len(label))
        self.features, self.labels = x.float(), label.to(torch.int64)
        self.n_by_class = self.labels.bincount(minlength=self.n_classes)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_classes"]:
        """Return the logits for standardised features. Raises: ConfigError before `memorise`, NonFinite."""
        if not len(self.labels):
            raise ConfigError("this classifier has no training samples yet.", fix="probe.fit(x, y)")
        (found,) = nearest(x, self.features, k=self.config.k, metric=self.config.metric)
        return vote(found, self.labels, self.n_by_class, self.config)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Take the size of the training set from the file, and report tensors that do not belong together."""
        errors: list[str] = args[-1]
        x, label, counts = (state_dict.get(prefix + name) for name in ("features", "labels", "n_by_class"))
        if x is not None and label is not None and counts is not None:
            if wrong := self._wrong(x, label, counts):
                errors.append(wrong)
                return
            self.features, self.labels = self.features.new_empty(x.shape), self.labels.new_empty(label.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _wrong(self, x: Tensor, label: Tensor, counts: Tensor) -> str | None:
        if x.dtype != torch.float32 or label.dtype != torch.int64 or counts.dtype != torch.int64:
            return (
                f"features, labels, n_by_class are {x.dtype}, {label.dtype}, {counts.dtype}; not float32, int64, int64"
            )
        if x.shape != (len(x), self.d_in) or label.shape != (len(x),) or counts.shape != (self.n_classes,):
            shapes = ", ".join(str(tuple(part.shape)) for part in (x, label, counts))
            sizes = f"{self.d_in} dimensions, {self.n_classes} classes"
            return f"features, labels, n_by_class have shapes {shapes} for {sizes}"
        if len(x) < self.config.k:
            return f"{len(x)} training samples for k={self.config.k}"
        if not torch.isfinite(x).all():
            return "training features with NaN or infinity"
        if int(label.min()) < 0 or int(label.max()) >= self.n_classes:
            return f"labels from {int(label.min())} to {int(label.max())} for {self.n_classes} classes"
        if not label.bincount(minlength=self.n_classes).equal(counts):
            return "n_by_class does not count the labels"
        return None


class KNNBank(Bank):
    """All targets and controls on one feature: the distances are computed once for all of them.

    Args:
        config: settings of all heads.
        d_in, n_classes: see `Bank`.
    """

    features: Tensor
    labels: Tensor

    def __init__(self, config: Config, d_in: int, n_classes: Sequence[int]) -> None:
        super().__init__(d_in, n_classes)
        self.config = config
        self.register_buffer("features", torch.zeros(0, d_in), persistent=False)
        self.register_buffer("labels", torch.zeros(len(self.n_classes), 0, dtype=torch.int64), persistent=False)
        self._counts: list[Tensor] = []
        self._masks: list[Tensor] = []
        self._mask_of: list[int] = []

    @torch.no_grad()
    def memorise(self, x: Float[Tensor, "samples d_in"], labels: Int[Tensor, "heads samples"]) -> None:
        """Keep the training samples, which the bank standardises; earlier ones are the nearer of equal distances.

        Args:
            x: features in their own unit.
            labels: class ids of each head; -1 for samples that do not vote in it.

        Raises: ConfigError for fewer labelled samples than neighbours.
        """
        self.features, self.labels = self.standard(x).float(), labels.to(torch.int64)
        self._counts = [
            row[row >= 0].bincount(minlength=count) for row, count in zip(self.labels, self.n_classes, strict=True)
        ]
        self._masks, self._mask_of = [], []
        for row in self.labels:
            mask = row >= 0
            require_enough(self.config.k, int(mask.sum()))
            same = next((i for i, known in enumerate(self._masks) if known.equal(mask)), len(self._masks))
            if same == len(self._masks):
                self._masks.append(mask)
            self._mask_of.append(same)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> list[Float[Tensor, "batch n_classes"]]:
        """Return the logits of each head for features in their own unit."""
        found = nearest(
            self.standard(x), self.features, k=self.config.k, metric=self.config.metric, allowed=self._masks
        )
        return [
            vote(found[at], label, counts, self.config)
            for at, label, counts in zip(self._mask_of, self.labels, self._counts, strict=True)
        ]

    @torch.no_grad()
    def head(self, index: int) -> ClassifierProbe:
        """Copy one head out as a probe of its own, with the samples that vote in it."""
        probe = ClassifierProbe("knn", self.config, d_in=self.d_in, n_classes=self.n_classes[index])
        probe = probe.to(self.mean.device)
        assert isinstance(probe.head, KNNHead)
        votes = self.labels[index] >= 0
        probe.head.memorise(self.features[votes], self.labels[index][votes])
        self.copy_standardisation(probe)
        return probe.eval()
