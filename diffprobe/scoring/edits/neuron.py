"""Edit raw neurons at a tap: single numbers of a feature, which no dictionary chose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, EmptyClass, unknown
from diffprobe.scoring.edits.base import check_width

NeuronMode = Literal["add", "ablate"]
"""What becomes of a number x at strength s: `add`: x + s times its standard deviation in the data; `ablate`:
x + s (mean - x), so that 1 gives the mean of the data: the 0 of a raw neuron does not stand for absence."""


@dataclass(frozen=True, kw_only=True)
class EditNeurons:
    """Change some numbers of every row, and no other.

    Attributes:
        neurons: positions in a feature: channels; of a grid, channels of one part.
        units: standard deviation of each in the data: strength 1 of `add`.
        means: mean of each in the data: what strength 1 of `ablate` leaves.
        width: numbers of a feature.
        mode: what is done, a `NeuronMode`.

    Raises: ConfigError for a neuron beyond the width, or numbers that are not one per neuron; UnknownName.
    """

    neurons: tuple[int, ...]
    units: tuple[float, ...]
    means: tuple[float, ...]
    width: int
    mode: NeuronMode = "add"

    def __post_init__(self) -> None:
        _check_neurons(self.neurons, self.width)
        if self.mode not in get_args(NeuronMode):
            raise unknown("mode of an edit of neurons", self.mode, get_args(NeuronMode))
        if not len(self.units) == len(self.means) == len(self.neurons):
            raise ConfigError(
                f"{len(self.units)} units and {len(self.means)} means for {len(self.neurons)} neurons; one each."
            )

    @classmethod
    def of(cls, neurons: Sequence[int], rows: Float[Tensor, "rows d_in"], mode: NeuronMode = "add") -> "EditNeurons":
        """Return the edit with units and means of training rows.

        Raises: as the class; EmptyClass for a neuron that does not vary.
        """
        _check_neurons(neurons, rows.shape[1])
        columns = rows[:, list(neurons)].double()
        units = columns.std(0, correction=0).tolist() if len(rows) else [0.0] * len(neurons)
        constant = [neuron for neuron, unit in zip(neurons, units, strict=True) if not unit > 0]
        if constant:
            raise EmptyClass(
                f"neuron {', '.join(map(str, constant))} does not vary over {len(rows)} rows: its strength has no unit."
            )
        return cls(
            neurons=tuple(neurons), units=tuple(units), means=tuple(columns.mean(0).tolist()), width=rows.shape[1],
            mode=mode,
        )  # fmt: skip

    @property
    def d_in(self) -> int:
        """Width of the features."""
        return self.width

    @property
    def identity(self) -> str:
        """Digest of the neurons, their unit and what is done."""
        return digest_json(["neurons", list(self.neurons), list(self.units), list(self.means), self.width, self.mode])

    def __call__(self, features: Float[Tensor, "rows d_in"], strength: float) -> Float[Tensor, "rows d_in"]:
        """Return edited features; see `Edit`."""
        check_width(features, self.width, f"neurons of {self.width}")
        if strength == 0:
            return features
        found, at = features.clone(), list(self.neurons)
        before = features[:, at].double()
        if self.mode == "add":
            after = before + strength * before.new_tensor(self.units)
        else:
            after = before + strength * (before.new_tensor(self.means) - before)
        found[:, at] = after.float()
        return found


def _check_neurons(neurons: Sequence[int], width: int) -> None:
    bad = [neuron for neuron in neurons if not 0 <= neuron < width]
    if bad:
        raise ConfigError(
            f"neuron {', '.join(map(str, bad))} is out of range: 0 to {width - 1}, as a feature has {width} numbers."
        )
    if not neurons or len(set(neurons)) < len(neurons):
        raise ConfigError(f"neurons {list(neurons)}: at least one, each once.")
