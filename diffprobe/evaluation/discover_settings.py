"""Settings of `diffprobe discover`."""

from dataclasses import dataclass, field

from diffprobe.analysis.discovery.components import Decomposition
from diffprobe.analysis.discovery.findings import Rules
from diffprobe.analysis.discovery.search import Search
from diffprobe.config.parse import UNRECORDED
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DiscoverConfig:
    """Keys of `diffprobe discover`; thresholds are those of `analysis/discovery/findings.py`."""

    cell: str = ""
    """Cell of the store whose features are decomposed, or a unique prefix: `up_blocks.1@t100:empty`."""
    split: str | None = None
    """Split whose samples are used; None for all splits."""
    subject: str | None = None
    """Attribute that names the subject of a sample, or "label"; None for the prompt, or for the label of images."""
    images: str | None = field(default=None, metadata=UNRECORDED)
    """Folder or name of the shards that a store of images was extracted from, for examples; its digest is recorded. A
    store of prompts has images of its own where it was extracted with features.keep=[images]."""
    reader: str | None = None
    """Attribute reader of `scenes` ("scenes-reader", or a folder): names the factor that each component is most like,
    afterwards, as a check. The discovery does not use it."""
    max_components: int = 32
    """Largest number of components."""
    explained: float = 0.99
    """Share of the variance that is decomposed, unless it needs more components."""
    least_stability: float = 0.8
    """Least correlation of a component with the nearest one of either half of the data."""
    least_separation: float = 2.0
    """Least distance of two groups: Ashman's D."""
    identity_share: float = 0.5
    """Share of variance between subjects from which a component is an identity."""
    least_share: float = 0.02
    """Share of variance between subjects beyond chance, from which a component is an association."""
    least_effect: float = 0.5
    """Effect of a phrase, in standard deviations, from which it names a component."""
    fdr: float = 0.05
    """False discovery rate over components, and largest adjusted p of subjects and phrases."""
    max_words: int = 2
    """Largest number of words of a phrase."""
    min_count: int = 10
    """Least number of samples with a phrase, and without it."""
    n_examples: int = 8
    """Images per end of a component."""
    n_permutations: int = 1999
    """Permutations of subjects, and of captions."""
    n_resamples: int = 1000
    """Resamples of seeds, or of samples."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    seed: int = 0
    """Seed of components, permutations and resamples."""

    def __post_init__(self) -> None:
        if not self.cell:
            raise ConfigError(
                "cell is not set: a discovery decomposes the features of one cell, chosen beforehand.",
                fix="cell=NAME; diffprobe store show FOLDER lists the cells",
            )
        at_least(1, n_examples=self.n_examples)
        at_least(0, seed=self.seed)
        _ = self.search  # validates the rest

    @property
    def search(self) -> Search:
        """The settings of the analysis. Raises: ConfigError for values out of range."""
        return Search(
            decomposition=Decomposition(
                max_components=self.max_components, explained=self.explained, seed=self.seed
            ),
            rules=Rules(
                least_stability=self.least_stability, least_separation=self.least_separation,
                identity_share=self.identity_share, least_share=self.least_share, least_effect=self.least_effect,
                fdr=self.fdr,
            ),
            max_words=self.max_words, min_count=self.min_count, n_permutations=self.n_permutations,
            n_resamples=self.n_resamples, level=self.level, seed=self.seed,
        )  # fmt: skip
