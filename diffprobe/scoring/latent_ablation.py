"""Denoising error with single latents of a dictionary ablated at a tap: many latents per pass.

What a latent adds to the features is taken out of them, and everything else stays, the error of the reconstruction
included: x' = x - a_i(x) d_i, where d_i is what one unit of latent i adds. A sample on which a latent is not active is
the same with it ablated, so only pairs of a latent and a sample on which it is active are denoised.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.backbones.intervention import Splice
from diffprobe.core.errors import NonFinite, RunFailed
from diffprobe.core.rng import derive_seed
from diffprobe.core.shapes import FeatureMap
from diffprobe.scoring.edits.latent import Dictionary, EditLatents, activations
from diffprobe.scoring.intervention_network import Change, HeldOut, InterventionNetwork, Tick, no_tick, put_features

Control = Literal["random_direction", "random_latent"]
CONTROLS: tuple[Control, ...] = get_args(Control)
"""What is taken out in place of a latent, at the same places and with the same norm: a direction drawn uniformly, or
what another latent of the dictionary adds, with a random sign. Both are drawn anew for each latent, sample and draw."""

_AT_ONCE = 8192
"""Features that are encoded at once."""


@dataclass(frozen=True)
class TapCodes:
    """The activations of a dictionary at a tap on samples, sorted by latent, draw, sample and place; on the CPU.

    Attributes:
        latent, draw, sample, place, value: of each activation; a place is a feature of the sample's map.
        n_places: features per sample.
        untouched: denoising error of each sample and draw.
    """

    latent: Int[Tensor, " activation"]
    draw: Int[Tensor, " activation"]
    sample: Int[Tensor, " activation"]
    place: Int[Tensor, " activation"]
    value: Float[Tensor, " activation"]
    n_places: int
    untouched: Float[Tensor, "sample draw"]

    def of(self, latent: int) -> slice:
        """Return the positions of the activations of a latent."""
        first, last = torch.searchsorted(self.latent, torch.tensor([latent, latent + 1])).tolist()
        return slice(first, last)

    def largest(self, n_latents: int) -> Float[Tensor, "sample latent"]:
        """Return the largest activation of each latent on each sample, over draws and places; 0 where not active."""
        found = torch.zeros(len(self.untouched) * n_latents)
        return found.scatter_reduce_(0, self.sample * n_latents + self.latent, self.value, "amax").view(-1, n_latents)


@dataclass(frozen=True)
class Ablated:
    """How much the denoising error of a sample rises with a latent ablated, for all pairs that are not 0 by definition.

    Attributes:
        latent, sample: of each pair, sorted by latent.
        rise: rise of the error by ablation, then by each control, averaged over draws (a draw in which the latent is
            not active counts as 0), float64.
    """

    latent: Int[Tensor, " pair"]
    sample: Int[Tensor, " pair"]
    rise: Float[Tensor, "measure pair"]


def read_codes(
    network: InterventionNetwork,
    samples: HeldOut,
    t: int,
    tap: str,
    splice: Splice,
    dictionary: Dictionary,
    tick: Tick = no_tick,
) -> TapCodes:
    """Denoise samples with the network untouched, and return the codes of a tap's features.

    Raises: BadTimestep, NonFinite; RunFailed for a tap that runs more than once in a pass; ConfigError for one that
        cannot be replaced.
    """
    untouched = torch.zeros(len(samples), network.plan.draws, dtype=torch.float64)
    parts: list[Tensor] = []
    values: list[Tensor] = []
    n_places = 1
    for chunk in torch.arange(len(samples)).split(network.rows):
        for draw in range(network.plan.draws):
            seen: list[Tensor] = []
            errors = network.errors_of(samples, chunk.tolist(), t, draw, {tap: _reader(splice, seen)})
            if len(seen) != 1:
                raise RunFailed(f"tap '{tap}' ran {len(seen)} times in one pass: its features have no single code.")
            untouched[chunk, draw] = errors
            n_places = len(seen[0]) // len(chunk)
            coded = [dictionary.encode(part.to(dictionary.W_dec.device)) for part in seen[0].split(_AT_ONCE)]
            activation, latent = (join_columns([one[side] for one in coded]) for side in (0, 1))
            if not torch.isfinite(activation).all():
                raise NonFinite(f"the code of tap '{tap}' at t={t} holds NaN or infinity.")
            row, column = (activation > 0).nonzero(as_tuple=True)
            sample = chunk[(row // n_places).cpu()]
            found = latent[row, column].cpu(), torch.full_like(sample, draw), sample, (row % n_places).cpu()
            parts.append(torch.stack(found))
            values.append(activation[row, column].float().cpu())
        tick(len(chunk))
    numbers, value = torch.cat(parts, 1), torch.cat(values)
    order = torch.argsort(
        ((numbers[0] * network.plan.draws + numbers[1]) * len(samples) + numbers[2]) * n_places + numbers[3]
    )
    latents, draws, of_sample, places = numbers[:, order]
    return TapCodes(latents, draws, of_sample, places, value[order], n_places, untouched)


def ablated_errors(
    network: InterventionNetwork,
    samples: HeldOut,
    t: int,
    tap: str,
    splice: Splice,
    dictionary: Dictionary,
    codes: TapCodes,
    latents: Sequence[int],
    *,
    controls: Sequence[Control] = (),
    seed: int = 0,
    tick: Tick = no_tick,
) -> Ablated:
    """Measure the error with each of some latents ablated, and with each control in its place.

    A pass holds as many pairs of latent and sample as the network takes rows, of any latents. Errors depend on which
    pairs share a pass by rounding only.

    Args:
        samples, t, tap, splice, dictionary: as those of `codes`.
        latents: those that are ablated, ascending.
        controls: what is taken out in their place.
        seed: seed of the controls.
        tick: called with the number of passes of a sample.
    Raises: NonFinite; ConfigError for a tap that cannot be replaced.
    """
    measures: list[Control | None] = [None, *controls]
    totals: dict[tuple[int, int], Tensor] = {}
    for draw in range(codes.untouched.shape[1]):
        pairs = [pair for latent in latents for pair in _pairs(codes, latent, draw)]
        for start in range(0, len(pairs), network.rows):
            block = pairs[start : start + network.rows]
            rows = [sample for _, sample, _ in block]
            for number, measure in enumerate(measures):
                directions = torch.stack(
                    [_direction(dictionary, latent, measure, samples.keys[row], draw, seed) for latent, row, _ in block]
                )
                removed = _removed(codes, block, directions)
                errors = network.errors_of(samples, rows, t, draw, {tap: _without(splice, removed)})
                for (latent, sample, _), error in zip(block, errors, strict=True):
                    rises = totals.setdefault((latent, sample), torch.zeros(len(measures), dtype=torch.float64))
                    rises[number] += (error - codes.untouched[sample, draw]) / codes.untouched.shape[1]
                tick(len(block))
    keys = sorted(totals)
    numbers = torch.tensor(keys, dtype=torch.int64).view(-1, 2)
    rise = torch.stack([totals[key] for key in keys], 1) if keys else torch.zeros(len(measures), 0).double()
    return Ablated(numbers[:, 0], numbers[:, 1], rise)


def ablation(splice: Splice, dictionary: Dictionary, latent: int) -> Change:
    """Return a change that takes a latent out of a map, with the activations that it has in this pass."""
    edit = EditLatents(dictionary=dictionary, latents=(latent,), means=(1.0,), mode="ablate")
    return put_features(splice, lambda before: edit(before, 1.0))


def control_ablation(
    splice: Splice, dictionary: Dictionary, latent: int, directions: Float[Tensor, "sample d_in"]
) -> Change:
    """Return a change that takes out other directions in place of a latent, with the latent's activations.

    Args:
        directions: what is taken out per unit of activation, one for each sample of a pass (`control_direction`).
    """

    def change(x: FeatureMap) -> FeatureMap:
        before = splice.read(x)
        activation = activations(dictionary, before, [latent]).to(before.device)
        of_row = directions.to(before.device).repeat_interleave(len(before) // len(x), 0)
        return splice.write(x, before, (before.double() - activation * of_row).float())

    return change


def direction_of(dictionary: Dictionary, latent: int) -> Float[Tensor, " d_in"]:
    """Return what one unit of a latent adds to the features, in their unit, on the CPU."""
    return (dictionary.W_dec[latent].detach() / dictionary.scale).cpu()


def control_direction(
    dictionary: Dictionary, latent: int, control: Control, *, key: str, draw: int, seed: int
) -> Float[Tensor, " d_in"]:
    """Return what a control takes out in place of a latent, with the norm of the latent's direction.

    It is a function of (seed, control, latent, key, draw), so it does not depend on batch or order.
    """
    own = direction_of(dictionary, latent)
    generator = torch.Generator("cpu").manual_seed(derive_seed(control, seed, latent, key, draw))
    if control == "random_direction" or dictionary.n_latents == 1:
        drawn = torch.randn(own.shape, generator=generator)
    else:
        other = int(torch.randint(dictionary.n_latents - 1, (), generator=generator))
        sign = 1 - 2 * int(torch.randint(2, (), generator=generator))
        drawn = sign * direction_of(dictionary, other + (other >= latent))
    return drawn * (own.norm() / drawn.norm().clamp(min=1e-30))


def join_columns(parts: Sequence[Tensor]) -> Tensor:
    """Join the rows of codes whose widths differ, filled with 0 (not active)."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


_Pair = tuple[int, int, slice]
"""Latent, sample, and the positions of the activations of this latent on this sample in one draw."""


def _pairs(codes: TapCodes, latent: int, draw: int) -> Iterator[_Pair]:
    whole = codes.of(latent)
    first, last = torch.searchsorted(codes.draw[whole], torch.tensor([draw, draw + 1])).tolist()
    start = whole.start + first
    sample, counts = torch.unique_consecutive(codes.sample[start : whole.start + last], return_counts=True)
    for one, count in zip(sample.tolist(), counts.tolist(), strict=True):
        yield latent, one, slice(start, start + count)
        start += count


def _direction(
    dictionary: Dictionary, latent: int, measure: Control | None, key: str, draw: int, seed: int
) -> Float[Tensor, " d_in"]:
    if measure is None:
        return direction_of(dictionary, latent)
    return control_direction(dictionary, latent, measure, key=key, draw=draw, seed=seed)


def _removed(
    codes: TapCodes, block: Sequence[_Pair], directions: Float[Tensor, "pair d_in"]
) -> Float[Tensor, "features d_in"]:
    """Return what is taken out of each feature of the samples of a pass: activation times direction."""
    removed = directions.new_zeros(len(block), codes.n_places, directions.shape[1])
    for number, (_, _, active) in enumerate(block):
        removed[number, codes.place[active]] = codes.value[active, None] * directions[number]
    return removed.flatten(0, 1)


def _without(splice: Splice, removed: Float[Tensor, "features d_in"]) -> Change:
    return put_features(splice, lambda before: before - removed.to(before))


def _reader(splice: Splice, seen: list[Tensor]) -> Change:
    def read(x: FeatureMap) -> None:
        seen.append(splice.read(x))

    return read
