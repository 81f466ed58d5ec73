"""TopK with its latents shared by processes, for a dictionary that one device does not hold.

Equal to `TopK` but for the order in which float numbers are added. Which process holds what: `latent_shards.py`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae import topk
from diffprobe.probes.sae.base import KIND, SCHEMA_VERSION
from diffprobe.probes.sae.kernels.sparse_step import Top, scan
from diffprobe.probes.sae.latent_shards import LatentShards, merge_top, shared_by_shards, sum_over_shards
from diffprobe.probes.sae.types import Code, Config, Selected
from diffprobe.probes.serialization import save_probe_in_parts

SHARED_BY = ("W_dec", "W_enc", "b_enc")
"""Weights with a row per latent, of which each process has its rows. The others are equal on all processes."""
SENT_BYTES = 64 << 20
"""Rows that are sent at once when the whole autoencoder is saved, in bytes."""


class ShardedTopK(topk.TopK):
    """A range of the latents of a TopK autoencoder. All methods that encode, decode or save are collective.

    All processes get the same samples. Codes name latents of the whole autoencoder and are equal on all processes, as
    reconstruction and loss are; masks of dead latents, weights and their gradients are those of this process's range.
    `preactivations` returns those of the range.

    Args:
        config, d_in, seed: see `KSAE`; the random directions are those of the whole autoencoder.
        shards: the processes.

    Raises: ConfigError for another variant than TopK, and for fewer latents than processes.
    """

    def __init__(self, config: Config, d_in: int, *, seed: int = 0, shards: LatentShards) -> None:
        require_shardable(config)
        rows = shards.span(config.n_latents or config.expansion * d_in)
        super().__init__(config, d_in, seed=seed, rows=rows)
        self.shards = shards
        self._largest = max(len(shards.span(self.n_latents, rank)) for rank in range(shards.size))

    def scan(
        self, centred: Tensor, *, k: int, among: Int[Tensor, " some"] | None = None, k_among: int = 0
    ) -> tuple[Top, Top | None]:
        """Return the k largest latents of each sample over all processes, and the k_among largest of those in `among`.

        Args:
            among: latents of this process, numbered from its first one.
            k_among: the same on all processes.
        """
        n_own = 0 if among is None else min(k_among, len(among))
        own, dead = scan(
            centred, self.W_enc, self.b_enc, k=min(k, len(self.rows)), among=among if n_own else None, k_among=n_own
        )
        top = self._merge(own, k)
        if k_among == 0:
            return top, None
        if dead is None:
            dead = Top(own.values[:, :0], own.indices[:, :0])
        return top, self._merge(dead, k_among)

    def _merge(self, own: Top, k: int) -> Top:
        return merge_top(own, first=self.rows.start, width=min(k, self._largest), k=k, shards=self.shards)

    def _dead(self, dead: Bool[Tensor, " rows"] | None) -> tuple[Int[Tensor, " some"] | None, int]:
        if dead is None or self.config.aux_weight == 0:
            return None, 0
        among = dead.nonzero().squeeze(1)
        return among, min(self.k_aux, int(self.shards.total(dead.sum())))

    def decode_selected(
        self, centred: Float[Tensor, "batch d_in"], chosen: Sequence[tuple[Selected, int]]
    ) -> Float[Tensor, "bags d_in"]:
        """Decode selections of a batch: the sum of what each process decodes of them, differentiably."""
        found = []
        for selected, n_parts in chosen:
            own, indices = self._own(selected.top.indices)
            part = torch.where(own, selected.part, -1)
            found.append((Selected(Top(selected.top.values, indices), part), n_parts))
        centred, b_pre = (shared_by_shards(value, self.shards) for value in (centred, self.b_pre))
        return sum_over_shards(self._decode_by_step(centred, b_pre, self.W_enc, found), self.shards)

    def decode_scaled(self, code: Code) -> Float[Tensor, "batch d_in"]:
        """Return the weighted sum of decoder rows, in scaled units and without the pre-bias."""
        own, indices = self._own(code.indices)
        weights = torch.where(own, code.values, 0).to(self.W_dec.dtype)
        decoded = F.embedding_bag(indices, self.W_dec, per_sample_weights=weights, mode="sum")
        return sum_over_shards(decoded, self.shards)

    def _own(self, latents: Int[Tensor, "batch width"]) -> tuple[Bool[Tensor, "..."], Int[Tensor, "batch width"]]:
        """Return which latents this process has, and their numbers from its first one; 0 for those of others."""
        own = (latents >= self.rows.start) & (latents < self.rows.stop)
        return own, torch.where(own, latents - self.rows.start, 0)

    def own_code(self, code: Code) -> Code:
        """Return the part of a code that is of this process's latents, numbered from its first one; 0 elsewhere."""
        own, indices = self._own(code.indices)
        return Code(torch.where(own, code.values, 0), indices)

    def save_pretrained(self, folder: Path | str, *, cell: str | None = None) -> Path:
        """Save the whole autoencoder as `TopK` does, on the first process, in parts that fit into memory.

        Collective: all processes call it. The weights have to be on the device that the processes exchange tensors on.
        """
        folder = Path(folder)
        layout = {}
        for name, tensor in self.state_dict().items():
            rows = (self.n_latents,) if name in SHARED_BY else tensor.shape[:1]
            layout[name] = (tensor.dtype, (*rows, *tensor.shape[1:]))
        if self.shards.rank == 0:
            settings, kind = self.saved_settings(cell), KIND + self.variant
            save_probe_in_parts(
                folder, kind=kind, schema_version=SCHEMA_VERSION, settings=settings, layout=layout, parts=self._parts
            )
            return folder
        for name in layout:
            for _ in self._parts(name):
                pass
        return folder

    @torch.no_grad()
    def _parts(self, name: str) -> Iterator[Tensor]:
        """Yield a weight of the whole autoencoder in parts, from its first row on; the same on all processes."""
        tensor = self.state_dict()[name]
        if name not in SHARED_BY:
            yield tensor
            return
        step = max(1, SENT_BYTES // max(1, tensor[:1].numel() * tensor.element_size()))
        for source in range(self.shards.size):
            n = len(self.shards.span(self.n_latents, source))
            for start in range(0, n, step):
                stop = min(start + step, n)
                own = tensor[start:stop] if source == self.shards.rank else None
                part = tensor.new_empty(stop - start, *tensor.shape[1:]) if own is None else own
                yield self.shards.broadcast(part, source)


def require_shardable(config: Config) -> None:
    """Refuse a variant whose latents cannot be shared by processes. Raises: ConfigError."""
    if type(config) is not topk.Config:
        name = type(config).__module__.rpartition(".")[2]
        raise ConfigError(
            f"trainer.strategy=latents does not share the latents of probe '{name}' between processes.",
            "its selection or its loss needs the pre-activations of all latents in one place",
            "allowed: probe=topk, probe=revelio",
            fix="probe=topk, or trainer.strategy=ddp, which keeps the whole autoencoder on each device",
        )
