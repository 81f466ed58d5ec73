"""The configuration of `diffprobe audit`: experiment files of kind `audit`."""

from dataclasses import dataclass, field

from diffprobe.analysis.audit.association import Sampling
from diffprobe.analysis.audit.rates import How
from diffprobe.analysis.audit.spec import AuditSpec
from diffprobe.config.parse import UNRECORDED
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.audit_steering_settings import AuditSteering

UNIFORM = "uniform"
"""The reference that has the rate 0.5 for every subject."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Rates that the rates of the model are compared with: what they are is part of every statement about them."""

    name: str = UNIFORM
    """What the reference is: "uniform" (0.5 for every subject), or the name of the table, such as "training data" or
    the title of a statistic."""
    table: str | None = None
    """CSV file with the columns `subject` and `rate`; None for "uniform"."""

    def __post_init__(self) -> None:
        if (self.name == UNIFORM) != (self.table is None) or not self.name.strip():
            raise ConfigError(
                f"reference: name={self.name} with table={self.table}.",
                f"allowed: name={UNIFORM} without a table, or another name, which states what the table is, with one",
            )


@dataclass(frozen=True, kw_only=True)
class Audit(AuditSpec):
    """Settings of `diffprobe audit` (experiment files of kind `audit`)."""

    experiment: str
    """Name of the experiment."""
    store: str | None = field(default=None, metadata=UNRECORDED)
    """Folder of the prompt latents. Their digests are recorded."""
    cells: tuple[str, ...]
    """Cells of the latents. All numbers are of the first one, which has to be chosen beforehand; the others are
    compared with it."""
    whiten: bool = False
    """Whether latents are multiplied by the inverse square root of their covariance within prompts with an attribute.
    Then a direction is that of a linear discriminant analysis, and prompts are on the right side more often; without,
    it is the mean difference."""
    words_only: str | None = field(default=None, metadata=UNRECORDED)
    """Folder of latents of the same prompts by the text encoder alone (one seed): the control."""
    words_cell: str | None = None
    """Cell of `words_only`; None for its only name, "text"."""
    rates_axis: str | None = None
    """Axis of the rates below, of the amplification and of the audit file; None for the first axis."""
    rates: str | None = None
    """Rates of generated images per subject: a CSV file, an audit file, or a result of `diffprobe eval rates`. None:
    the rates from prompt latents are compared with the reference."""
    reader: str | None = None
    """What read `rates` from the images, by name: a classifier, or people."""
    reference: Reference = field(default_factory=Reference)
    """What rates are compared with."""
    rates_by: How = "share"
    """How rates follow from prompt latents: the share of prompts on the positive side of the subject's own variants;
    that share, corrected by how often prompts with an attribute are on their own side; or the mean position between the
    variants. The last two are right only if the model draws what prompts with an attribute name."""
    least_separability: float = 0.75
    """Least balanced accuracy of prompts with an attribute; below it, rates from prompt latents are marked as not
    valid."""
    steering: AuditSteering | None = None
    """Images with the directions added, and what a reader perceives in them; None: the causal link is not measured."""
    extraction: str | None = field(default=None, metadata=UNRECORDED)
    """Experiment of kind `extract_prompts` that makes the latents: its cost is shown by `--check`, and its tokenizer
    checks the prompts where its files are there."""
    max_clusters: int = 8
    """Largest number of clusters of subjects that is tried."""
    n_words: int = 5
    """Descriptors that are listed for a subject, and for an end of a direction."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    fdr: float = 0.05
    """False discovery rate at which a subject counts as a discovery."""
    n_resamples: int = 1000
    """Resamples of templates and seeds."""
    n_permutations: int = 9999
    """Sign patterns and permutations of tests."""
    seed: int = 0
    """Seed of resamples, permutations and clusters."""
    output: str = field(default="runs", metadata=UNRECORDED)
    """Folder of runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, n_resamples=self.n_resamples, n_permutations=self.n_permutations, n_words=self.n_words)
        at_least(2, max_clusters=self.max_clusters)
        at_least(0, seed=self.seed)
        for name in ("level", "fdr"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: between 0 and 1.")
        if not 0.5 <= self.least_separability <= 1:
            raise ConfigError(f"least_separability={self.least_separability} is out of range: 0.5 to 1.")
        if not self.cells or len(set(self.cells)) < len(self.cells):
            raise ConfigError(f"cells=[{', '.join(self.cells)}]: at least one, each once.")
        if len(self.subjects) < 2:
            raise ConfigError("subjects: at least 2 are needed; an association is relative to their mean.")
        if self.rates_axis is not None:
            self.axis(self.rates_axis)
        if (self.rates is None) != (self.reader is None):
            raise ConfigError(
                f"rates={self.rates} with reader={self.reader}: rates of images are those of a named reader.",
                "set both, or neither",
            )
        self._check_steering()
        if self.words_only is None and self.words_cell is not None:
            raise ConfigError(f"words_cell={self.words_cell} has no effect without words_only.")
        if not self.compare_variants:
            idle = [name for name, is_set in (
                ("rates_by", self.rates_by != "share"),
                ("reference.table", self.reference.table is not None and self.rates is None),
            ) if is_set]  # fmt: skip
            if idle:
                raise ConfigError(f"{', '.join(idle)} has no effect with compare_variants=false: there are no rates.")

    def _check_steering(self) -> None:
        if self.steering is None:
            return
        for name in self.steering.attributes:
            self.axis(name)
        if self.steering.n_templates > len(self.templates):
            raise ConfigError(
                f"steering.n_templates={self.steering.n_templates}, but there are {len(self.templates)} templates."
            )

    @property
    def main_axis(self) -> str:
        """Name of the axis of rates."""
        return self.rates_axis or self.axes[0].name

    @property
    def sampling(self) -> Sampling:
        """How intervals and tests are drawn."""
        return Sampling(
            level=self.level, n_resamples=self.n_resamples, n_permutations=self.n_permutations, seed=self.seed
        )
