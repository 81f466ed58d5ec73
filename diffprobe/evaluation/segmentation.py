"""`diffprobe eval segmentation`: the class of each pixel, read linearly from the features of each cell.

The readouts are 1 x 1, the model is frozen, and the labelled images are few: nested sets drawn by group. Settings are
in `segmentation_settings.py`, records in `segmentation_records.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.config.parse import record_tree
from diffprobe.config.schema import ProbeConfig, RunConfig
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, SplitLeak
from diffprobe.core.result import BACKBONE, RESULT_FILE, SHARDS, StartTime, make_result, write_result
from diffprobe.evaluation.labelled_sets import exchanged_truth, labelled_images
from diffprobe.evaluation.segmentation_records import Counts, best_cell, segmentation_records
from diffprobe.evaluation.segmentation_settings import SegmentationEvaluation
from diffprobe.runs.extract import backbone_and_features
from diffprobe.runs.provenance import backbone_digest

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.features.request import Request
    from diffprobe.shards.class_maps import DenseSample

KIND = "segmentation"
"""Kind of the results."""
OWN, SHUFFLED, LATENTS = "own", "shuffled_masks", "vae_latents"
"""The rung of the cells, the control that is fitted on its chosen cell, and that of the latents."""
Maps = Callable[[Sequence["DenseSample"]], "dict[str, Tensor]"]
Predict = Callable[["Tensor", tuple[int, int]], "Tensor"]
_RULES = 2


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The images of a split."""

    samples: "list[DenseSample]"
    groups: list[str]


def evaluate_segmentation(config: SegmentationEvaluation) -> Path:
    """Fit and score all readouts, write `result.json`, and return its path.

    The folder is <output>/<experiment>/<first 12 digits of a digest>.

    Raises: SampleError for a sample without a mask, with one of another size or with a value of no class; ConfigError
        for too few images; SplitLeak for a group in two splits; UnknownTap, BadTimestep, WeightsMissing; the errors of
        opening shards and backbone.
    """
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.features.request import Request
    from diffprobe.runs.provenance import require_splits

    keep_freed_memory()
    started_at = StartTime.now()
    splits = {"train": config.data.train_split, "val": config.data.val_split, "test": config.data.test_split}
    request = Request(config.backbone, config.data, config.features, tuple(splits.values()))
    require_splits(config.data, request.shard_set)
    request.check_values()
    plan = request.plan
    rungs: dict[str, Request | None] = {OWN: request}
    for control in config.controls:
        rungs[control] = None
        if control == "vae_latents" or control == "random_weights":  # refuses a model without a VAE
            run = RunConfig(
                backbone=config.backbone, data=config.data, features=config.features, control=control,
                probe=ProbeConfig(kind="classifier", name="linear"),
            )  # fmt: skip
            backbone, features = backbone_and_features(run)
            made = Request(backbone, config.data, features, tuple(splits.values()))
            _ = made.plan
            rungs[control] = made
    inputs = {SHARDS: request.shard_set.digest, BACKBONE: backbone_digest(plan.fingerprint)}
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    del tree["features"]["views"]  # there are none
    digest = digest_json({**tree, "inputs": inputs, KIND: _RULES})[:12]
    images = {
        name: _read(config, request, splits[name], n)
        for name, n in (("train", config.pool), ("val", config.n_val), ("test", config.n_test))
    }
    _check_groups(images)
    labelled = labelled_images(images["train"].groups, config.labels[-1], seed=config.seed)
    if SHUFFLED in config.controls:  # refused before the features are computed
        for n in config.labels:
            exchanged_truth([images["train"].groups[i] for i in labelled[:n]], seed=config.seed)
    counts: dict[str, Counts] = {}
    for rung, of_rung in rungs.items():
        if rung == SHUFFLED:
            continue
        read = of_rung if of_rung is not None and rung != LATENTS else request
        maps = _maps(rung, read, config)
        counts[rung] = _measure(config, maps, labelled, images, nearest=rung == "colours", constant=rung == BY_PLACE)
    if SHUFFLED in rungs:
        chosen = {n: best_cell(counts[OWN], n) for n in config.labels}
        counts[SHUFFLED] = _measure(config, _maps(OWN, request, config), labelled, images, shuffled=True, only=chosen)
    groups = {name: images[name].groups for name in ("val", "test")}
    run_dir = Path(config.output) / (config.experiment or KIND) / digest
    run_dir.mkdir(parents=True, exist_ok=True)
    result = make_result(
        run=run_dir.name, experiment=config.experiment, kind=KIND, config=tree,
        seeds={"noise": plan.seed, "labels": config.seed, "bootstrap": config.seed},
        metrics=segmentation_records(config, counts, groups), started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


BY_PLACE = "mean_by_position"
"""The control that predicts the most frequent class at each position."""


def _read(config: SegmentationEvaluation, request: "Request", split: str, n: int) -> _Images:
    from diffprobe.shards.class_maps import read_class_samples

    samples = list(
        read_class_samples(
            request.view, split, classes=config.classes, fields=request.fields, resolution=request.plan.resolution,
            limit=n, caps=config.data.caps,
        )
    )  # fmt: skip
    least = config.labels[-1] if split == config.data.train_split else 2
    if len(samples) < least:
        raise ConfigError(f"split '{split}' of '{config.data.path}' has {len(samples)} images; {least} are needed.")
    group = request.shard_set.group
    groups = [(one.sample.attributes.get(group) if group else None) or one.sample.key for one in samples]
    return _Images(samples=samples, groups=groups)


def _check_groups(images: Mapping[str, _Images]) -> None:
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted(set(images[one].groups) & set(images[other].groups))
        if both:
            raise SplitLeak(f"segmentation: group '{both[0]}' has images in the {one} split and in the {other} split.")


def _maps(rung: str, request: "Request", config: SegmentationEvaluation) -> Maps:
    """Return what reads the maps of a rung."""
    from torch.nn.functional import pad, unfold

    from diffprobe.backbones.library_logging import quiet_libraries
    from diffprobe.features.extract import to_features
    from diffprobe.shards.batch import collate

    if rung in (OWN, LATENTS, "random_weights"):
        with quiet_libraries():
            request.load_extractor(images=True)

        def cells(samples: "Sequence[DenseSample]") -> "dict[str, Tensor]":
            batch = collate([one.sample for one in samples], request.shard_set)
            batch = batch.to(request.extractor.device)
            if rung == LATENTS:
                return {"": request.extractor.encode(batch.images)}
            return to_features(request, batch).features

        return cells

    def values(samples: "Sequence[DenseSample]") -> "dict[str, Tensor]":
        found = collate([one.sample for one in samples], request.shard_set).images.float()
        if rung == BY_PLACE:
            return {"": found[:, :1] * 0}
        if rung == "colours":
            return {"": found}
        around = unfold(pad(found, (1, 1, 1, 1), mode="replicate"), kernel_size=3)
        return {"": around.unflatten(2, found.shape[-2:])}

    return values


def _measure(
    config: SegmentationEvaluation,
    maps: Maps,
    labelled: Sequence[int],
    images: Mapping[str, _Images],
    *,
    nearest: bool = False,
    constant: bool = False,
    shuffled: bool = False,
    only: Mapping[int, str] | None = None,
) -> Counts:
    """Fit readouts of all cells and label counts, and return the confusion of each image of val and test.

    Args:
        labelled: positions of the labelled images in train.
        nearest: predict the class of the nearest mean, in place of a readout.
        constant: predict the most frequent class at each position.
        shuffled: give each labelled image the truth of one of another group.
        only: number of labels -> the only cell that is fitted.
    """
    import torch

    from diffprobe.metrics.dense import image_confusion
    from diffprobe.probes.dense.readout import fit_readout

    n_classes = len(config.classes)
    groups = [images["train"].groups[i] for i in labelled]
    train = [images["train"].samples[i] for i in labelled]
    known: dict[str, list[Tensor]] = {}
    for batch in _batches(train, config.data.batch_size):
        for cell, values in maps(batch).items():
            known.setdefault(cell, []).append(values.cpu().clone())
    readouts: dict[tuple[str, int], Predict] = {}
    for cell in known:
        held = torch.cat(known[cell])
        for n in config.labels:
            if only is not None and only[n] != cell:
                continue
            own = exchanged_truth(groups[:n], seed=config.seed) if shuffled else list(range(n))
            truth = [torch.from_numpy(train[i].truth.copy()).long() for i in own]
            if constant:
                readouts[cell, n] = _by_place(truth, n_classes, (held.shape[2], held.shape[3]))
            elif nearest:
                readouts[cell, n] = _by_mean(held[:n], truth, n_classes)
            else:
                fitted = fit_readout(
                    held[:n], truth, n_classes, l2=config.l2, steps=config.steps, seed=config.seed
                )  # fmt: skip
                readouts[cell, n] = fitted.predict
    counts: Counts = {}
    for split in ("val", "test"):
        found: dict[tuple[str, int], list[NDArray[np.int64]]] = {key: [] for key in readouts}
        for batch in _batches(images[split].samples, config.data.batch_size):
            on_cpu = {cell: one.cpu() for cell, one in maps(batch).items()}
            for (cell, n), predict in readouts.items():
                for one, features in zip(batch, on_cpu[cell], strict=True):
                    true = torch.from_numpy(one.truth.copy()).long()
                    predicted = predict(features, (true.shape[0], true.shape[1]))
                    found[cell, n].append(image_confusion(predicted, true, n_classes))
        counts[split] = {key: np.stack(rows).astype(np.float64) for key, rows in found.items()}
    return counts


def _by_place(truth: "Sequence[Tensor]", n_classes: int, size: tuple[int, int]) -> Predict:
    """Return what predicts the class that is the most frequent one at each position."""
    import torch
    from torch.nn.functional import interpolate

    from diffprobe.probes.dense.readout import class_shares

    shares = torch.stack([class_shares(one, n_classes, size) for one in truth]).mean(0, keepdim=True)

    def predict(_: "Tensor", size: tuple[int, int]) -> "Tensor":
        return interpolate(shares, size=size, mode="bilinear", align_corners=False)[0].argmax(0)

    return predict


def _by_mean(maps: "Tensor", truth: "Sequence[Tensor]", n_classes: int) -> Predict:
    """Return what predicts the class whose mean of the values is the nearest one."""
    import torch
    from torch.nn.functional import interpolate

    from diffprobe.probes.dense.readout import class_shares

    size = (maps.shape[2], maps.shape[3])
    shares = torch.stack([class_shares(one, n_classes, size) for one in truth])
    totals = shares.sum((0, 2, 3))
    means = torch.einsum("nkhw,nchw->kc", shares, maps) / totals.clamp(min=1e-9)[:, None]
    means[totals == 0] = torch.inf  # a class that no labelled image has

    def predict(values: "Tensor", size: tuple[int, int]) -> "Tensor":
        distances = (values[None] - means[:, :, None, None]).square().sum(1)
        near = distances.clamp(max=1e9)
        return interpolate(-near[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)

    return predict


def _batches(samples: "Sequence[DenseSample]", size: int) -> "Iterator[Sequence[DenseSample]]":
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
