"""Settings of `diffprobe eval correspondence` (experiment files of kind `evaluate_correspondence`)."""

from dataclasses import dataclass
from typing import Literal

from diffprobe.analysis.pck import Variant
from diffprobe.backbones.cell import Cell
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig, PublishedConfig
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError

Control = Literal["pixels", "vae_latents", "random_weights", "single_draw"]
Encoder = Literal["pixels", "vae_latents", "cleandift"]


@dataclass(frozen=True, kw_only=True)
class MixtureTraining:
    """Hyperfeatures: a mixture of all cells that is trained on pairs of the training split."""

    n_pairs: int = 200
    """Training pairs; the maps of all cells of their images are held in memory."""
    steps: int = 400
    """Steps of Adam."""
    batch: int = 4
    """Pairs per step; the paper takes one."""
    learning_rate: float = 1e-3
    """Step size, that of the paper."""
    width: int = 96
    """Channels of the mixture, a multiple of 4; the paper's is 384."""
    groups: int = 8
    """Groups of the normalisation; they divide a quarter of `width`."""
    every: int = 100
    """Steps between the states among which val chooses."""
    seed: int = 0
    """Seed of weights and order."""

    def __post_init__(self) -> None:
        at_least(1, n_pairs=self.n_pairs, steps=self.steps, batch=self.batch, width=self.width, groups=self.groups)
        at_least(1, every=self.every)
        if not self.learning_rate > 0:
            raise ConfigError(f"mixture.learning_rate={self.learning_rate} is out of range: more than 0.")
        if self.width % (4 * self.groups):
            raise ConfigError(f"mixture.groups={self.groups} does not divide a quarter of width={self.width}.")


@dataclass(frozen=True, kw_only=True)
class CorrespondenceEvaluation:
    """Which images are paired, which points are matched, and in which cells."""

    experiment: str = ""
    """Name of the experiment."""
    backbone: BackboneConfig
    """The frozen model."""
    data: DataConfig
    """The images. The cell is chosen on `val_split` and scored on `test_split`."""
    features: FeaturesConfig
    """The cells, with pool=none; `draws` noise draws are averaged before matching (DIFT: 8)."""
    fuse: tuple[str, ...] = ()
    """Cells that are also matched together: unit norm in each, then concatenated; none, or at least two."""
    n_pairs: int = 200
    """Pairs of images of each split. Each image is in one pair at most."""
    pairs_file: str | None = None
    """JSON file with the pairs of a benchmark, {split: [[source key, target key], ...]}; at most `n_pairs` of each."""
    same: tuple[str, ...] = ()
    """Attributes (or label) that both images of a pair share."""
    differ: tuple[str, ...] = ()
    """Attributes (or label) in which the images of a pair differ."""
    points: tuple[str, ...] = ()
    """Names of the points that are matched, where both images have them; none for all."""
    sides: tuple[tuple[str, str], ...] = ()
    """Points that are each other's partner on the other side: [[left_foot, right_foot]]."""
    mirror: bool = False
    """Mirror the target image, whose points change sides with it: a match by place then fails."""
    flip: bool = False
    """Pair each image with its own mirror image: do points with a partner go to their own copy, or to the side of their
    name? Needs `sides`."""
    box_parts: tuple[int, ...] = ()
    """Values of mask.png that are the object, for PCK by its box; none: PCK by the image alone."""
    alphas: tuple[float, ...] = (0.05, 0.1)
    """Shares of the size within which a match is correct."""
    select_alpha: float = 0.1
    """The one of `alphas` by which the cell is chosen; per point, by the box where there is one."""
    controls: tuple[Control, ...] = ("pixels", "vae_latents", "random_weights")
    """What is matched beside the cells: colours of 3 x 3 places, latents of the VAE, a denoiser of random weights, and
    (`single_draw`) the cells with one noise draw in place of `features.draws`."""
    cleandift: str | None = None
    """Folder of a model trained by `train_cleandift`, whose taps are matched too: of the clean image, without noise."""
    cleandift_timestep: int = 0
    """The timestep that it was trained at."""
    fuse_with: tuple[Encoder, ...] = ()
    """Other features that the chosen cell is matched together with, at the weight that is best on val."""
    fuse_weights: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    """Weights of the other features among which val chooses."""
    mixture: MixtureTraining | None = None
    """Hyperfeatures, with their controls: equal weights, the best cell alone, a denoiser of random weights."""
    massive: Literal["keep", "drop", "clip"] = "keep"
    """What is done with massive channels of the cells, which are listed then: kept, set to 0 (drop), or clipped."""
    massive_ratio: float = 20.0
    """A channel is massive if its mean magnitude on the first images of val is this many times the median channel's."""
    seed: int = 0
    """Seed of pairs and bootstrap. The seed of the noise is features.seed."""
    output: str = "runs"
    """Folder of runs."""
    paper: str | None = None
    """Paper that is reproduced."""
    published: PublishedConfig | None = None
    """The published number, of `select_alpha` per point."""

    def __post_init__(self) -> None:
        at_least(2, n_pairs=self.n_pairs)
        if self.pairs_file is not None and (self.same or self.differ or self.flip or self.mixture):
            raise ConfigError("pairs_file: the pairs are given.", fix="no same, differ, flip or mixture")
        if self.features.pool != "none":
            raise ConfigError(
                f"features.pool={self.features.pool}: a match needs the whole map.", fix="features.pool=none"
            )
        if self.features.keep_draws:
            raise ConfigError("features.keep_draws: the draws are averaged before matching.", fix="leave it unset")
        if self.features.views.active:
            raise ConfigError("features.views: an evaluation reads the images themselves.", fix="remove the views")
        if self.features.massive.active:
            raise ConfigError(
                "features.massive: the evaluation has a treatment of its own.",
                fix="massive=drop or clip, beside features",
            )
        both = sorted(set(self.same) & set(self.differ))
        if both:
            raise ConfigError(f"'{both[0]}' is in same and in differ: no pair has it so.")
        if not self.alphas or any(not 0 < alpha <= 1 for alpha in self.alphas):
            raise ConfigError(f"alphas={list(self.alphas)}: at least one, above 0 and at most 1.")
        if self.select_alpha not in self.alphas:
            raise ConfigError(
                f"select_alpha={self.select_alpha:g} is not among alphas.", f"allowed: {list(self.alphas)}"
            )
        if any(not 0 < part < 256 for part in self.box_parts):
            raise ConfigError(f"box_parts={list(self.box_parts)}: from 1 to 255; 0 is the background.")
        names = [name for pair in self.sides for name in pair]
        if len(set(names)) != len(names):
            raise ConfigError(f"sides={[list(pair) for pair in self.sides]}: each point has one partner.")
        for name in ("mirror", "flip"):
            if getattr(self, name) and not self.sides:
                raise ConfigError(
                    f"{name}: which points change sides is not known.", fix="sides=[[left_foot, right_foot]]"
                )
        if self.flip and (self.mirror or self.same or self.differ or self.mixture):
            raise ConfigError(
                "flip: each image is paired with its own mirror image.", fix="no mirror, same, differ or mixture"
            )
        if self.cleandift is None and ("cleandift" in self.fuse_with or self.cleandift_timestep):
            raise ConfigError(
                "fuse_with=cleandift and cleandift_timestep need cleandift, which is not set.",
                fix="cleandift=RUN_FOLDER/weights",
            )
        at_least(0, cleandift_timestep=self.cleandift_timestep)
        if "single_draw" in self.controls and self.features.draws == 1:
            raise ConfigError("controls: features.draws is 1, so single_draw would be the same.", fix="remove it")
        if len(set(self.fuse_with)) != len(self.fuse_with):
            raise ConfigError(f"fuse_with={list(self.fuse_with)}: each once.")
        if self.fuse_with and not all(0 < one < 1 for one in self.fuse_weights or (0,)):
            raise ConfigError(f"fuse_weights={list(self.fuse_weights)}: at least one, above 0 and below 1.")
        if not self.massive_ratio > 1:
            raise ConfigError(f"massive_ratio={self.massive_ratio:g} is out of range: more than 1.")
        if len(self.fuse) == 1 or len(set(self.fuse)) != len(self.fuse):
            raise ConfigError(f"fuse={list(self.fuse)}: at least two cells, each once.")
        for name in self.fuse:
            Cell.parse(name)
        if len(set(self.controls)) != len(self.controls):
            raise ConfigError(f"controls={list(self.controls)}: each once.")

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All variants of PCK that are computed."""
        sizes: tuple[Literal["image", "box"], ...] = ("box", "image") if self.box_parts else ("image",)
        return tuple(
            Variant(alpha=alpha, per=per, size=size)
            for alpha in self.alphas
            for size in sizes
            for per in ("point", "image")
        )  # fmt: skip

    @property
    def cost_lines(self) -> list[str]:
        """Lines on the denoiser passes of the cells, from the settings alone; a match itself needs none."""
        features, images = self.features, 4 * self.n_pairs  # two images of each pair, in two splits
        steps = len({*features.timesteps, *features.snr})
        each = steps * features.draws * (2 if features.unconditional else 1)
        lines = [
            f"denoiser passes per image: {each:,} ({steps} timesteps, {features.draws} draws)",
            f"denoiser passes of {images:,} images: {each * images:,}",
        ]
        if "random_weights" in self.controls:
            lines.append(f"of the random denoiser: {each * images:,} more")
        if self.cleandift is not None:
            lines.append(f"of the CleanDIFT model: {images:,} more, one per image")
        if self.mixture is not None:
            trained = 2 * 2 * self.mixture.n_pairs * each
            lines.append(f"of mixtures: {trained:,} more on training pairs, and {each * images * 4:,} on the others")
        return lines

    @property
    def selecting(self) -> Variant:
        """The variant by which the cell is chosen."""
        return Variant(alpha=self.select_alpha, per="point", size="box" if self.box_parts else "image")
