"""Settings that `diffprobe eval segmentation` and `diffprobe eval depth` share: images, cells, labels, controls."""

from dataclasses import dataclass

from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig, PublishedConfig
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DenseEvaluation:
    """From how many labelled images something is read of each pixel, and in which cells."""

    experiment: str = ""
    """Name of the experiment."""
    backbone: BackboneConfig
    """The frozen model."""
    data: DataConfig
    """The images: readouts are fitted on `train_split`, cells chosen on `val_split` and scored on `test_split`."""
    features: FeaturesConfig
    """The cells, with pool=none."""
    labels: tuple[int, ...] = (4, 16, 64)
    """Numbers of labelled images, ascending; the smaller sets are part of the larger ones."""
    label_draws: int = 3
    """Draws of the labelled images. Scores are means over draws, beside that of each draw."""
    pool: int = 1000
    """Images of train, the first ones, of which the labelled ones are drawn by group."""
    n_val: int = 100
    """Images of val, the first ones."""
    n_test: int = 200
    """Images of test, the first ones."""
    seed: int = 0
    """Seed of the labelled sets, the shuffle, the heads and the bootstrap. The seed of the noise is features.seed."""
    output: str = "runs"
    """Folder of runs."""
    paper: str | None = None
    """Paper that is reproduced."""
    published: PublishedConfig | None = None
    """The published number, which is printed beside the measured one."""

    @property
    def read_beside(self) -> tuple[str, ...]:
        """The controls."""
        raise NotImplementedError

    @property
    def penalties(self) -> tuple[float, ...]:
        """Strengths of the penalty among which val chooses, together with the cell."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        at_least(2, n_val=self.n_val, n_test=self.n_test)
        at_least(1, label_draws=self.label_draws)
        if not self.labels or self.labels[0] < 2 or list(self.labels) != sorted(set(self.labels)):
            raise ConfigError(f"labels={list(self.labels)}: ascending numbers of images, at least 2 each.")
        if self.labels[-1] > self.pool:
            raise ConfigError(f"pool={self.pool} images hold no {self.labels[-1]} labelled ones.", fix="a larger pool")
        if self.label_draws > 1 and self.labels[0] == self.pool:
            raise ConfigError(
                f"label_draws={self.label_draws}: all draws of {self.pool} images out of {self.pool} are the same.",
                fix="label_draws=1, or a larger pool",
            )
        if self.features.pool != "none":
            raise ConfigError(
                f"features.pool={self.features.pool}: a readout needs the whole map.", fix="features.pool=none"
            )
        if self.features.keep_draws:
            raise ConfigError("features.keep_draws: the draws are averaged before reading.", fix="leave it unset")
        if self.features.views.active:
            raise ConfigError("features.views: an evaluation reads the images themselves.", fix="remove the views")
        if self.data.limit is not None:
            raise ConfigError("data.limit has no effect.", fix="labels, n_val and n_test")
        if len(set(self.read_beside)) != len(self.read_beside):
            raise ConfigError(f"controls={list(self.read_beside)}: each once.")
        if not self.penalties or list(self.penalties) != sorted(set(self.penalties)) or not self.penalties[0] > 0:
            raise ConfigError(f"l2={list(self.penalties)}: at least one, ascending, above 0.")

    @property
    def cost_lines(self) -> list[str]:
        """Lines on the denoiser passes and the fits, from the settings alone."""
        features = self.features
        labelled = min(self.labels[-1] * self.label_draws, self.pool)
        images = labelled + self.n_val + self.n_test
        steps = len({*features.timesteps, *features.snr})
        each = steps * features.draws * (2 if features.unconditional else 1)
        most = "at most " if labelled < self.labels[-1] * self.label_draws or self.label_draws > 1 else ""
        lines = [f"denoiser passes of {most}{images:,} images: {each * images:,}"]
        if "random_weights" in self.read_beside:
            lines.append(f"of the random denoiser: {each * images:,} more")
        if "shuffled_truth" in self.read_beside:
            lines.append(f"of the cells again, for shuffled_truth: {each * images:,} more")
        if features.massive.finds:
            lines.append(f"to find massive channels, in each network: {each * features.massive.images:,} more at least")
        fits = len(self.labels) * self.label_draws * len(self.penalties)
        lines.append(f"readouts of each cell: {fits}")
        return lines
