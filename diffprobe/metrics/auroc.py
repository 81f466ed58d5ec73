"""Area under the ROC curve for many columns of scores at once, exact, from mid-ranks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from diffprobe.core.errors import EmptyClass, NonFinite


def auroc(scores: Float[Tensor, "batch n_scores"], positive: Bool[Tensor, " batch"]) -> Float[Tensor, " n_scores"]:
    """Return the probability that a positive sample scores above a negative one, for each column.

    Mann-Whitney's U over n_pos * n_neg, with mid-ranks for ties, in float64.

    Raises: EmptyClass without positive or without negative samples; NonFinite if a score is NaN.

    >>> auroc(torch.tensor([[1.0], [2.0], [2.0]]), torch.tensor([False, False, True]))
    tensor([0.7500], dtype=torch.float64)
    """
    n_positive = int(positive.sum())
    n_negative = positive.numel() - n_positive
    if n_positive == 0 or n_negative == 0:
        raise EmptyClass(
            f"auroc: {n_positive} positive and {n_negative} negative samples; at least 1 of each is needed."
        )
    if scores.isnan().any():
        raise NonFinite(f"auroc: {int(scores.isnan().any(1).sum())} of {len(scores)} samples have a NaN score.")
    columns = scores.detach().double().T.contiguous()
    ordered = columns.sort(dim=1).values
    below = torch.searchsorted(ordered, columns, right=False)
    up_to = torch.searchsorted(ordered, columns, right=True)
    rank = (below + up_to + 1).double() / 2
    u = rank[:, positive].sum(1) - n_positive * (n_positive + 1) / 2
    return u / (n_positive * n_negative)


class Auroc(Metric):
    """`auroc` over batches and processes. Keeps all scores: the area is not a sum over samples.

    Args:
        n_scores: number of columns.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    scores: list[Tensor]
    positive: list[Tensor]

    def __init__(self, n_scores: int = 1) -> None:
        super().__init__()
        self.n_scores = n_scores
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("positive", [], dist_reduce_fx="cat")

    def update(self, scores: Float[Tensor, "batch n_scores"], positive: Bool[Tensor, " batch"]) -> None:
        """Add scores, and whether each sample is of the positive class."""
        self.scores.append(scores.detach().double())
        self.positive.append(positive.to(torch.int64))

    def compute(self) -> Float[Tensor, " n_scores"]:
        """Return one area per column. Raises: EmptyClass, NonFinite as `auroc` does."""
        scores, positive = _joined(self.scores, self.n_scores), _joined(self.positive, None)
        return auroc(scores, positive.bool())

    @property
    def counts(self) -> tuple[int, int]:
        """(positive, negative) samples seen by this process so far."""
        positive = _joined(self.positive, None)
        return int(positive.sum()), int((1 - positive).sum())

    def _sync_dist(self, *args: object, **kwargs: object) -> None:
        # Without a batch the state would be gathered as a float32 vector; dtype and axes must agree over processes.
        if not self.scores:
            self.scores = [torch.zeros(0, self.n_scores, dtype=torch.float64, device=self.device)]
            self.positive = [torch.zeros(0, dtype=torch.int64, device=self.device)]
        super()._sync_dist(*args, **kwargs)  # type: ignore[arg-type]


def _joined(state: list[Tensor] | Tensor, n_columns: int | None) -> Tensor:
    if isinstance(state, Tensor):  # after synchronisation over processes
        return state
    if not state:
        return torch.zeros(0, dtype=torch.int64) if n_columns is None else torch.zeros(0, n_columns).double()
    return torch.cat(state)
