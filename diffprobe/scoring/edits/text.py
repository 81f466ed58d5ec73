"""Edit the embedding of a text: add the difference of two other texts to what the text encoders return for it.

A baseline for edits inside the denoiser; see "text-embedding steering" (2603.17998, read in its abstract).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diffprobe.backbones.base import Condition, ConditionInput
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EditedText:
    """A text whose embedding is moved by strength times that of `towards` minus that of `away`.

    The difference is taken token position by token position, and of pooled states as well where a backbone has them,
    so that texts in which the words stand at the same positions fit best. Strength 0 is the text itself.
    """

    text: str
    towards: str
    away: str
    strength: float = 1.0


def encode_texts(
    encode: Callable[[Sequence[ConditionInput]], Condition], inputs: "Sequence[ConditionInput | EditedText]"
) -> Condition:
    """Encode inputs, edited texts among them.

    Args:
        encode: `Backbone.encode_conditions`.

    Returns: one row per input. Tensors that are not floating point (masks) are those of the text itself.
    Raises: ConfigError for edited texts of a backbone without an embedding; errors of `encode`.
    """
    condition = encode([one.text if isinstance(one, EditedText) else one for one in inputs])
    edited = [one for one in inputs if isinstance(one, EditedText) and one.strength != 0]
    if not edited:
        return condition
    if not any(values.is_floating_point() for values in condition.values()):
        raise ConfigError("the backbone has no text embedding to edit: its condition is not a text.")
    at = [row for row, one in enumerate(inputs) if isinstance(one, EditedText) and one.strength != 0]
    towards, away = (encode([getattr(one, name) for one in edited]) for name in ("towards", "away"))
    found = dict(condition)
    for name, values in condition.items():
        if values.is_floating_point():
            strengths = torch.tensor([one.strength for one in edited], dtype=torch.float64, device=values.device)
            step = strengths.reshape(-1, *[1] * (values.ndim - 1)) * (towards[name].double() - away[name].double())
            found[name] = values.clone()
            found[name][at] = (values[at].double() + step).to(values.dtype)
    return found
