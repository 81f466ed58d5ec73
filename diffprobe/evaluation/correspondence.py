"""`diffprobe eval correspondence`: named points of one image found in another by the features of each cell.

The recipe is that of DIFT (2306.03881): no training, nearest neighbours by cosine, features averaged over noise draws.
Pairs, points and controls are set by `correspondence_settings.py`; `correspondence_records.py` makes the records.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.image_pairs import disjoint_pairs, pair_clusters
from diffprobe.analysis.pck import Matches
from diffprobe.config.parse import record_tree
from diffprobe.config.schema import ProbeConfig, RunConfig
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, SchemaError, SplitLeak, unknown
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import BACKBONE, RESULT_FILE, SHARDS, StartTime, make_result, write_result
from diffprobe.evaluation.correspondence_records import Measured, correspondence_records
from diffprobe.evaluation.correspondence_settings import CorrespondenceEvaluation
from diffprobe.runs.extract import backbone_and_features
from diffprobe.runs.provenance import backbone_digest

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.core.progress import Bar
    from diffprobe.features.request import Request
    from diffprobe.shards.dense_truth import PointSample

KIND = "correspondence"
"""Kind of the results."""
MATCHES = "matches"
"""Folder of a run with the matches of each rung and split."""
OWN, PIXELS, LATENTS, RANDOM = "own", "pixels", "vae_latents", "random_weights"
"""The rungs: the denoiser itself, and the controls."""
FUSED = "fused"
"""The cells of `fuse`, matched together."""
_RULES = 1
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
    measured = Measured(
        val=splits["val"].measured(_match(config, opened, run_dir, "val", splits["val"])),
        test=splits["test"].measured(_match(config, opened, run_dir, "test", splits["test"])),
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


@dataclass(frozen=True, kw_only=True)
class PairedPoints:
    """The pairs of one split, with the points that both images of a pair have."""

    pairs: "list[tuple[PointSample, PointSample]]"
    """Source and target of each pair; the target is mirrored already where it is to be."""
    names: list[tuple[str, ...]]
    """The names of the points of each pair."""
    groups: list[object]
    """The groups of all images."""
    clusters: list[int]
    """Cluster of each pair: pairs that share a group."""
    resolution: int
    """Side of the images in pixels."""
    partner: Mapping[str, str]
    """Point -> its partner on the other side."""

    @property
    def digest(self) -> str:
        """Digest of pairs and points."""
        return digest_json(
            [[a.sample.key, b.sample.key, list(n)] for (a, b), n in zip(self.pairs, self.names, strict=True)]
        )

    @property
    def n_points(self) -> int:
        """Number of points of all pairs."""
        return sum(map(len, self.names))

    def points(self, number: int) -> "Tensor":
        """Return the points of a pair in its source image, float64 (points, 2)."""
        import torch

        source, _ = self.pairs[number]
        return torch.tensor([source.points[name] for name in self.names[number]], dtype=torch.float64)

    def measured(
        self, found: Mapping[str, Mapping[str, NDArray[np.float64]]]
    ) -> "tuple[dict[str, dict[str, Matches]], list[int], NDArray[np.float64], NDArray[np.bool_]]":
        """Return rung -> cell -> matches; the clusters of the pairs; the partners of all points, and which have one."""
        pair = np.repeat(np.arange(len(self.pairs)), [len(names) for names in self.names])
        names = [name for own in self.names for name in own]
        targets = [self.pairs[number][1] for number in pair]
        true = np.array([target.points[name] for target, name in zip(targets, names, strict=True)])
        partners, known = np.zeros_like(true), np.zeros(len(names), np.bool_)
        for i, (target, name) in enumerate(zip(targets, names, strict=True)):
            other = self.partner.get(name)
            if other is not None and other in target.points:
                partners[i], known[i] = target.points[other], True
        boxes = [target.box for target in targets]
        box = np.array([max(one) for one in boxes if one is not None]) if all(boxes) else None
        source = np.array([self.pairs[number][0].points[name] for number, name in zip(pair, names, strict=True)])
        here = {**found, "same_place": {"": source}}

        def matches(places: NDArray[np.float64]) -> Matches:
            return Matches(pair=pair, name=tuple(names), true=true, found=places, box=box, resolution=self.resolution)

        by_rung = {rung: {cell: matches(places) for cell, places in cells.items()} for rung, cells in here.items()}
        return by_rung, self.clusters, partners, known


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
        seen = [_mirrored(one, partner, request.plan.resolution) if config.mirror else one for one in samples]

        def fits(one: "PointSample", other: "PointSample") -> bool:
            same = all(_value(one, name) == _value(other, name) != "" for name in config.same)
            differ = all("" != _value(one, name) != _value(other, name) != "" for name in config.differ)
            return same and differ and any(name in one.points and name in other.points for name in names)

        ends = list(zip(samples, seen, strict=True))  # as source and as target
        chosen = disjoint_pairs(
            ends, lambda one, other: fits(one[0], other[1]), n=config.n_pairs, seed=config.seed, what=what
        )
        group = request.shard_set.group
        groups = [_value(one, group) or one.sample.key if group else one.sample.key for one in samples]
        pairs = [(samples[one], seen[other]) for one, other in chosen]
        return PairedPoints(
            pairs=pairs,
            names=[tuple(n for n in names if n in one.points and n in other.points) for one, other in pairs],
            groups=[groups[place] for pair in chosen for place in pair],
            clusters=pair_clusters([(groups[one], groups[other]) for one, other in chosen]),
            resolution=request.plan.resolution,
            partner=partner,
        )


def _value(one: "PointSample", name: str) -> str:
    """Return the value of an attribute or the class of a sample, "" for none."""
    return one.sample.class_name if name == "label" else one.sample.attributes.get(name, "")


def _mirrored(one: "PointSample", partner: Mapping[str, str], resolution: int) -> "PointSample":
    """Return a sample mirrored at its vertical axis; points with a partner take its name."""
    from PIL import ImageOps

    points = {partner.get(name, name): (resolution - x, y) for name, (x, y) in one.points.items()}
    return replace(one, sample=replace(one.sample, image=ImageOps.mirror(one.sample.image)), points=points)


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
        run = RunConfig(
            backbone=config.backbone, data=config.data, features=config.features, control=control,
            probe=ProbeConfig(kind="classifier", name="linear"),
        )  # fmt: skip
        backbone, features = backbone_and_features(run)
        controls[control] = Request(backbone, config.data, features, tuple(splits.values()))
        _ = controls[control].plan  # refuses vae_latents of a model without a VAE
    inputs = {SHARDS: request.shard_set.digest, BACKBONE: backbone_digest(plan.fingerprint)}
    return _Opened(config, request, controls, splits, inputs)


Maps = Callable[[Sequence["PointSample"]], "dict[str, Tensor]"]


def _match(
    config: CorrespondenceEvaluation, opened: _Opened, run_dir: Path, split: str, pairs: PairedPoints
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return rung -> cell -> matches (points, 2), from the files of the run or computed."""
    rungs = (OWN, *config.controls)
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    order = {cell: place for place, cell in enumerate(opened.request.plan.widths)}
    left = [name for name in rungs if not _path(run_dir, name, split).exists()]
    with ProgressDisplay(transient=True) as progress:
        title = f"{split}: points of {len(pairs.pairs)} pairs"
        with progress.bar(len(left) * len(pairs.pairs), title, unit="pairs", keep=False) as bar:
            for name in rungs:
                path = _path(run_dir, name, split)
                if name in left:
                    maps = _maps_of(name, opened)
                    fuse = config.fuse if name == OWN else ()
                    _write(path, _compute(maps, pairs, fuse, config.data.batch_size, bar), pairs)
                kept = _read(path, pairs)
                found[name] = {cell: kept[cell] for cell in sorted(kept, key=lambda cell: order.get(cell, len(order)))}
    return found


def _maps_of(rung: str, opened: _Opened) -> Maps:
    """Return what reads the maps of a rung: the taps of a denoiser, or 3 x 3 places of pixels or clean latents."""
    from diffprobe.backbones.library_logging import quiet_libraries

    own = opened.request
    size = max((tap.size for tap in own.plan.taps), key=lambda one: one[0] * one[1])
    if rung == PIXELS:
        return _patch_maps(own, size, PIXELS, lambda images: images * 2 - 1)
    request = opened.controls[rung] if rung == RANDOM else own
    with quiet_libraries():
        request.load_extractor(images=True)
    return _patch_maps(own, size, rung, own.extractor.encode) if rung == LATENTS else _network_maps(request)


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


def _path(run_dir: Path, rung: str, split: str) -> Path:
    return run_dir / MATCHES / f"{rung}-{split}.safetensors"


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
