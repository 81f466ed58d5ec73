"""A metric computed separately for each group: timestep, cell or class. Batches may hold several groups."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers.abstract import WrapperMetric

from diffprobe.core.errors import ConfigError, EmptyClass, unknown


class Grouped(WrapperMetric):
    """One copy of a metric per group, for example `Grouped(Fvu(d_in), [25, 200, 500])` for one fvu per timestep.

    The groups are fixed at the start, so that processes that see different groups synchronise the same states.

    Args:
        metric: a metric or a collection of metrics, without samples; every group gets a copy.
        groups: names of the groups, each once: timesteps, cells.
    Raises: ConfigError for no group, or for a group named twice.
    """

    def __init__(self, metric: Metric | MetricCollection, groups: Sequence[Hashable]) -> None:
        super().__init__()
        self.groups = tuple(groups)
        if not self.groups or len(set(self.groups)) < len(self.groups):
            raise ConfigError(f"groups must be named once each, at least one; got {list(self.groups)}.")
        self._places = {group: place for place, group in enumerate(self.groups)}
        self.metrics = nn.ModuleList(metric.clone() for _ in self.groups)  # not a ModuleDict: names may contain dots
        self.seen = _Counts(len(self.groups))  # synchronised: whether any process has samples of a group

    def __getitem__(self, group: Hashable) -> Any:
        """Return the metric of one group. Raises: UnknownName."""
        return self.metrics[self._place(group)]

    def update(self, group: Hashable, *rows: Tensor, **named_rows: Tensor) -> None:
        """Add samples that are all of one group.

        Args:
            group: name of the group.
            rows, named_rows: arguments of the metric's `update`, each with the samples on its first axis.
        Raises: UnknownName for another group.
        """
        place = self._place(group)
        self.metrics[place].update(*rows, **named_rows)  # type: ignore[operator]
        self.seen.update(place, len((*rows, *named_rows.values())[0]))

    def update_rows(self, groups: Sequence[Hashable] | Tensor, *rows: Tensor) -> None:
        """Add samples of several groups.

        Args:
            groups: the group of each row: names, or a tensor of integer names.
            rows: arguments of the metric's `update`, each with the samples on its first axis.
        Raises: UnknownName for another group, ConfigError if the lengths differ.
        """
        names = groups.tolist() if isinstance(groups, Tensor) else list(groups)
        lengths = {len(names), *(len(part) for part in rows)}
        if len(lengths) != 1:
            raise ConfigError(f"{len(names)} groups for rows of length {sorted(len(part) for part in rows)}.")
        places = torch.tensor([self._place(name) for name in names], dtype=torch.int64)
        order, counts = places.argsort(stable=True), places.bincount(minlength=len(self.groups)).tolist()
        parts = [part[order.to(part.device)].split(counts) for part in rows]
        for place, n in enumerate(counts):
            if n:
                self.update(self.groups[place], *(part[place] for part in parts))

    def compute(self) -> dict[Any, Any]:
        """Return group -> value, in the order of the groups.

        Raises: EmptyClass, naming the groups without a sample on any process; `present` leaves them out.
        """
        found = self.present()
        empty = [str(group) for group in self.groups if group not in found]
        if empty:
            raise EmptyClass(
                f"{len(empty)} of {len(self.groups)} groups have no sample: {', '.join(empty)}.",
                "`present()` gives the others",
            )
        return found

    def present(self) -> dict[Any, Any]:
        """Return group -> value for the groups that have samples on any process."""
        self.seen.update(0, 0)  # avoids the warning about `compute` before `update` on a process without samples
        counts = self.seen.compute().reshape(-1).tolist()  # torchmetrics turns a vector of one element into a scalar
        return {
            group: metric.compute()  # type: ignore[operator]
            for group, metric, n in zip(self.groups, self.metrics, counts, strict=True)
            if n > 0
        }

    def reset(self) -> None:
        """Discard the samples of all groups."""
        for metric in (*self.metrics, self.seen):
            metric.reset()  # type: ignore[operator]
        super().reset()

    def _place(self, group: Hashable) -> int:
        if group not in self._places:
            raise unknown("group", str(group), map(str, self.groups))
        return self._places[group]


class _Counts(Metric):
    """Rows of each group."""

    full_state_update = False
    n: Tensor

    def __init__(self, n_groups: int) -> None:
        super().__init__()
        self.add_state("n", torch.zeros(n_groups, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, place: int, n: int) -> None:
        self.n[place] += n

    def compute(self) -> Tensor:
        return self.n.clone()
