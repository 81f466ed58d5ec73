"""`diffprobe eval correspondence`: named points of one image found in another by the features of each cell.

The recipe is that of DIFT (2306.03881): no training, nearest neighbours by cosine, features averaged over noise draws.
Other features are matched beside the cells: those of CleanDIFT, fusions with a second encoder, trained mixtures.
Settings are in `correspondence_settings.py`, pairs in `correspondence_pairs.py`, records in
`correspondence_records.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.image_pairs import disjoint_pairs, own_pairs, pair_clusters
from diffprobe.config.parse import record_tree
from diffprobe.config.schema import ProbeConfig, RunConfig
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, SchemaError, SplitLeak, unknown
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import BACKBONE, INPUT, RESULT_FILE, SHARDS, StartTime, make_result, write_result
from diffprobe.evaluation.correspondence_mixture import (
    MIXTURES,
    RANDOM_MIXTURE,
    SINGLE,
    Maps,
    mixed_maps,
    trained_states,
)
from diffprobe.evaluation.correspondence_pairs import PairedPoints, attribute_of, listed_pairs, mirrored
from diffprobe.evaluation.correspondence_records import Measured, best_cell, correspondence_records
from diffprobe.evaluation.correspondence_settings import CorrespondenceEvaluation
from diffprobe.runs.extract import backbone_and_features
from diffprobe.runs.provenance import backbone_digest

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.core.progress import Bar
    from diffprobe.features.request import Request
    from diffprobe.probes.dense.mixture import PairMixture, TrainingPair
    from diffprobe.shards.dense_truth import PointSample

KIND = "correspondence"
"""Kind of the results."""
MATCHES = "matches"
"""Folder of a run with the matches of each rung and split."""
OWN, PIXELS, LATENTS = "own", "pixels", "vae_latents"
RANDOM: Literal["random_weights"] = "random_weights"
"""The rungs: the denoiser itself, and the controls."""
CLEANDIFT = "cleandift"
"""The rung of the features of a CleanDIFT model."""
FUSION = "fusion_"
"""Start of the name of a rung that fuses the chosen cell with an encoder."""
FUSED = "fused"
"""The cells of `fuse`, matched together."""
_RULES = 2
"""Raised when matches change, so that files of an older version are not continued."""


def evaluate_correspondence(config: CorrespondenceEvaluation) -> Path:
    """Match all points, write `result.json`, and return its path.

    The folder is <output>/<experiment>/<first 12 digits of a digest>. The matches of each finished rung (the denoiser,
    each control) and split are kept below `matches/`, and a repeated call continues from them.

    Raises: SampleError for a sample without points or mask; UnknownName for an unknown point or attribute; ConfigError
        for conditions that too few pairs meet; SplitLeak for a group in both splits; UnknownTap, BadTimestep,
        WeightsMissing; the errors of opening shards and backbone.
    """
    started_at = StartTime.now()
    opened = _open(config)
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    del tree["features"]["views"]  # there are none
    digest = digest_json({**tree, "inputs": opened.inputs, KIND: _RULES})[:12]
    run_dir = Path(config.output) / (config.experiment or KIND) / digest
    (run_dir / MATCHES).mkdir(parents=True, exist_ok=True)
    splits = {name: opened.pairs(split) for name, split in opened.splits.items()}
    if set(splits["val"].groups) & set(splits["test"].groups):
        raise SplitLeak(
            "correspondence: a group has images in both splits, so the choice of a cell sees the test images."
        )
    matcher = _Matcher(config, opened, run_dir, splits)
    found = {split: matcher.match(split) for split in ("val", "test")}
    measured = Measured(
        val=splits["val"].measured(found["val"]),
        test=splits["test"].measured(found["test"]),
        notes=matcher.notes(),
        names=opened.splits,
        clusters=opened.request.shard_set.group or "sample",
    )
    result = make_result(
        run=run_dir.name,
        experiment=config.experiment,
        kind=KIND,
        config=tree,
        seeds={"noise": opened.request.plan.seed, "pairs": config.seed, "bootstrap": config.seed},
        metrics=correspondence_records(config, measured),
        started_at=started_at,
        artifacts=opened.inputs,
    )
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


@dataclass(frozen=True)
class _Opened:
    """The data and the backbones of an evaluation, after all checks that need neither images nor weights."""

    config: CorrespondenceEvaluation
    request: "Request"
    controls: "dict[str, Request]"
    splits: dict[str, str]
    inputs: dict[str, str]

    def pairs(self, split: str) -> PairedPoints:
        """Read the images of a split and pair them."""
        from diffprobe.shards.dense_truth import read_point_samples, require_points

        config, request = self.config, self.request
        samples = list(
            read_point_samples(
                request.view, split, fields=request.fields, resolution=request.plan.resolution,
                box_parts=config.box_parts, limit=config.data.limit, caps=config.data.caps,
            )
        )  # fmt: skip
        what = f"split '{split}' of '{config.data.path}'"
        names = require_points(samples, config.points, what)
        partner = {one: other for pair in config.sides for one, other in (pair, pair[::-1])}
        require_points(samples, list(partner), what)
        mirror = config.mirror or config.flip
        seen = [mirrored(one, partner, request.plan.resolution) if mirror else one for one in samples]

        def fits(one: "PointSample", other: "PointSample") -> bool:
            same = all(attribute_of(one, name) == attribute_of(other, name) != "" for name in config.same)
            differ = all("" != attribute_of(one, name) != attribute_of(other, name) != "" for name in config.differ)
            return same and differ and any(name in one.points and name in other.points for name in names)

        ends = list(zip(samples, seen, strict=True))  # as source and as target
        n_pairs = config.n_pairs if config.mixture is None or split in self.splits.values() else config.mixture.n_pairs
        if config.pairs_file is not None:
            chosen = listed_pairs(Path(config.pairs_file), split, [one.sample.key for one in samples], n=n_pairs)
            chosen = [(one, other) for one, other in chosen if fits(samples[one], seen[other])]
        elif config.flip:
            chosen = own_pairs(ends, lambda one: fits(one[0], one[1]), n=n_pairs, seed=config.seed, what=what)
        else:
            chosen = disjoint_pairs(
                ends, lambda one, other: fits(one[0], other[1]), n=n_pairs, seed=config.seed, what=what
            )
        group = request.shard_set.group
        groups = [attribute_of(one, group) or one.sample.key if group else one.sample.key for one in samples]
        pairs = [(samples[one], seen[other]) for one, other in chosen]
        return PairedPoints(
            pairs=pairs,
            names=[tuple(n for n in names if n in one.points and n in other.points) for one, other in pairs],
            groups=[groups[place] for pair in chosen for place in pair],
            clusters=pair_clusters([(groups[one], groups[other]) for one, other in chosen]),
            resolution=request.plan.resolution,
            partner=partner,
        )


def _open(config: CorrespondenceEvaluation) -> _Opened:
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.features.request import Request
    from diffprobe.runs.provenance import require_splits

    keep_freed_memory()
    splits = {"val": config.data.val_split, "test": config.data.test_split}
    request = Request(config.backbone, config.data, config.features, tuple(splits.values()))
    require_splits(config.data, request.shard_set)
    for name in (*config.same, *config.differ):
        if name not in ("label", *request.shard_set.attributes):
            raise unknown("attribute of pairs:", name, ("label", *request.shard_set.attributes))
    request.check_values()
    plan = request.plan
    for name in config.fuse:
        if name not in plan.widths:
            raise unknown("cell of fuse:", name, plan.widths)
    flat = sorted({tap.path for tap in plan.taps if min(tap.size) < 2})
    if flat:
        raise ConfigError(f"tap '{flat[0]}' has a single place: there is nothing to match.", fix="a tap with a map")
    controls: dict[str, Request] = {}
    for control in config.controls:
        if control == "pixels":
            continue
        if control == "single_draw":
            one_draw = replace(config.features, draws=1)
            controls[control] = Request(config.backbone, config.data, one_draw, tuple(splits.values()))
            continue
        controls[control] = _control_request(config, control, splits)
        _ = controls[control].plan  # refuses vae_latents of a model without a VAE
    inputs = {SHARDS: request.shard_set.digest, BACKBONE: backbone_digest(plan.fingerprint)}
    if config.pairs_file is not None:
        if not Path(config.pairs_file).is_file():
            raise ConfigError(f"pairs_file '{config.pairs_file}' does not exist.")
        inputs[f"{INPUT}pairs"] = digest_file(Path(config.pairs_file))
    if config.cleandift is not None:
        backbone = replace(
            config.backbone, path=config.cleandift, clean_input=True, random_weights=False, lora=None, revision=None,
            denoiser_weights=None, single_file_config=None,
        )  # fmt: skip
        clean = replace(config.features, timesteps=(config.cleandift_timestep,), snr=(), draws=1)
        controls[CLEANDIFT] = Request(backbone, config.data, clean, tuple(splits.values()))
        inputs[f"{INPUT}{CLEANDIFT}"] = backbone_digest(controls[CLEANDIFT].plan.fingerprint)
    if config.mixture is not None:
        require_splits(replace(config.data, test_split=config.data.train_split), request.shard_set)
        if RANDOM not in controls:
            controls[RANDOM] = _control_request(config, RANDOM, splits)
    return _Opened(config, request, controls, splits, inputs)


class _Matcher:
    """Matches the points of both splits in all rungs: from the files of the run, or computed."""

    def __init__(
        self, config: CorrespondenceEvaluation, opened: _Opened, run_dir: Path, splits: Mapping[str, PairedPoints]
    ) -> None:
        self.config, self.opened, self.run_dir, self.splits = config, opened, run_dir, splits
        self.chosen = ""
        self._treatment: dict[str, MassiveChannels] = {}
        self._train: PairedPoints | None = None

    @property
    def rungs(self) -> tuple[str, ...]:
        """All rungs; the ones after the first may need the cell that it chooses on val."""
        config = self.config
        clean = () if config.cleandift is None else (CLEANDIFT,)
        fused = tuple(f"{FUSION}{name}" for name in config.fuse_with)
        return (OWN, *config.controls, *clean, *fused, *(() if config.mixture is None else MIXTURES))

    def match(self, split: str) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Return rung -> cell -> matches (points, 2), of "val" or "test"; val first."""
        pairs, found = self.splits[split], {}
        order = {cell: place for place, cell in enumerate(self.opened.request.plan.widths)}
        left = [name for name in self.rungs if not self._path(name, split).exists()]
        with ProgressDisplay(transient=True) as progress:
            title = f"{split}: points of {len(pairs.pairs)} pairs"
            with progress.bar(len(left) * len(pairs.pairs), title, unit="pairs", keep=False) as bar:
                for name in self.rungs:
                    path = self._path(name, split)
                    if name in left:
                        fuse = self.config.fuse if name == OWN else ()
                        _write(path, _compute(self._maps(name), pairs, fuse, self.config.data.batch_size, bar), pairs)
                    kept = _read(path, pairs)
                    found[name] = {
                        cell: kept[cell] for cell in sorted(kept, key=lambda c: (order.get(c, len(order)), c))
                    }
                    if name == OWN and split == "val":
                        cells = {cell: found[OWN][cell] for cell in found[OWN] if cell != FUSED}
                        matches = pairs.measured({OWN: cells})[0][OWN]
                        self.chosen = best_cell(matches, self.config.selecting)
        return found

    def notes(self) -> dict[str, dict[str, object]]:
        """Return what the records of each rung say besides: weights of mixtures, massive channels."""
        notes: dict[str, dict[str, object]] = {}
        for rung in MIXTURES if self.config.mixture is not None else ():
            states = self._states(rung)
            notes[rung] = {"weights_by_state": {name: state.weights() for name, state in states.items()}}
        if self._needs_channels:
            kept = {cell: list(map(str, one.channels)) for cell, one in self._massive().items()}
            notes[OWN] = {"massive_channels": kept, "massive": self.config.massive}
        return notes

    @property
    def _needs_channels(self) -> bool:
        return self.config.massive != "keep"

    def _path(self, rung: str, split: str) -> Path:
        return self.run_dir / MATCHES / f"{rung}-{split}.safetensors"

    def _maps(self, rung: str) -> Maps:
        """Return what reads the maps of a rung."""
        own = self.opened.request
        if rung == PIXELS:
            return _patch_maps(own, self._size, PIXELS, lambda images: images * 2 - 1)
        if rung == LATENTS:
            return _patch_maps(own, self._size, rung, _loaded(own).extractor.encode)
        if rung.startswith(FUSION):
            return self._fused(rung.removeprefix(FUSION))
        if rung in MIXTURES:
            return mixed_maps(self._cells(RANDOM if rung == RANDOM_MIXTURE else OWN), self._states(rung))
        return self._cells(rung)

    @property
    def _size(self) -> tuple[int, int]:
        return max((tap.size for tap in self.opened.request.plan.taps), key=lambda one: one[0] * one[1])

    def _cells(self, rung: str) -> Maps:
        """Return what reads the cells of a network, of the model itself with its massive channels treated."""
        read = _network_maps(_loaded(self.opened.request if rung == OWN else self.opened.controls[rung]))
        if rung != OWN or not self._needs_channels:
            return read
        channels, how = self._massive(), self.config.massive

        def treated(samples: "Sequence[PointSample]") -> "dict[str, Tensor]":
            from diffprobe.backbones.massive import treat_massive

            return {
                cell: treat_massive(maps, channels[cell].channels, how, limit=channels[cell].limit)
                for cell, maps in read(samples).items()
            }

        return treated

    def _massive(self) -> "dict[str, MassiveChannels]":
        """Find the massive channels of each cell on the first images of val."""
        from diffprobe.backbones.massive import channel_limit, massive_channels

        if not self._treatment:
            pairs, ratio = self.splits["val"].pairs, self.config.massive_ratio
            first = [image for pair in pairs[: max(1, self.config.data.batch_size // 2)] for image in pair]
            self._treatment = {
                cell: MassiveChannels(list(massive_channels(maps, ratio=ratio)), channel_limit(maps, ratio=ratio))
                for cell, maps in _network_maps(_loaded(self.opened.request))(first).items()
            }
        return self._treatment

    def _fused(self, encoder: str) -> Maps:
        """Return what reads the chosen cell fused with another encoder, at each weight of it."""
        from diffprobe.probes.dense.correspondence import joined

        cell, weights = self.chosen, self.config.fuse_weights
        own, other = self._cells(OWN), self._maps(encoder)

        def maps(samples: "Sequence[PointSample]") -> "dict[str, Tensor]":
            import torch

            one, two = own(samples)[cell].cpu(), next(iter(other(samples).values())).cpu()
            return {
                f"{weight:g}": torch.stack([joined(both, [1 - weight, weight]) for both in zip(one, two, strict=True)])
                for weight in weights
            }

        return maps

    def _states(self, rung: str) -> "dict[str, PairMixture]":
        """Train a mixture, or read it."""
        settings = self.config.mixture
        assert settings is not None
        if self._train is None:
            self._train = self.opened.pairs(self.config.data.train_split)
            seen = {group for split in self.splits.values() for group in split.groups}
            if seen & set(self._train.groups):
                raise SplitLeak("correspondence: a group has images in the training split and in another.")
        pairs, read = self._train, RANDOM if rung == RANDOM_MIXTURE else OWN
        cells = (self.chosen,) if rung == SINGLE else tuple(self.opened.request.plan.widths)
        return trained_states(
            rung, settings, lambda: _training_pairs(self._cells(read), pairs, self.config.data.batch_size), cells,
            self.run_dir, resolution=pairs.resolution, digest=pairs.digest,
        )  # fmt: skip


def _control_request(
    config: CorrespondenceEvaluation, control: Literal["vae_latents", "random_weights"], splits: Mapping[str, str]
) -> "Request":
    """Return the request of a control, which is made as for a probe."""
    from diffprobe.features.request import Request

    run = RunConfig(
        backbone=config.backbone, data=config.data, features=config.features, control=control,
        probe=ProbeConfig(kind="classifier", name="linear"),
    )  # fmt: skip
    backbone, features = backbone_and_features(run)
    return Request(backbone, config.data, features, tuple(splits.values()))


@dataclass(frozen=True)
class MassiveChannels:
    """The massive channels of one cell, and the magnitude at which they are clipped."""

    channels: list[int]
    limit: float


def _loaded(request: "Request") -> "Request":
    from diffprobe.backbones.library_logging import quiet_libraries

    with quiet_libraries():
        request.load_extractor(images=True)
    return request


def _training_pairs(read: Maps, pairs: PairedPoints, batch_size: int) -> "list[TrainingPair]":
    """Read the maps of all cells of the training pairs."""
    import torch

    from diffprobe.probes.dense.mixture import TrainingPair

    found = []
    for numbers in _batches(len(pairs.pairs), max(1, batch_size // 2)):
        features = read([image for number in numbers for image in pairs.pairs[number]])
        for i, number in enumerate(numbers):
            _, target = pairs.pairs[number]
            there = torch.tensor([target.points[name] for name in pairs.names[number]], dtype=torch.float64)
            own = {cell: values[2 * i : 2 * i + 2].cpu().clone() for cell, values in features.items()}
            found.append(TrainingPair(own, (pairs.points(number), there)))
    return found


def _compute(
    maps: Maps, pairs: PairedPoints, fuse: Sequence[str], batch_size: int, bar: "Bar"
) -> dict[str, NDArray[np.float64]]:
    """Return cell -> matches (points, 2)."""
    from diffprobe.probes.dense.correspondence import joined, match_points

    found: dict[str, list[NDArray[np.float64]]] = {}
    for numbers in _batches(len(pairs.pairs), max(1, batch_size // 2)):
        features = maps([image for number in numbers for image in pairs.pairs[number]])
        for i, number in enumerate(numbers):
            ends = {cell: (values[2 * i], values[2 * i + 1]) for cell, values in features.items()}
            if fuse:
                one, other = (joined([ends[cell][end] for cell in fuse]) for end in (0, 1))
                ends[FUSED] = (one, other)
            for cell, (source, target) in ends.items():
                places = match_points(source, target, pairs.points(number), resolution=pairs.resolution)
                found.setdefault(cell, []).append(places.numpy())
        bar.update(len(numbers))
    return {cell: np.concatenate(parts) for cell, parts in found.items()}


def _batches(n: int, size: int) -> Iterator[range]:
    for start in range(0, n, size):
        yield range(start, min(start + size, n))


def _network_maps(request: "Request") -> Maps:
    """Return what reads the maps of a backbone."""
    from diffprobe.features.extract import to_features
    from diffprobe.shards.batch import collate

    def read(samples: "Sequence[PointSample]") -> "dict[str, Tensor]":
        batch = collate([one.sample for one in samples], request.shard_set)
        return to_features(request, batch.to(request.extractor.device)).features

    return read


def _patch_maps(request: "Request", size: tuple[int, int], name: str, read: "Callable[[Tensor], Tensor]") -> Maps:
    """Return what reads the values of 3 x 3 places: without neighbours, three colours are too few to match by.

    Args:
        size: height and width of the largest map of the taps, to which larger ones are reduced.
        name: of the only cell.
        read: images in [0, 1] -> map.
    """
    from torch.nn.functional import interpolate, pad, unfold

    from diffprobe.shards.batch import collate

    def maps(samples: "Sequence[PointSample]") -> "dict[str, Tensor]":
        found = read(collate([one.sample for one in samples], request.shard_set).images).float()
        if found.shape[-2] > size[0]:
            found = interpolate(found, size=size, mode="area")
        around = unfold(pad(found, (1, 1, 1, 1), mode="replicate"), kernel_size=3)
        return {name: around.unflatten(2, found.shape[-2:])}

    return maps


def _write(path: Path, found: Mapping[str, NDArray[np.float64]], pairs: PairedPoints) -> None:
    from safetensors.numpy import save_file

    with atomic_file(path) as temporary:
        save_file(dict(found), temporary, metadata={"pairs": pairs.digest})


def _read(path: Path, pairs: PairedPoints) -> dict[str, NDArray[np.float64]]:
    """Read matches. Raises: SchemaError for a file that is damaged, or of other pairs."""
    from diffprobe.core.safetensors_file import open_safetensors

    fix = f"remove the folder '{path.parent}' and repeat the command"
    with open_safetensors(path, fix=fix) as stored:
        header = stored.metadata() or {}
        found = {name: stored.get_tensor(name).numpy() for name in stored.keys()}
    if header.get("pairs") != pairs.digest or any(values.shape != (pairs.n_points, 2) for values in found.values()):
        raise SchemaError(f"'{path}' does not hold the matches of these pairs.", fix=fix)
    return found
