"""The rendered data set `scenes`: figures of 24 roles with planted rates, and the truth about each pixel.

A scene is drawn from a seed, an index and the specification of the world (`diffprobe/shards/scenes/world.yaml`).
"""

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.core.progress import Announce, Bar, MakeBar
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.shared_groups import SINGLE_SAMPLES
from diffprobe.shards.writer import write_shards

if TYPE_CHECKING:
    from diffprobe.shards.scenes.factors import Scenes
    from diffprobe.shards.scenes.spec import WorldSpec

HELP = "rendered figures of 24 roles with planted rates, masks, depth, points and captions"
CARD = DatasetCard(
    name="scenes",
    licence="Apache-2.0; drawn by diffprobe",
    n_classes=24,
    disjoint_by={"train": "key", "val": "key", "test": "key", "held_out_values": "object"},
)
_AT_ONCE = 256
"""Scenes that are drawn at once."""
_MOST = 10_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is drawn."""
    parser.add_argument("--n", type=int, default=20_000, help="number of scenes (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--world", metavar="NAME", help="planted, or permuted: the rates permuted among the roles")
    parser.add_argument(
        "--pairs", metavar="FACTOR", help="write counterfactual pairs, which differ in this factor alone"
    )
    parser.add_argument("--resolution", type=int, default=64, help="64 or 32 pixels (default: 64)")
    parser.add_argument("--spec", type=Path, metavar="FILE", help="another world than the shipped one")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="(default: 1000)")


def build(
    out: Path,
    n: int = 20_000,
    seed: int = 0,
    world: str | None = None,
    pairs: str | None = None,
    resolution: int = 64,
    spec: Path | None = None,
    samples_per_shard: int = 1000,
    make_bar: MakeBar | None = None,
    announce: Announce | None = None,
) -> ShardSet:
    """Draw the scenes of the indices from 0 to `n` - 1 and write their shards, the same pixels and texts each time.

    Args:
        out: folder for ``<split>-NNNN.tar`` and ``index.json``, without shards; made if missing.
        n: number of scenes; of pairs, with `pairs`.
        seed: of the random numbers.
        world: a name in the file of the world; the first one if None.
        pairs: a factor. Each scene of train, val and test is followed by the same scene with another value of it; both
            have the attribute `pair`, which groups the set. Scenes that are held out on one side are not paired.
        resolution: 64 or 32.
        spec: file of the world; the shipped one if None.
        samples_per_shard: scenes per shard; of pairs half as many.
        make_bar, announce: for the command line.

    Raises: ConfigError for a number out of range or a wrong file of the world; UnknownName for an unknown world or
        factor; ShardError if `out` has shards already.
    """
    import numpy as np

    from diffprobe.shards.scenes.factors import sample
    from diffprobe.shards.scenes.pairs import pairs_of
    from diffprobe.shards.scenes.spec import RESOLUTIONS
    from diffprobe.shards.scenes.splits import SPLITS, splits_of
    from diffprobe.shards.scenes.world import SHIPPED, load_world

    if not 1 <= n <= _MOST:
        raise ConfigError(f"--n {n} is out of range; allowed: 1 to {_MOST:,}.")
    if samples_per_shard < 2:
        raise ConfigError(f"--samples-per-shard {samples_per_shard} is out of range; allowed: from 2.")
    if resolution not in RESOLUTIONS:
        raise ConfigError(f"--resolution {resolution} is not offered; allowed: {', '.join(map(str, RESOLUTIONS))}.")
    if old := sorted(path.name for path in out.glob("*.tar*")):
        raise ShardError(f"'{out}' has shards already: {', '.join(old[:5])}.", fix="remove them, or use another --out")
    loaded = load_world(SHIPPED if spec is None else spec)
    if pairs is not None:
        loaded.names(pairs)
    scenes = sample(loaded, seed, np.arange(n), world=world)
    assigned = splits_of(loaded, scenes)
    parts = {split: scenes.select(np.flatnonzero(assigned == split)) for split in SPLITS}
    chosen = {split: part for split, part in parts.items() if len(part)}
    paired = {}
    if pairs is not None:
        chosen = {split: part for split, part in chosen.items() if not split.startswith("held_out")}
        paired = {split: pairs_of(loaded, part, pairs) for split, part in chosen.items()}
        chosen = {split: paired[split].base for split in chosen if len(paired[split].base)}
    drawn = sum(map(len, chosen.values()))
    if not drawn:
        raise ConfigError(f"--n {n}: all scenes are held out, so there is no pair.", fix="a larger --n")
    opened: AbstractContextManager[Bar | None] = nullcontext() if make_bar is None else make_bar(drawn)
    with opened as bar:
        for split, part in chosen.items():
            changed = paired[split].changed if split in paired else None
            rows = _samples(loaded, part, changed, factor=pairs, resolution=resolution, bar=bar)
            write_shards(rows, out, split, samples_per_shard=samples_per_shard - samples_per_shard % 2)
    if announce is not None:
        announce(f"world '{loaded.worlds[scenes.world]}', version {loaded.version}, digest {loaded.digest[:12]}")
        if drawn < n:
            announce(f"{n - drawn:,} of {n:,} scenes are held out on one side, and not paired")
    name = "-".join([CARD.name, *([world] if world and scenes.world else []), *(["pairs", pairs] if pairs else [])])
    return build_index(out, name=name, licence=CARD.licence, grouped_by="pair" if pairs else SINGLE_SAMPLES)


def _samples(
    spec: "WorldSpec", scenes: "Scenes", changed: "Scenes | None", *, factor: str | None, resolution: int,
    bar: Bar | None,
) -> Iterator[tuple[str, dict[str, bytes]]]:  # fmt: skip
    """Yield (key, members) of the scenes in order, each followed by its counterpart in `changed`, if given."""
    import numpy as np

    from diffprobe.shards.scenes.members import members_of
    from diffprobe.shards.scenes.render import render

    for start in range(0, len(scenes), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(scenes)))
        batch = scenes.select(rows)
        keys = [f"{spec.worlds[batch.world]}-{batch.seed}-{index:08d}" for index in batch.indices.tolist()]
        if changed is None or factor is None:
            yield from zip(keys, members_of(spec, render(spec, batch, resolution=resolution)), strict=True)
        else:
            other = changed.select(rows)
            base, counterpart = (
                members_of(
                    spec,
                    render(spec, side, resolution=resolution),
                    further=[{"pair": key, "pair_side": name} for key in keys],
                )
                for name, side in (("base", batch), ("changed", other))
            )
            values = [spec.names(factor)[code] for code in other.factors[factor].tolist()]
            for key, value, first, second in zip(keys, values, base, counterpart, strict=True):
                yield key, first
                yield f"{key}-{factor}-{value}", second
        if bar is not None:
            bar.update(len(batch))


def tiny(folder: Path) -> tuple[dict[str, object], int]:
    """Return the arguments of 300 scenes; they need no source. Returns: the arguments of `build`, and 300 samples."""
    return {"n": 300, "seed": 3, "samples_per_shard": 100}, 300
