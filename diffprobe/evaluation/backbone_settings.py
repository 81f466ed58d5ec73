"""Settings of `diffprobe eval backbone`: what is scored on which splits, and the gates that it has to pass."""

from dataclasses import dataclass, field

from diffprobe.analysis.caption_regression import RegressionRule
from diffprobe.config.schema import DataConfig
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError, SplitLeak, unknown
from diffprobe.evaluation.captions import CHANCE, REGRESSIONS, choice_metric
from diffprobe.evaluation.gates import Gate
from diffprobe.evaluation.matched_captions import matched_metric


@dataclass(frozen=True, kw_only=True)
class BackboneEvaluation:
    """Settings of `diffprobe eval backbone` (experiment files of kind `evaluate_backbone`)."""

    experiment: str
    """Name of the experiment."""
    model: str = "emoji-sd"
    """Folder of a StableDiffusionPipeline, or the name of a shipped model."""
    data: DataConfig
    """Captioned images."""
    splits: tuple[str, ...] = ()
    """Splits that are scored, none of them the training split; empty: the validation and the test split of `data`."""
    limit: int | None = None
    """Images of each scored split, the first ones in shard order; None for all. `data.limit` limits the training split
    of the regression too."""
    group_attribute: str | None = None
    """A wrong caption is always of another value of this attribute; samples without it form groups of one. None: the
    group that the data set names, if any."""
    family_attribute: str | None = None
    """A coarser grouping; None for `group_attribute`. Intervals resample whole families, and matched captions are of
    the same family."""
    n_candidates: int = 10
    """Captions to choose from; the first one is right."""
    n_choice_timesteps: int = 15
    """Timesteps over which the error of a candidate is averaged."""
    n_screening_timesteps: int = 0
    """Timesteps at which all candidates are scored, before `n_screened` of them are scored at all;
    `n_choice_timesteps` has to be an odd multiple. 0 scores all candidates at all timesteps."""
    n_screened: int = 3
    """Candidates that a screening keeps."""
    matched_attributes: tuple[str, ...] = ()
    """Attributes that captions state by their values. For each, images choose between their own caption and those of
    the same split and family that have another value in its place and are otherwise equal
    (`matched_caption_accuracy_<attribute>`)."""
    matched_phrases: dict[str, str] = field(default_factory=dict)
    """Attribute -> the text by which captions state its value, with `{}` in its place ("{} clothes"). The candidates of
    such an attribute are written: the sample's own caption with each other value of the data in that text, at most
    `n_candidates` in all. For data without the real captions that `matched_attributes` needs."""
    n_matched_timesteps: int = 10
    """Timesteps over which the error of a matched candidate is averaged."""
    by_attributes: tuple[str, ...] = ()
    """Attributes for whose values `caption_of_<n>_accuracy` is recorded too (`detail.by`)."""
    regression: RegressionRule = field(default_factory=RegressionRule)
    """The control of the caption choice: a regression from captions to latents on the training split."""
    gates: dict[str, Gate] | None = None
    """What a metric has to reach, by "<metric>/<split>": `at_least`, a number, and `above`, controls (chance,
    regression_on_words, regression_on_text_encoder) that it exceeds by more than the interval of the paired difference.
    Missed ones are listed and the verb exits with 1. None (`gates=null`): no gates."""
    prompts: tuple[str, ...] = ()
    """Prompts of the sample grid; without prompts no grid is drawn."""
    guidance: float = 4.0
    """Classifier-free guidance of the samples."""
    sampling_steps: int = 50
    """DDIM steps of the samples."""
    seed: int = 0
    """Seed of noise, candidates, shuffles and samples."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        at_least(2, n_candidates=self.n_candidates)
        at_least(1, limit=self.limit)
        at_least(1, n_choice_timesteps=self.n_choice_timesteps, n_matched_timesteps=self.n_matched_timesteps)
        at_least(1, n_screened=self.n_screened, sampling_steps=self.sampling_steps)
        at_least(0, n_screening_timesteps=self.n_screening_timesteps)
        first, every = self.n_screening_timesteps, self.n_choice_timesteps
        if first and (every % first or every // first % 2 == 0):
            raise ConfigError(
                f"n_screening_timesteps={first} are not among n_choice_timesteps={every}.",
                fix="an odd multiple, for example 10 and 50; or n_screening_timesteps=0",
            )
        for key in ("splits", "matched_attributes", "by_attributes"):
            names = getattr(self, key)
            if len(set(names)) < len(names):
                raise ConfigError(f"{key}: a name occurs twice in {', '.join(names)}.")
        for name, phrase in self.matched_phrases.items():
            if phrase.count("{}") != 1 or len(phrase) < 3:
                raise ConfigError(
                    f"matched_phrases.{name}: '{phrase}' is not a text with one {{}} for the value.",
                    fix='for example "{} clothes"',
                )
            if name in self.matched_attributes:
                raise ConfigError(
                    f"'{name}' is in matched_attributes and in matched_phrases.", fix="remove it from one of them"
                )
        if self.data.train_split in self.scored_splits:
            raise SplitLeak(
                f"splits: '{self.data.train_split}' is the training split; the regressions are fitted on it.",
                fix="name held-out splits only",
            )
        for name, gate in (self.gates or {}).items():
            self._check_gate(name, gate)

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """The splits that are scored."""
        return self.splits or (self.data.val_split, self.data.test_split)

    def _check_gate(self, name: str, gate: Gate) -> None:
        """Raises: ConfigError for a gate of a metric, a split or a control that will not be measured."""
        metric, _, split = name.partition("/")
        matched = (*self.matched_attributes, *self.matched_phrases)
        accuracies = (choice_metric(self.n_candidates), *map(matched_metric, matched))
        metrics = ("psnr_db", "tenths_where_text_helps", *accuracies)
        if metric not in metrics:
            raise unknown(f"metric in gates ('{name}'):", metric, metrics, ConfigError)
        if split not in self.scored_splits:
            error = unknown(f"split in gates ('{name}'):", split, self.scored_splits, ConfigError)
            raise ConfigError(error.what, *error.details, "gates=null removes the gates, splits=[NAME] adds a split")
        controls = () if metric not in accuracies else (CHANCE, *(REGRESSIONS if self.regression.images else ()))
        for control in gate.above:
            if control not in controls:
                error = unknown(f"control in gates ('{name}'), above:", control, controls, ConfigError)
                fits = ["it is fitted with regression.images=6000"] if control in REGRESSIONS else []
                raise ConfigError(error.what, *error.details, *(fits if metric in accuracies else []))
