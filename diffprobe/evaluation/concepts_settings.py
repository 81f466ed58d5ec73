"""Settings of `diffprobe eval concepts` (experiment files of kind `evaluate_concepts`)."""

from dataclasses import dataclass
from typing import Literal

from diffprobe.config.schema import DataConfig
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.score_settings import ScoredBackbone

Control = Literal[
    "raw_attention", "prompt_attention", "random_weights", "shuffled_words", "majority_class", "mean_colours"
]
CONTROLS: tuple[Control, ...] = (
    "raw_attention", "prompt_attention", "random_weights", "shuffled_words", "majority_class", "mean_colours"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ConceptsEvaluation:
    """Which classes of pixels are found by which words, and in which cells."""

    experiment: str = ""
    """Name of the experiment."""
    backbone: ScoredBackbone
    """The frozen text-to-image model."""
    data: DataConfig
    """The images: the cell is chosen on `val_split` and scored on `test_split`; nothing is trained."""
    classes: dict[str, tuple[int, ...]]
    """Class -> the values of mask.png that it has."""
    words: dict[str, tuple[str, ...]]
    """Class -> its texts. The score of a class in a place is the largest of theirs. One class may have none: it gets
    the places where no other class reaches the threshold."""
    timesteps: tuple[int, ...]
    """Positions on the training grid; each attention at each of them is a cell."""
    attentions: tuple[str, ...] = ()
    """Attentions that are read, as module paths; empty for all in which concepts can be followed."""
    space: Literal["output", "attention", "probs"] = "output"
    """`output`: ConceptAttention. `attention`: queries of the image and keys of the words. `probs`: attention of the
    pass to the words of its prompt (DAAM)."""
    prompt: str | None = None
    """Text of the pass; None takes all words, separated by commas."""
    scale: Literal["shares", "min_max"] = "shares"
    """`shares`: maps as they are, shares of the words. `min_max`: the map of each class from 0 to 1 in each image."""
    thresholds: tuple[float, ...] = ()
    """Scores below which a place gets the class without words; val chooses among them together with the cell."""
    n_val: int = 100
    """Images of val, the first ones."""
    n_test: int = 200
    """Images of test, the first ones."""
    controls: tuple[Control, ...] = CONTROLS
    """What is scored beside the cells: the spaces `attention` and `probs` of the same words, a denoiser of random
    weights, the words exchanged between classes, the most frequent class and the nearest mean colour of a class. The
    last two are of the masks of val; all that have cells choose their own on val."""
    n_shown: int = 6
    """Images of test in the picture, the first ones; 0 for no picture."""
    seed: int = 0
    """Seed of the noise, the random denoiser and the bootstrap."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        at_least(2, n_val=self.n_val, n_test=self.n_test)
        at_least(0, n_shown=self.n_shown)
        if self.n_shown > self.n_test:
            raise ConfigError(f"n_shown={self.n_shown} of n_test={self.n_test} images.", fix="a smaller n_shown")
        self._check_words()
        if not self.timesteps or len(set(self.timesteps)) != len(self.timesteps):
            raise ConfigError(f"timesteps={list(self.timesteps)}: at least one, each once.")
        if len(set(self.controls)) != len(self.controls):
            raise ConfigError(f"controls={list(self.controls)}: each once.")
        same = {"attention": "raw_attention", "probs": "prompt_attention"}.get(self.space)
        if same in self.controls:
            raise ConfigError(f"controls: {same} is space={self.space} itself.", fix="remove it")
        if self.data.limit is not None:
            raise ConfigError("data.limit has no effect.", fix="n_val and n_test")

    def _check_words(self) -> None:
        other = [name for name in self.words if name not in self.classes]
        if other:
            raise ConfigError(f"words.{other[0]} is not a class.", f"allowed: {', '.join(self.classes)}")
        silent = [name for name in self.classes if not self.words.get(name)]
        if len(silent) > 1:
            raise ConfigError(
                f"classes without words: {', '.join(silent)}.",
                "one class may have none; it gets the places of no other class",
            )
        if len(self.classes) - len(silent) < 2:
            raise ConfigError("words of one class alone: their scores are compared.", fix="words of two classes")
        if bool(silent) != bool(self.thresholds):
            raise ConfigError(
                f"thresholds={list(self.thresholds)} with {len(silent)} classes without words.",
                fix="thresholds with one class without words, none otherwise",
            )
        if not all(0 < one < 1 for one in self.thresholds) or len(set(self.thresholds)) != len(self.thresholds):
            raise ConfigError(f"thresholds={list(self.thresholds)}: above 0 and below 1, each once.")

    @property
    def texts(self) -> tuple[str, ...]:
        """All words, by class in the order of `classes`."""
        return tuple(text for name in self.classes for text in self.words.get(name, ()))

    @property
    def owners(self) -> tuple[int, ...]:
        """Position of the class of each of `texts`."""
        return tuple(i for i, name in enumerate(self.classes) for _ in self.words.get(name, ()))

    @property
    def rest(self) -> int | None:
        """Position of the class without words; None if there is none."""
        return next((i for i, name in enumerate(self.classes) if not self.words.get(name)), None)

    @property
    def cost_lines(self) -> list[str]:
        """Lines on the denoiser passes, from the settings alone."""
        images, steps = self.n_val + self.n_test, len(self.timesteps)
        spaces = [one for one in ("raw_attention", "prompt_attention", "random_weights") if one in self.controls]
        lines = [f"denoiser passes of {images:,} images at {steps} timesteps: {steps * images:,}"]
        if spaces:
            lines.append(f"of the controls {', '.join(spaces)}: {len(spaces) * steps * images:,} more")
        return lines
