"""The settings of `diffprobe eval steering`."""

from dataclasses import dataclass, replace

from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError, unknown


@dataclass(frozen=True, kw_only=True)
class SteeringEvaluation:
    """Settings of `diffprobe eval steering` (experiment files of kind `evaluate_steering`)."""

    experiment: str
    """Name of the experiment."""
    run: str = ""
    """Folder of a finished run with one sparse autoencoder, trained in one cell: the tap that is edited. Its training
    samples give the edits and their units."""
    more_runs: tuple[str, ...] = ()
    """Folders of further such runs, of other cells of the same model: each method has the cell that is best for it."""
    model: str = "scenes-sd"
    """Text-to-image model of the world whose features the autoencoder is of: a folder, or the name of a shipped one."""
    reader: str = "scenes-reader"
    """Reader of generated images: `scenes-reader`, or the folder of a finished run of kind `train_reader`."""
    spec: str | None = None
    """File of the world; None for the one that ships with diffprobe."""
    ends: dict[str, tuple[str, ...]]
    """Factor -> the value that is wanted, and the one at the other end."""
    factors: tuple[str, ...] = ()
    """Factors of `ends` that are compared in this call; none for all."""
    n_train: int = 2000
    """Training samples that are read, the first ones."""
    n_bank: int = 4000
    """Rows among which detect-and-replace seeks a replacement."""
    n_images: int = 48
    """Images per strength: prompts that state one role each, all roles equally often."""
    n_candidates: int = 4
    """Latents, and neurons, of each cell: the best ones on training samples, among which generated images choose."""
    n_choice_images: int = 24
    """Images per strength on which cells, latents, neurons and directions are chosen."""
    choice_seed: int | None = None
    """Seed of the noise of these images, another one than `seed`; None for `seed` + 1."""
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    """Strengths of a latent, in its own mean activations, and of direction and neuron, in standard deviations."""
    replace_strengths: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Strengths of detect-and-replace: shares of the way to the replacement."""
    text_strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Strengths of the edited text embedding: multiples of the difference of both captions."""
    n_random: int = 3
    """Random latents of equal density; their mean is reported."""
    window: tuple[int, int] | None = None
    """Smallest and largest timestep at which a tap is edited; None for all. Texts are edited at all."""
    collateral: float | None = None
    """Collateral at which methods are compared; None for that of the prompt edit."""
    guidance: float = 0.0
    """Added to the scale of classifier-free guidance: 0 is none. Taps are edited on the pass with the prompt."""
    sampling_steps: int = 10
    """Sampling steps: DDIM, or Euler for a flow model."""
    neighbours: int = 5
    """Nearest training samples whose mean distance is that of an image from them."""
    n_resamples: int = 1000
    """Bootstrap resamples of prompts."""
    level: float = 0.95
    """Coverage of the intervals."""
    seed: int = 0
    """Seed of the noise of the images that are scored, of random latents and of resamples."""
    output: str = "runs"
    """Folder of runs; finished latents are kept below its folder `stores`."""

    def __post_init__(self) -> None:
        if not self.ends:
            raise ConfigError("ends names no factor.", fix="ends.texture=[striped,plain]")
        for factor, values in self.ends.items():
            if len(values) != 2 or values[0] == values[1]:
                raise ConfigError(
                    f"ends.{factor}={list(values)}: needed are the value that is wanted, and a different one.",
                    fix=f"ends.{factor}=[WANTED,OTHER]",
                )
        for factor in self.factors:
            if factor not in self.ends:
                raise unknown("factor of ends", factor, self.ends)
        at_least(24, n_images=self.n_images, n_choice_images=self.n_choice_images)
        at_least(20, n_train=self.n_train, n_bank=self.n_bank)
        at_least(1, n_random=self.n_random, n_candidates=self.n_candidates, sampling_steps=self.sampling_steps,
                 neighbours=self.neighbours, n_resamples=self.n_resamples)  # fmt: skip
        self._check_choice()
        at_least(0, guidance=self.guidance, seed=self.seed)
        for name in ("strengths", "replace_strengths", "text_strengths"):
            values = getattr(self, name)
            if not values or values[0] <= 0 or list(values) != sorted(set(values)):
                raise ConfigError(f"{name}={list(values)}: needed are ascending numbers above 0; 0 is always drawn.")
        if self.replace_strengths[-1] > 1:
            raise ConfigError(
                f"replace_strengths={list(self.replace_strengths)}: at most 1, which puts the replacement in."
            )
        if self.collateral is not None and not 0 < self.collateral <= 1:
            raise ConfigError(f"collateral={self.collateral:g} is out of range: above 0, at most 1.")
        if not 0 < self.level < 1:
            raise ConfigError(f"level={self.level:g} is out of range: between 0 and 1.")
        if self.window is not None and not 0 <= self.window[0] <= self.window[1]:
            raise ConfigError(f"window={list(self.window)}: needed is [smallest,largest], from 0.")

    @property
    def narrowed(self) -> "SteeringEvaluation":
        """These settings with `ends` of the compared factors alone, as an experiment of these factors would have it."""
        if not self.factors:
            return self
        return replace(self, ends={factor: self.ends[factor] for factor in self.factors}, factors=())

    @property
    def chooses(self) -> bool:
        """Whether there is anything to choose on generated images."""
        return self.n_candidates > 1 or bool(self.more_runs)

    @property
    def seed_of_choice(self) -> int:
        """Seed of the noise of the images on which the choice is made."""
        return self.seed + 1 if self.choice_seed is None else self.choice_seed

    def _check_choice(self) -> None:
        if self.choice_seed is None:
            return
        at_least(0, choice_seed=self.choice_seed)
        if self.choice_seed == self.seed:
            raise ConfigError(
                f"choice_seed={self.choice_seed} is the seed of the scored images: the choice would be scored on the "
                "images that it was made on.",
                fix=f"choice_seed={self.seed + 1}",
            )
        if not self.chooses:
            raise ConfigError(
                "choice_seed has no effect: with n_candidates=1 and one run there is one candidate per method.",
                fix="leave it out, or give more_runs or a larger n_candidates",
            )
