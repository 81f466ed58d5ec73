"""Settings of `diffprobe score method=dsd` (Discffusion), and what they exclude."""

from dataclasses import dataclass, field

from diffprobe.core.errors import ConfigError
from diffprobe.probes.score.few_shot_match import FewShotRule
from diffprobe.scoring.attention_match import AttentionMatchRule
from diffprobe.scoring.timestep_weights import Loss

DSD = "dsd"
"""The method."""


@dataclass(frozen=True, kw_only=True)
class DsdRule(AttentionMatchRule):
    """Settings below `dsd`."""

    few_shot: FewShotRule = field(default_factory=FewShotRule)
    """Training of a LoRA on few images before anything is scored."""


def check_method(method: str, rule: DsdRule, *, loss: Loss) -> None:
    """Refuse settings of DSD for another method, and a loss that would scale the attention too.

    Raises: ConfigError.
    """
    if method != DSD and rule != DsdRule():
        raise ConfigError(f"settings of dsd have no effect with method={method}.", fix="method=dsd")
    if method == DSD and loss != "native":
        raise ConfigError(
            f"method=dsd with weights.loss={loss}: a loss multiplies errors, and the score has attention in it too.",
            fix="weights.loss=native, or method=diffusion_classifier",
        )
