"""What all caption regressors share: their settings, standardising, scores of image and caption, and the artifact."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.config.parse import parse
from diffprobe.core.errors import ConfigError, EmptyClass, SchemaError, WeightsMismatch
from diffprobe.core.foreign import naming
from diffprobe.core.registry import probes
from diffprobe.metrics.moments import Moments
from diffprobe.probes.direction.base import Direction
from diffprobe.probes.serialization import SETTINGS, load_probe, require_sizes, save_probe

KIND, SCHEMA_VERSION = "probe/caption", 1
ESTIMATOR = "caption_regression"
"""Name of the estimator in the directions between two captions."""
CAPTIONS, FEATURES = "captions", "features"
"""What a map reads."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Keys that every caption regressor has, below `probe.params`."""

    text_encoder: str | None = None
    """Name or folder of a pipeline whose CLIP text encoder reads the captions; None for that of the backbone."""
    vocabulary: int = 1000
    """Most frequent words of the training captions that the control `bag_of_words` reads."""
    n_resamples: int = 1000
    """Bootstrap resamples of groups."""
    level: float = 0.95
    """Coverage of the intervals."""

    def __post_init__(self) -> None:
        if self.vocabulary < 1 or self.n_resamples < 1:
            raise ConfigError(
                f"vocabulary={self.vocabulary}, n_resamples={self.n_resamples} are out of range: at least 1."
            )
        if not 0 < self.level < 1:
            raise ConfigError(f"level={self.level} is out of range: between 0 and 1.")


class FoldSums(NamedTuple):
    """Float64 sums over the samples of one fold, with inputs x and outputs y of a map."""

    sums: Moments
    """Of x, and of y in place of 0/1 labels, with the sum of x x^T."""
    squares: Float[Tensor, " d_out"]
    """Sum of y^2, elementwise."""


class CaptionRegressor(nn.Module):
    """A map between the embeddings of captions and the features of one cell.

    Args:
        name: file in `probes/caption`.
        config: its settings.
        d_features: width of the features.
        d_captions: width of the caption embeddings.
        cell: name of the cell.
        text_encoder, text_digest: pipeline whose text encoder gives the embeddings, and the digest of its files.
        seed: seed of initial weights.
    """

    feature_mean: Tensor
    feature_std: Tensor
    caption_mean: Tensor
    caption_std: Tensor

    def __init__(
        self,
        name: str,
        config: CaptionConfig,
        d_features: int,
        d_captions: int,
        *,
        cell: str = "",
        text_encoder: str = "",
        text_digest: str = "",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.name, self.config, self.cell = name, config, cell
        self.text_encoder, self.text_digest = text_encoder, text_digest
        file = probes("caption").load(name)
        self.reads: str = file.READS
        widths = (d_captions, d_features) if self.reads == CAPTIONS else (d_features, d_captions)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net: nn.Module = file.make(config, *widths, seed=seed)
        for which, width in (("feature", d_features), ("caption", d_captions)):
            self.register_buffer(f"{which}_mean", torch.zeros(width))
            self.register_buffer(f"{which}_std", torch.ones(width))

    @torch.no_grad()
    def standardise(
        self,
        features: tuple[Float[Tensor, " d"], Float[Tensor, " d"]],
        captions: tuple[Float[Tensor, " w"], Float[Tensor, " w"]],
    ) -> None:
        """Set means and variances of the training set. A dimension without variance becomes 0."""
        for (mean, variance), own_mean, own_std in (
            (features, self.feature_mean, self.feature_std), (captions, self.caption_mean, self.caption_std),
        ):  # fmt: skip
            own_mean.copy_(mean)
            own_std.copy_(variance.sqrt())

    def standard_features(self, h: Float[Tensor, "batch d_features"]) -> Float[Tensor, "batch d_features"]:
        """Return features in units of the training set's spread."""
        return _standard(h, self.feature_mean, self.feature_std)

    def standard_captions(self, e: Float[Tensor, "batch d_captions"]) -> Float[Tensor, "batch d_captions"]:
        """Return caption embeddings in units of the training set's spread."""
        return _standard(e, self.caption_mean, self.caption_std)

    def features_of(self, e: Float[Tensor, "batch d_captions"]) -> Float[Tensor, "batch d_features"]:
        """Return the features that captions are expected to have, in their own unit.

        Raises: ConfigError for a map from features.
        """
        if self.reads != CAPTIONS:
            raise ConfigError(
                f"the probe '{self.name}' maps features to captions; features of a caption need the other way.",
                fix="a run with probe=caption_ridge or probe=caption_mlp",
            )
        found: Tensor = self.net(self.standard_captions(e))
        return self.feature_mean + self.feature_std * found

    def scores(self, h: Float[Tensor, "n d_features"], e: Float[Tensor, "m d_captions"]) -> Float[Tensor, "n m"]:
        """Return how well each image fits each caption; larger is better.

        A map from captions gives minus the squared distance of the features from those expected of the caption, both in
        units of the training set's spread; a map from features gives the cosine of the embeddings.
        """
        features, captions = self.standard_features(h), self.standard_captions(e)
        if self.reads == CAPTIONS:
            expected = self.net(captions)
            squares = features.square().sum(1)[:, None] + expected.square().sum(1)
            return 2 * features @ expected.T - squares
        return F.normalize(self.net(features), dim=1) @ F.normalize(captions, dim=1).T

    @torch.no_grad()
    def scores_along(
        self, direction: Float[Tensor, " d_features"], e: Float[Tensor, "m d_captions"]
    ) -> Float[Tensor, " m"]:
        """Return the cosine of each caption with a direction in the features: -1..1.

        A map from captions compares the direction with the expected features, relative to the training mean, in units
        of the training set's spread; a map from features compares what one step along the direction, from half before
        the mean to half behind it, changes in the embedding.
        """
        step = _standard(direction[None].to(self.feature_std), torch.zeros_like(self.feature_std), self.feature_std)
        captions = self.standard_captions(e)
        if self.reads == CAPTIONS:
            return F.normalize(self.net(captions), dim=1) @ F.normalize(step, dim=1)[0]
        step = F.normalize(step, dim=1) / 2
        change = self.net(step) - self.net(-step)
        return F.normalize(captions, dim=1) @ F.normalize(change, dim=1)[0]

    @torch.no_grad()
    def direction(
        self,
        positive: Float[Tensor, "contexts d_captions"],
        negative: Float[Tensor, "contexts d_captions"],
        *,
        target: str = "caption",
        names: tuple[str, str] = ("positive", "negative"),
    ) -> Direction:
        """Return the direction between two captions: the difference of their expected features, averaged over contexts.

        Args:
            positive, negative: embeddings of the captions at both ends, one pair per context.
            target: name of what differs, to record.
            names: names of the positive and of the negative end, to record.

        Raises: ConfigError for a map from features; EmptyClass if both ends have the same expected features.
        """
        above, below = self.features_of(positive).double().mean(0), self.features_of(negative).double().mean(0)
        norm = (above - below).norm()
        if not norm > 1e-6 * self.feature_std.double().norm():
            raise EmptyClass(f"the captions '{names[0]}' and '{names[1]}' have the same expected features.")
        unit = (above - below) / norm
        return Direction(
            vector=unit.float().cpu(), scale=float(norm), midpoint=float((above + below) @ unit) / 2, target=target,
            positive=names[0], negative=names[1], cell=self.cell, estimator=ESTIMATOR,
        )  # fmt: skip

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write the map to a folder (safetensors and JSON)."""
        settings = {
            "name": self.name, "config": asdict(self.config), "cell": self.cell, "d_features": len(self.feature_mean),
            "d_captions": len(self.caption_mean), "text_encoder": self.text_encoder, "text_digest": self.text_digest,
        }  # fmt: skip
        return save_probe(
            folder, kind=KIND, schema_version=SCHEMA_VERSION, settings=settings, tensors=self.state_dict()
        )

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "CaptionRegressor":
        """Read what `save_pretrained` wrote. Raises: WeightsMissing, SchemaError, WeightsMismatch."""
        settings, tensors = load_probe(folder, kind=KIND, schema_version=SCHEMA_VERSION)
        with naming(Path(folder) / SETTINGS, "the settings of a caption regressor", error=SchemaError):
            sizes = {name: settings[name] for name in ("d_features", "d_captions")}
            require_sizes(folder, tensors, **sizes)
            found = cls(
                settings["name"],
                parse(probes("caption").load(settings["name"]).Config, settings["config"], at="config"),
                **sizes,
                **{name: settings[name] for name in ("cell", "text_encoder", "text_digest")},
            )
        own: dict[str, Any] = found.state_dict()
        if {name: part.shape for name, part in own.items()} != {name: part.shape for name, part in tensors.items()}:
            raise WeightsMismatch(f"'{folder}': the tensors do not fit the settings.", fix="train the probe again")
        found.load_state_dict(tensors)
        return found.eval()


def _standard(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (x - mean) * torch.where(std > 0, 1 / std, 0.0)
