"""Settings of `diffprobe score`: which candidates images choose between, at which timesteps, and which controls run."""

from dataclasses import dataclass, field
from typing import Literal

from diffprobe.analysis.caption_regression import RegressionRule
from diffprobe.config.parse import UNRECORDED
from diffprobe.config.schema import DataConfig
from diffprobe.config.validators import a_device, at_least
from diffprobe.core.errors import ConfigError, SplitLeak
from diffprobe.evaluation.dsd_settings import DsdRule, check_method
from diffprobe.evaluation.overlap_settings import OverlapRule, check_overlap
from diffprobe.probes.score.staged_errors import Stage, check_stages
from diffprobe.scoring.timestep_weights import Loss


@dataclass(frozen=True, kw_only=True)
class ScoredBackbone:
    """The frozen model whose denoising error scores candidates."""

    path: str
    """Folder in diffusers format, hub id, or the name of a shipped model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward pass; errors are computed from its output in float64."""
    device: str = "auto"
    """Torch device; "auto" uses the accelerator if there is one."""
    max_rows_per_pass: int | None = None
    """Largest batch of one denoiser pass; None: limited by memory."""

    def __post_init__(self) -> None:
        at_least(1, max_rows_per_pass=self.max_rows_per_pass)
        a_device(self.device)


@dataclass(frozen=True, kw_only=True)
class CandidateRule:
    """What an image chooses between."""

    kind: Literal["captions", "retrieval", "classes", "matched", "sets"] = "captions"
    """`captions`: its own and n - 1 captions of other groups. `retrieval`: n images of different groups and their n
    captions, each against each, both ways. `classes`: the values of an attribute in a template. `matched`: captions
    that differ from its own in the value of one attribute. `sets`: the images that share a value of `attribute`, and
    their captions, each against each, both ways."""
    n: int = 10
    """Number of captions (for `matched`: the largest number). No effect for classes and sets."""
    attribute: str | None = None
    """Attribute whose values are the classes (`class_name` for those of the data set), or number the sets."""
    template: str | None = None
    """Text of a class, with one `{}`; None gives the values as class numbers to a class-conditional model."""
    phrases: dict[str, str] = field(default_factory=dict)
    """For `matched`: attribute -> text by which captions state its value, with `{}` in its place."""
    pool: tuple[str, ...] = ()
    """For `captions`: splits whose captions are the wrong ones, all of them whatever `limit` is; several may be of one
    group. Empty: those of the scored images."""
    ranks: tuple[int, ...] = ()
    """For `captions`: ranks beside the first at which recall is recorded."""
    most_values: int | None = None
    """For `classes`: only the values with the most groups among the scored images; None for all."""

    def __post_init__(self) -> None:
        at_least(2, **{"candidates.n": self.n})
        if (self.kind in ("classes", "sets")) != (self.attribute is not None):
            raise ConfigError(
                f"candidates: kind={self.kind} with attribute={self.attribute}.",
                fix="kind=classes or kind=sets with an attribute, another kind without one",
            )
        if self.kind in ("classes", "sets") and self.n != type(self).n:
            raise ConfigError(f"candidates: n={self.n} has no effect with kind={self.kind}.", fix="remove it")
        if self.kind != "classes" and self.template is not None:
            raise ConfigError(f"candidates: template has no effect with kind={self.kind}.", fix="remove it")
        if (self.kind == "matched") != bool(self.phrases):
            raise ConfigError(
                f"candidates: kind={self.kind} with {len(self.phrases)} phrases.",
                fix='kind=matched with phrases, for example {texture: "{} clothes"}; another kind without them',
            )
        for name, kind in {"pool": "captions", "ranks": "captions", "most_values": "classes"}.items():
            if self.kind != kind and getattr(self, name) != getattr(type(self), name):
                raise ConfigError(f"candidates: {name} has no effect with kind={self.kind}.", fix="remove it")
        if wrong := [k for k in self.ranks if not 1 < k < self.n]:
            raise ConfigError(f"candidates: rank {wrong[0]} is out of range: above 1, less than n={self.n}.")
        at_least(2, **{"candidates.most_values": self.most_values})
        for name, text in {"template": self.template or "{}", **self.phrases}.items():
            if text.count("{}") != 1:
                raise ConfigError(f"candidates: {name}='{text}' is not a text with one {{}} for the value.")


@dataclass(frozen=True, kw_only=True)
class WeightRule:
    """How timesteps are averaged."""

    kind: Literal["uniform", "exponential", "learned"] = "uniform"
    """Uniform; exp(-7 t) of the error of the clean sample (Clark and Jaini, 2303.15233); or learned on training
    groups."""
    loss: Loss = "native"
    """Error of what the denoiser predicts, of the noise, or of the clean sample."""
    fraction: float = 0.05
    """Share of the training groups on which weights are learned."""
    images: int | None = None
    """Largest number of images of these groups, a seeded choice; None for all."""

    def __post_init__(self) -> None:
        if self.kind == "exponential" and self.loss != "sample":
            raise ConfigError(
                f"weights: kind=exponential with loss={self.loss}.",
                "the published weights are of the clean sample's error",
                fix="weights.loss=sample",
            )  # fmt: skip
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"weights.fraction={self.fraction:g} is out of range: above 0, at most 1.")
        at_least(1, **{"weights.images": self.images})
        for name in ("fraction", "images"):
            if self.kind != "learned" and getattr(self, name) != getattr(type(self), name):
                raise ConfigError(f"weights.{name} has no effect with kind={self.kind}.", fix="weights.kind=learned")


@dataclass(frozen=True, kw_only=True)
class GeneratedRule:
    """The model's own images, generated from the right candidate of each image (Self-Bench)."""

    steps: int = 0
    """Sampling steps (deterministic, evenly spaced); 0 leaves this out."""
    guidance: float = 4.0
    """Scale of classifier-free guidance; 1 is none, and needs half the passes."""

    def __post_init__(self) -> None:
        at_least(0, **{"generated.steps": self.steps})
        if not self.steps and self.guidance != type(self).guidance:
            raise ConfigError("generated.guidance has no effect without steps.", fix="generated.steps=50")
        if self.guidance < 1:
            raise ConfigError(f"generated.guidance={self.guidance:g} is out of range: at least 1.")

    @property
    def passes(self) -> int:
        """Denoiser passes of one generated image."""
        return self.steps * (1 if self.guidance == 1 else 2)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of `diffprobe score` (experiment files of kind `score`)."""

    experiment: str
    """Name of the experiment."""
    backbone: ScoredBackbone
    """The model."""
    data: DataConfig
    """Captioned images."""
    split: str | None = None
    """Split that is scored; None for the test split of `data`. Not the training split."""
    limit: int | None = None
    """Images, the first ones in shard order; None for all."""
    candidates: CandidateRule = field(default_factory=CandidateRule)
    """What images choose between."""
    n_timesteps: int = 30
    """Timesteps, evenly spread, at which a candidate is scored; in an order of which each beginning is spread too."""
    stages: tuple[Stage, ...] = ()
    """Prunings; empty scores all candidates at all timesteps."""
    weights: WeightRule = field(default_factory=WeightRule)
    """Loss and weights of timesteps."""
    noise_sets: int = 2
    """Number of sets of noise, at least 2. Accuracies are means over them, beside their standard deviation."""
    prior_correction: bool = False
    """Subtract from each error the mean error of the same candidate over the other images."""
    group_by: str | None = None
    """A wrong caption is always of another value of this attribute; None: the group that the data set names."""
    family_attribute: str | None = None
    """A coarser grouping, whose units intervals resample; None for `group_by`."""
    random_denoiser: bool = True
    """Whether the same choices are made by the denoiser with random weights: a control, for one set of noise."""
    text_free_model: str | None = None
    """A model that learned nothing about which caption fits (for example one that was trained on captions of other
    images): a control, for one set of noise. Same latents and same kind of condition as the model."""
    generated: GeneratedRule = field(default_factory=GeneratedRule)
    """Self-Bench: the same choices on images that the model generated itself, beside those on real images."""
    regression: RegressionRule = field(default_factory=RegressionRule)
    """The control from captions alone: a regression from captions to latents on the training split."""
    chunk: int = 32
    """Images per stored file of errors; what an interrupted run has stored is not computed again."""
    seed: int = 0
    """Seed of noise, candidates and shuffles."""
    output: str = field(default="runs", metadata=UNRECORDED)
    """Folder of runs."""
    method: Literal["diffusion_classifier", "dsd"] = "diffusion_classifier"
    """Score of a candidate: its denoising error, or that and cross-attention (Discffusion, DSD)."""
    dsd: DsdRule = field(default_factory=DsdRule)
    """For `method=dsd`: weights of attention and error, cross-attentions, heads, training on few images."""
    overlap: OverlapRule = field(default_factory=OverlapRule)
    """For `candidates.kind=classes`: overlap of the reverse kernels of classes, beside a confusion (DiffROP)."""
    paper: str | None = None
    """Paper that is reproduced."""
    table: str | None = None
    """Table of the paper."""
    row: str | None = None
    """Row of the table."""

    def __post_init__(self) -> None:
        check_overlap(self.overlap, self.candidates.kind)
        check_method(self.method, self.dsd, loss=self.weights.loss)
        if self.method == "dsd" and self.text_free_model is not None:
            raise ConfigError(
                f"text_free_model={self.text_free_model}: method=dsd reads cross-attention to a text, which it lacks.",
                fix="method=diffusion_classifier, or no text_free_model",
            )
        if self.dsd.few_shot.images and self.generated.steps:
            raise ConfigError(
                "generated.steps with dsd.few_shot: the images would be those of the model with its LoRA.",
                fix="one of them",
            )
        at_least(1, limit=self.limit, n_timesteps=self.n_timesteps, chunk=self.chunk)
        at_least(2, noise_sets=self.noise_sets)
        check_stages(self.stages, self.n_timesteps)
        if self.scored_split == self.data.train_split:
            raise SplitLeak(
                f"split={self.scored_split} is the training split; weights and regressions are fitted on it.",
                fix="split=test",
            )
        shared = self.candidates.kind in ("retrieval", "classes")
        if self.prior_correction and (self.stages or not shared):
            raise ConfigError(
                f"prior_correction with {len(self.stages)} stages and candidates.kind={self.candidates.kind}: it needs "
                "each candidate's error for all images.",
                fix="stages=[] and candidates.kind=retrieval or classes",
            )
        if self.candidates.ranks and self.stages and self.stages[-1].kept < max(self.candidates.ranks):
            raise ConfigError(
                f"stages keep {self.stages[-1].kept} candidates: candidates.ranks has {max(self.candidates.ranks)}.",
                fix="a last stage that keeps as many, or smaller ranks",
            )
        if self.candidates.kind in ("retrieval", "sets") and self.stages:
            raise ConfigError(
                f"stages with candidates.kind={self.candidates.kind}: both ways need each pair.", fix="stages=[]"
            )

    @property
    def scored_split(self) -> str:
        """The split that is scored."""
        return self.split or self.data.test_split


def passes_per_image(n_candidates: int, n_timesteps: int, stages: tuple[Stage, ...]) -> int:
    """Return the denoiser passes of one image and set of noise, each with one candidate at one timestep, without ties.

    >>> passes_per_image(10, 30, (Stage(n_timesteps=10, kept=2),))
    140
    """
    total, start, alive = 0, 0, n_candidates
    for stage in stages:
        total, start, alive = total + alive * (stage.n_timesteps - start), stage.n_timesteps, min(alive, stage.kept)
    return total + alive * (n_timesteps - start)
