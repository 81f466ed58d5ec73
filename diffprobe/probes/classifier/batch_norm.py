"""BatchNorm whose batch is that of all processes together, on CPUs too (torch's SyncBatchNorm needs GPUs).

The batches of a step are the shares of one joint batch, so a run on two processes normalises as a run on one does.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class JointBatchNorm(nn.Module):
    """BatchNorm over all axes but the second (Ioffe and Szegedy 2015); equal to torch's in one process.

    Args:
        channels: length of the second axis.
        affine: learn a scale and an offset per channel.
        eps, momentum: as in torch.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, affine: bool = True, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Float[Tensor, "batch channels ..."]) -> Float[Tensor, "batch channels ..."]:
        """Normalise by the statistics of the joint batch in training, by the running ones in evaluation.

        One value per channel has no variance: it is normalised by the running statistics, which stay as they are.
        """
        joint = self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        count = x.numel() // x.shape[1]
        if joint:
            return self._joint(x)
        use_batch = self.training and count > 1
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, use_batch, self.momentum, self.eps
        )

    def _joint(self, x: Tensor) -> Tensor:
        places = [0, *range(2, x.ndim)]
        wide = x.float()
        n = wide.new_full((1,), wide.numel() // wide.shape[1])
        sums: Tensor = all_reduce(torch.cat([wide.sum(places), n]))
        total = sums[-1]
        mean = sums[:-1] / total
        shape = [1, -1, *[1] * (x.ndim - 2)]
        centred = wide - mean.view(shape)
        variance: Tensor = all_reduce(centred.square().sum(places)) / total
        with torch.no_grad():
            unbiased = variance * total / (total - 1).clamp(min=1)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        found = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None and self.bias is not None:
            found = found * self.weight.view(shape) + self.bias.view(shape)
        return found.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return f"{len(self.running_mean)}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}"
