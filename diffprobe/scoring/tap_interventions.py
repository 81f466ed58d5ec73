"""What a tap does for denoising: the error with its map ablated, or patched with that of another sample.

`INTERVENTIONS` lists what replaces the map. Means are of training samples. `analysis/use_records.py` turns the errors
into records.
"""

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.cell import parse_pool
from diffprobe.backbones.intervention import Splice
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.core.groups import Groups
from diffprobe.core.rng import derive_seed
from diffprobe.scoring.intervention_network import Change, HeldOut, InterventionNetwork, Tick, no_tick, put_features

INTERVENTIONS = {
    "mean_ablation": "the pooled feature is replaced by its mean over training samples; the rest of the map stays",
    "whole_map_ablation": "all places are replaced by the mean feature of training samples",
    "zero_ablation": "all places are set to zero",
    "patching": "the map is replaced by that of a sample of another group, at the same timestep, with its own noise",
}
"""What can be done to a tap, by name."""


@dataclass(frozen=True)
class TapIntervention:
    """How the map of a tap is replaced.

    Args:
        tap: module path.
        size: height and width of its map.
        pool: the pooling of the features; `max` has no `mean_ablation`, and its mean is that over all places.
        names: keys of `INTERVENTIONS`.
    Raises: UnknownName; ConfigError for a pooling that cannot be put back.
    """

    tap: str
    size: tuple[int, int]
    pool: str
    names: Sequence[str]

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in INTERVENTIONS:
                raise unknown("intervention", name, INTERVENTIONS)
        if "mean_ablation" in self.names and parse_pool(self.pool)[0] == "max":
            others = [name for name in self.names if name != "mean_ablation"] or list(INTERVENTIONS)[1:]
            raise ConfigError(
                "mean_ablation with pool=max: a maximum cannot be put back into a feature map.",
                fix=f"interventions=[{','.join(others)}]; or features.pool=mean",
            )
        self.splice.check_size(self.tap, self.size)

    @property
    def splice(self) -> Splice:
        """The way from the map to features and back."""
        return Splice("mean" if parse_pool(self.pool)[0] == "max" else self.pool)

    @property
    def needs_mean(self) -> bool:
        """Whether a mean over training samples is needed."""
        return any(name in ("mean_ablation", "whole_map_ablation") for name in self.names)

    def measure(
        self,
        network: InterventionNetwork,
        samples: HeldOut,
        t: int,
        *,
        mean: Float[Tensor, " d_in"] | None,
        donors: Sequence[int],
        tick: Tick = no_tick,
    ) -> dict[str, Float[Tensor, " sample"]]:
        """Return the errors under each intervention at one timestep, float64 [sample], averaged over draws.

        Args:
            mean: the mean feature at this timestep (`InterventionNetwork.means`), where `needs_mean`.
            donors: position of the donor of each sample (`donors_of_other_groups`), for patching.
        Raises: BadTimestep, NonFinite; ConfigError for a tap that cannot be replaced.
        """
        found: dict[str, Tensor] = {}
        for name in self.names:
            if name == "whole_map_ablation" and "mean_ablation" in found and not self.splice.is_pooled:
                found[name] = found["mean_ablation"].clone()  # a feature is a place: it is the same intervention
                tick(len(samples))
            elif name == "patching":
                found[name] = network.patched_errors(samples, donors, t, self.tap, tick)
            else:
                found[name] = network.errors(samples, t, {self.tap: self.change(name, mean)}, tick)
        return found

    def change(self, name: str, mean: Float[Tensor, " d_in"] | None) -> Change:
        """Return what replaces the map under an ablation; `mean` as in `measure`."""
        if name == "zero_ablation":
            return torch.zeros_like
        assert mean is not None, "the mean of training samples is needed"
        if name == "mean_ablation":
            return put_features(self.splice, mean.expand_as)
        return partial(self.splice.fill, mean=mean)


def donors_of_other_groups(groups: Sequence[Hashable], *, seed: int) -> list[int]:
    """Choose a donor for each sample: every sample is one once, and none is of the group of its receiver.

    Samples are put in a random order in which groups stay together, and each takes the sample that is as many places
    further on as the largest group has samples.

    Args:
        groups: the group of each sample.
        seed: seed of the choice.
    Raises: TooFewGroups; ConfigError if one group holds more than half of the samples.

    >>> groups = ["cat", "cat", "dog", "dog", "cow"]
    >>> donors = donors_of_other_groups(groups, seed=0)
    >>> sorted(donors), any(groups[donor] == group for donor, group in zip(donors, groups, strict=True))
    ([0, 1, 2, 3, 4], False)
    """
    members = [rows.tolist() for rows in Groups.of(groups, what="patching").members()]
    n, largest = len(groups), max(map(len, members))
    if 2 * largest > n:
        name = next(groups[rows[0]] for rows in members if len(rows) == largest)
        raise ConfigError(
            f"patching: group '{name}' has {largest} of {n} samples, so not all of them get a donor of another group.",
            fix="more samples (limit), another group_attribute, or interventions without patching",
        )
    rng = random.Random(derive_seed("patching", seed))
    rng.shuffle(members)
    for rows in members:
        rng.shuffle(rows)
    order = [row for rows in members for row in rows]
    donors = [0] * n
    for place, row in enumerate(order):
        donors[row] = order[(place + largest) % n]
    return donors
