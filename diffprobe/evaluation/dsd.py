"""`diffprobe score method=dsd`: Discffusion (He et al., 2305.10722) on the scorer of `score.py`."""

from typing import TYPE_CHECKING, Any

from diffprobe.config.parse import record_tree
from diffprobe.evaluation.dsd_settings import DSD
from diffprobe.scoring.attention_match import AttentionMatch
from diffprobe.scoring.denoising_error import DenoisingError

if TYPE_CHECKING:
    from diffprobe.evaluation.score_settings import ScoreConfig


def with_method(error: DenoisingError, config: "ScoreConfig") -> DenoisingError:
    """Return the score of a configuration, with the model and the noise of a denoising error.

    Raises: ConfigError for DSD with a model without cross-attention to a text; UnknownTap.
    """
    return AttentionMatch.of(error, config.dsd) if config.method == DSD else error


def method_facts(config: "ScoreConfig") -> dict[str, Any]:
    """Return what fixes the scores besides model, data and noise, as JSON; nothing for Diffusion Classifier."""
    return {DSD: record_tree(config.dsd)} if config.method == DSD else {}
