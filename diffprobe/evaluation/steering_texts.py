"""The texts of `diffprobe eval steering`: prompts that leave a factor open, and captions that state a value of it."""

from dataclasses import dataclass

from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.certificates.steering import prompts_of_roles
from diffprobe.scoring.edits.text import EditedText
from diffprobe.shards.scenes.captions import write
from diffprobe.shards.scenes.spec import WorldSpec


@dataclass(frozen=True, kw_only=True)
class EditTexts:
    """The prompts of all roles: as they are, and with either value of a factor stated."""

    plain: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    values: tuple[int, int]
    """Codes of the positive and the negative value."""

    @classmethod
    def of(cls, spec: WorldSpec, factor: str, positive: str, negative: str) -> "EditTexts":
        """Return the texts of a factor.

        Raises: UnknownName for a factor or value that the world lacks; ConfigError for a factor that no caption rule
            states by itself.
        """
        values = (spec.code(factor, positive), spec.code(factor, negative))
        chosen = [set(rule.factors) in ({"role"}, {factor}) for rule in spec.rules]
        if factor == "role" or not any(set(rule.factors) == {factor} for rule in spec.rules):
            alone = {next(iter(rule.factors)) for rule in spec.rules if len(set(rule.factors)) == 1} - {"role"}
            raise ConfigError(
                f"no caption states the factor '{factor}' by itself, so no prompt edit changes it alone.",
                f"factors that captions state by themselves: {', '.join(sorted(alone))}",
                fix="leave it out of ends",
            )
        stated = [
            tuple(write(spec, {"role": role.name, factor: value}, chosen) for role in spec.roles)
            for value in (positive, negative)
        ]
        return cls(plain=tuple(prompts_of_roles(spec)), positive=stated[0], negative=stated[1], values=values)

    def edited(self, n: int, strength: float) -> list[EditedText]:
        """Return the text of each of n images, its embedding moved towards the positive value."""
        rows = [row % len(self.plain) for row in range(n)]
        return [
            EditedText(text=self.plain[row], towards=self.positive[row], away=self.negative[row], strength=strength)
            for row in rows
        ]

    def stated(self, n: int) -> tuple[str, dict[float, list[str]]]:
        """Return the prompt edit of n images: its identity, and the texts at strength 1, which state the value."""
        texts = [self.positive[row % len(self.positive)] for row in range(n)]
        return digest_json(texts), {1.0: texts}
