"""What all classifiers share: their settings, the making of a head, and the probe: one head with its standardisation.

A probe is fitted in memory by `fit`, or taken out of a bank that a Trainer trained (`bank.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.config.parse import parse, to_tree
from diffprobe.core.errors import ConfigError, EmptyClass, SchemaError, WeightsMismatch
from diffprobe.core.facts_html import facts_html
from diffprobe.core.foreign import naming
from diffprobe.core.registry import probes
from diffprobe.probes.classifier.inputs import VECTOR, Shape, Shapes, by_channel, joined, n_values, reads
from diffprobe.probes.full_batch import Array, as_features, as_labels, fit_full_batch
from diffprobe.probes.serialization import SETTINGS, kind_of, load_probe, require_sizes, save_probe

KIND, SCHEMA_VERSION = "probe/classifier", 2
CONTROLS = ("shuffled_labels",)

Probe = TypeVar("Probe", bound="ClassifierProbe")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Keys that every classifier has, below `probe.params`."""

    controls: tuple[str, ...] = CONTROLS
    """Control heads trained beside the real ones in the same pass; () for none."""

    def __post_init__(self) -> None:
        for name in self.controls:
            if name not in CONTROLS:
                raise ConfigError(
                    f"controls: a classifier cannot train the control '{name}'.", f"allowed: {', '.join(CONTROLS)}"
                )

    @property
    def balances_classes(self) -> bool:
        """Whether all classes have the same weight in the training loss."""
        return False

    @property
    def has_penalty(self) -> bool:
        """Whether the training loss has a penalty beside the cross entropy."""
        return False

    @property
    def default_learning_rate(self) -> float:
        """Step size of AdamW where none is set."""
        return 3e-3

    @property
    def own_learning_rate(self) -> float | None:
        """Step size that these settings give; None for that of the trainer."""
        return None

    @property
    def label_subset(self) -> tuple[float, int]:
        """Fraction of the labels of each class that is learned from, and the seed of their choice."""
        return 1.0, 0

    @property
    def measures_distance(self) -> bool:
        """Whether the gradients over the training set after and before training are compared."""
        return True


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(ClassifierConfig):
    """Keys of every classifier that is trained in steps, below `probe.params`."""

    learning_rate: float | None = None
    """Step size of AdamW; None: trainer.learning_rate, or the default of the classifier."""
    label_fraction: float = 1.0
    """Share of the labelled training samples of each class that is learned from, at least one of each; smaller shares
    are part of larger ones. Features are standardised on all samples."""
    label_seed: int = 0
    """Seed of the choice of these samples; the seed of the run does not change it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ConfigError(f"learning_rate={rate} is out of range: more than 0.")
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(f"label_fraction={self.label_fraction} is out of range: above 0, at most 1.")
        if self.label_seed and self.label_fraction == 1:
            raise ConfigError(
                f"label_seed={self.label_seed} has no effect with label_fraction=1.", fix="leave it unset"
            )

    @property
    def own_learning_rate(self) -> float | None:
        """Step size that these settings give; None for that of the trainer."""
        return self.learning_rate

    @property
    def label_subset(self) -> tuple[float, int]:
        """Fraction of the labels of each class that is learned from, and the seed of their choice."""
        return self.label_fraction, self.label_seed


class MemoryHead(nn.Module):
    """A head that keeps its training samples instead of learning weights."""

    def memorise(self, x: Float[Tensor, "samples d_in"], label: Int[Tensor, " samples"]) -> None:
        """Keep standardised features and their class ids. Raises: ConfigError for samples that it cannot use."""
        raise NotImplementedError


def make_head(
    name: str, config: ClassifierConfig, d_in: int, n_classes: int, *, seed: int, shapes: Shapes | None = None
) -> nn.Module:
    """Make the untrained head of a classifier's file; its initial weights depend on `seed` alone.

    Args:
        shapes: shapes of the maps that it reads, for a head of maps.

    Raises: ConfigError for fewer than 2 classes, for a head without a weight to train, and for a head of maps without
        their shapes.
    """
    if n_classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes, got {n_classes}.")
    if reads(name) != VECTOR and shapes is None:
        raise ConfigError(
            f"classifier '{name}' reads maps; their shapes are not given.",
            fix='shapes={"mid_block@t100:empty:none": (channels, height, width)}',
        )
    source: Any = d_in if shapes is None else shapes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head: nn.Module = probes("classifier").load(name).make(config, source, n_classes, seed=seed)
    if not isinstance(head, MemoryHead) and not any(weight.requires_grad for weight in head.parameters()):
        raise ConfigError(f"the head of classifier '{name}' has no parameter; classifiers are trained by gradient.")
    return head


class Standardised(nn.Module):
    """Mean and inverse standard deviation of the training features: what a head's input is standardised by.

    Args:
        d_in: width of the feature.
        shapes: shapes of the maps that the feature consists of; they are standardised by channel.
    """

    mean: Tensor
    inverse_std: Tensor
    fitted: Tensor

    def __init__(self, d_in: int, shapes: Shapes | None = None) -> None:
        super().__init__()
        self.d_in, self.shapes = d_in, None if shapes is None else dict(shapes)
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("inverse_std", torch.ones(d_in))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def standardise(self, mean: Float[Tensor, " d_in"], variance: Float[Tensor, " d_in"]) -> None:
        """Set the mean and variance of the training set. A dimension without variance becomes 0."""
        if self.shapes is not None:
            mean, variance = by_channel(mean, variance, self.shapes)
        self.mean.copy_(mean)
        self.inverse_std.copy_(torch.where(variance > 0, variance.clamp(min=1e-300).rsqrt(), 0.0))
        self.fitted.fill_(True)

    def standard(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Return features with zero mean and unit variance on the training set."""
        return (x - self.mean) * self.inverse_std


class ClassifierProbe(Standardised):
    """One classifier: a head and the standardisation of its training features.

    Args:
        name: file of the head in `probes/classifier`.
        config: settings of that file; None for its defaults.
        d_in: width of the feature; None until `fit` sees the data.
        n_classes: number of classes; None until `fit` sees the data.
        seed: fixes the initial weights.
        shapes: for a head of maps, cell -> (channels, height, width); then d_in follows from them.

    Raises: UnknownName for a file that does not exist, ConfigError for fewer than 2 classes.
    """

    HEAD: ClassVar[str | None] = None
    """File of the head, where a subclass has one of its own."""
    ALSO_READS: ClassVar[tuple[str, ...]] = ()
    """Other files with the same head, whose probes such a subclass reads too."""

    def __init__(
        self,
        name: str,
        config: ClassifierConfig | None = None,
        *,
        d_in: int | None = None,
        n_classes: int | None = None,
        seed: int = 0,
        shapes: Shapes | None = None,
    ) -> None:
        d_in = d_in if shapes is None else n_values(shapes)
        super().__init__(d_in or 0, shapes)
        self.name, self.seed = name, seed
        self.config: ClassifierConfig = probes("classifier").load(name).Config() if config is None else config
        self.n_classes = n_classes
        self.head: nn.Module | None = None
        if d_in is not None and n_classes is not None:
            self.head = make_head(name, self.config, d_in, n_classes, seed=seed, shapes=shapes)

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        if self.head is None:
            return f"{self.name}, not fitted"
        state = "" if bool(self.fitted) else ", not fitted"
        return f"{self.name}, {self.d_in} features to {self.n_classes} classes{state}"

    def _repr_html_(self) -> str:
        sizes = {} if self.head is None else {"features": self.d_in, "classes": self.n_classes}
        return facts_html(f"classifier, {self.name}", {**sizes, "fitted": bool(self.fitted)})

    def fit(
        self: Probe, x: Array, y: Array, *, n_classes: int | None = None, l2: float | None = None, max_steps: int = 500
    ) -> Probe:
        """Fit to features in memory: standardise, then minimise the mean cross entropy by full-batch L-BFGS in float64.

        A linear probe converges to multinomial logistic regression with C = 1 / (l2 * samples). kNN keeps the samples
        instead, of which the earlier is the nearer of equal distances. Fitting again starts anew from the seed.

        Args:
            x: features (samples, d_in) in any unit; for a head of one map also (samples, channels, height, width).
            y: class ids from 0; samples labelled -1 are left out.
            n_classes: number of classes; None takes that of the constructor, or the largest label plus 1.
            l2: strength of the penalty l2 / 2 * sum(w^2) on the weights; None for 1 / samples.
            max_steps: largest number of L-BFGS iterations.

        Returns: the probe itself.
        Raises: ConfigError for arrays of the wrong shape or type, EmptyClass if fewer than 2 classes have samples,
            NonFinite for features with NaN or infinity.
        """
        from diffprobe.metrics.moments import Moments  # torchmetrics takes seconds to import

        found = as_features(self._flat(x)).detach()
        label = as_labels(y, len(found)).to(device=found.device, dtype=torch.int64)
        found, label = found[label >= 0], label[label >= 0]
        if len(label.unique()) < 2:
            raise EmptyClass(f"a classifier needs samples of at least 2 classes, got {len(label.unique())}.")
        count = n_classes or self.n_classes or int(label.max()) + 1
        if int(label.max()) >= count:
            raise ConfigError(f"label {int(label.max())} is out of range: 0 to {count - 1} (n_classes={count}).")
        self._require_width(found)
        super().__init__(found.shape[1], self.shapes)
        self.n_classes = count
        self.head = make_head(self.name, self.config, self.d_in, count, seed=self.seed, shapes=self.shapes)
        self.to(found.device)
        whole = found.double()
        sums = Moments(len(whole), whole.sum(0), whole.square().sum(0), whole[:0, 0], whole[:0].T, None)
        self.standardise(sums.mean, sums.variance)
        standard = self.standard(found.to(self.mean)).double()
        if isinstance(self.head, MemoryHead):
            if l2 is not None:
                raise ConfigError(f"l2={l2}: classifier '{self.name}' learns no weights.", fix="leave l2 unset")
            self.head.memorise(standard.to(self.mean), label)
            return self.eval()
        if any(isinstance(part, nn.Dropout | nn.Dropout2d) and part.p > 0 for part in self.head.modules()):
            raise ConfigError(
                "dropout needs the steps of a Trainer: a full-batch fit has no random masks.", fix="dropout=0"
            )
        penalty = 1 / len(label) if l2 is None else l2
        fit_full_batch(
            self.head, lambda head: F.cross_entropy(head(standard), label), l2=penalty, max_steps=max_steps
        ).eval()
        return self

    def _flat(self, x: Array) -> Array:
        return x.reshape(len(x), -1) if self.shapes is not None and x.ndim > 2 else x

    def _require_width(self, x: Tensor) -> None:
        if self.shapes is not None and x.shape[-1] != self.d_in:
            raise ConfigError(
                f"features of {x.shape[-1]} values per sample do not fit maps of {self.d_in}: {self.shapes}."
            )

    def vector(self, features: Mapping[str, Tensor]) -> Float[Tensor, "batch d_in"]:
        """Return the features of several cells as the vectors that this probe reads.

        Args:
            features: cell -> maps (batch, channels, height, width).

        Raises: ConfigError for a probe of single vectors.
        """
        if self.shapes is None:
            raise ConfigError(f"classifier '{self.name}' reads the vector of one cell.")
        return joined(features, self.shapes)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch n_classes"]:
        """Return the logits for features in their own unit: vectors, or the maps of one cell.

        Raises: ConfigError before `fit`, and for another width.
        """
        if self.head is None:
            raise ConfigError("this classifier has no weights yet.", fix="probe.fit(x, y)")
        x = x.flatten(1) if self.shapes is not None else x
        if x.shape[-1] != self.d_in:
            raise ConfigError(f"features of width {x.shape[-1]} do not fit a classifier of width {self.d_in}.")
        logits: Tensor = self.head(self.standard(x))
        return logits

    def logits(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch n_classes"]:
        """Return the logits for features in their own unit."""
        return self(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def predict(self, x: Array) -> Int[Tensor, " batch"]:
        """Return the most likely class of each sample. Raises: ConfigError, NonFinite for unusable features."""
        return self.logits(as_features(self._flat(x)).to(self.mean)).argmax(1)

    def score(self, x: Array, y: Array) -> float:
        """Return the accuracy; samples labelled -1 are left out. Raises: EmptyClass if no sample has a label."""
        found = as_features(self._flat(x))
        label = as_labels(y, len(found)).to(self.mean.device)
        known = label >= 0
        if not known.any():
            raise EmptyClass("no sample has a label to score.")
        return float((self.predict(found)[known] == label[known]).double().mean())

    def save_pretrained(
        self, folder: Path | str, *, cell: str | None = None, target: str | None = None, classes: Sequence[str] = ()
    ) -> Path:
        """Write weights, standardisation and settings to a folder (safetensors and JSON)."""
        settings: dict[str, Any] = {"params": to_tree(self.config), "d_in": self.d_in, "n_classes": self.n_classes}
        settings |= {"cell": cell, "target": target, "classes": list(classes)}
        if self.shapes is not None:
            settings["shapes"] = {name: list(shape) for name, shape in self.shapes.items()}
        kind, tensors = f"{KIND}/{self.name}", self.state_dict()
        return save_probe(folder, kind=kind, schema_version=SCHEMA_VERSION, settings=settings, tensors=tensors)

    @classmethod
    def from_pretrained(cls: type[Probe], folder: Path | str) -> Probe:
        """Read a classifier of any head that `save_pretrained` wrote; of a subclass with `HEAD`, of that one only.

        Raises: WeightsMissing, SchemaError, UnknownName for a head that this version does not have, WeightsMismatch.
        """
        name = kind_of(folder).removeprefix(f"{KIND}/")
        if cls.HEAD and name not in cls.ALSO_READS:
            name = cls.HEAD
        settings, tensors = load_probe(folder, kind=f"{KIND}/{name}", schema_version=SCHEMA_VERSION)
        kind = probes("classifier").load(name).Config
        with naming(Path(folder) / SETTINGS, f"the settings of a classifier '{name}'", error=SchemaError):
            config, d_in, n_classes = parse(kind, settings["params"]), settings["d_in"], settings["n_classes"]
            require_sizes(folder, tensors, d_in=d_in, n_classes=n_classes)
            if reads(name) == VECTOR:
                probe = cls._of(name, config, d_in, n_classes)
            else:
                shapes = {str(cell): _shape(shape) for cell, shape in settings["shapes"].items()}
                if n_values(shapes) != d_in:
                    raise WeightsMismatch(f"'{Path(folder) / SETTINGS}': shapes do not have {d_in} values together.")
                probe = cls(name, config, n_classes=n_classes, shapes=shapes)
        try:
            probe.load_state_dict(tensors)
        except RuntimeError as error:
            raise WeightsMismatch(f"the weights in '{folder}' do not fit their settings.", str(error)) from error
        return probe.eval()

    @classmethod
    def _of(cls: type[Probe], name: str, config: ClassifierConfig, d_in: int, n_classes: int) -> Probe:
        return cls(name, config, d_in=d_in, n_classes=n_classes)


def _shape(value: Any) -> Shape:
    """Read the shape of a map. Raises: ValueError for what is not three positive whole numbers."""
    if not isinstance(value, list) or [type(side) for side in value] != [int] * 3 or min(value) < 1:
        raise ValueError(f"{str(value)[:80]} is not the shape of a map")
    channels, height, width = value
    return channels, height, width
