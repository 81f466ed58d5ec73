"""Fit readouts of all cells, penalties, numbers of labels and draws, and count their errors in each image.

What is read (classes or depth) is a `DenseTask`. Settings are in `dense_settings.py`, maps in `dense_maps.py`, and what
becomes of the counts in `dense_scores.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.config.parse import record_tree
from diffprobe.core.digest import digest_json
from diffprobe.core.result import BACKBONE, RESULT_FILE, SHARDS, MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.dense_maps import (
    BY_PLACE,
    COLOURS,
    LATENTS,
    OWN,
    RANDOM,
    SHUFFLED,
    DenseImages,
    Maps,
    check_groups,
    gather,
    in_batches,
    maps_of,
    request_rungs,
    splits_of,
)
from diffprobe.evaluation.dense_scores import Candidate, Counts, DenseTask, Predict, best_candidate, dense_score_records
from diffprobe.evaluation.dense_settings import DenseEvaluation
from diffprobe.evaluation.labelled_sets import exchanged_truth, labelled_images
from diffprobe.runs.massive_notes import DETAIL, with_channels
from diffprobe.runs.provenance import backbone_digest

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.features.request import Request
    from diffprobe.shards.class_maps import DenseSample

FIXED = 0.0
"""Penalty of what has none."""
_RULES = 3


@dataclass(frozen=True, kw_only=True)
class _Labelled:
    """The labelled images of all draws."""

    samples: "list[DenseSample]"
    """Each once."""
    draws: list[list[int]]
    """Positions of the labelled images of each draw, in its order."""
    groups: list[str]


def evaluate_dense(config: DenseEvaluation, task: DenseTask) -> Path:
    """Fit and score all readouts, write `result.json`, and return its path.

    The folder is <output>/<experiment>/<first 12 digits of a digest>.

    Raises: SampleError for a sample whose truth is missing or does not fit; ConfigError for too few images, or groups
        that are too large for the shuffle; SplitLeak for a group in two splits; UnknownTap, BadTimestep,
        WeightsMissing; the errors of opening shards and backbone.
    """
    from diffprobe.core.memory import keep_freed_memory

    keep_freed_memory()
    started_at = StartTime.now()
    rungs = request_rungs(config)
    request = rungs[OWN]
    assert request is not None
    inputs = {SHARDS: request.shard_set.digest, BACKBONE: backbone_digest(request.plan.fingerprint)}
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    del tree["features"]["views"]  # there are none
    digest = digest_json({**tree, "inputs": inputs, task.kind: _RULES})[:12]
    splits = splits_of(config)
    images = {
        name: gather(config, request, splits[name], task.read(request, splits[name], n), least)
        for name, n, least in (
            ("train", config.pool, config.labels[-1]), ("val", config.n_val, 2), ("test", config.n_test, 2)
        )
    }  # fmt: skip
    check_groups(images)
    labelled = _draw(config, images["train"])
    if SHUFFLED in rungs:  # refused before the features are computed
        for draw, positions in enumerate(labelled.draws):
            for n in config.labels:
                exchanged_truth([labelled.groups[i] for i in positions[:n]], seed=config.seed, draw=draw)
    counts: dict[str, Counts] = {}
    for rung, of_rung in rungs.items():
        if rung != SHUFFLED:
            maps = maps_of(rung, of_rung if of_rung is not None and rung != LATENTS else request)
            counts[rung] = _measure(config, task, maps, labelled, images, rung=rung)
    if SHUFFLED in rungs:
        cells = {n: best_candidate(counts[OWN], n, task.scores[0])[0] for n in config.labels}
        counts[SHUFFLED] = _measure(
            config, task, maps_of(OWN, request), labelled, images, rung=SHUFFLED, only=cells
        )  # fmt: skip
    groups = {name: images[name].groups for name in ("val", "test")}
    records = _with_massive(dense_score_records(config, task, counts, groups), rungs)
    run_dir = Path(config.output) / (config.experiment or task.kind) / digest
    run_dir.mkdir(parents=True, exist_ok=True)
    result = make_result(
        run=run_dir.name, experiment=config.experiment, kind=task.kind, config=tree,
        seeds={"noise": request.plan.seed, "labels": config.seed, "bootstrap": config.seed},
        metrics=records, started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


def _with_massive(records: list[MetricRecord], rungs: "Mapping[str, Request | None]") -> list[MetricRecord]:
    """Return records that list the treated channels of their cell, and those of the random denoiser's chosen cell."""
    own, random = rungs[OWN], rungs.get(RANDOM)
    listed = with_channels(records, {} if own is None or own.massive is None else own.massive[0])
    if random is None or random.massive is None:
        return listed
    of_random = {cell: one.to_json() for cell, one in random.massive[0].items()}

    def with_control(record: MetricRecord) -> MetricRecord:
        cell = record.detail.get("control_cells", {}).get(RANDOM)
        if cell is None:
            return record
        return replace(record, detail={**record.detail, f"control_{DETAIL}": {RANDOM: {cell: of_random[cell]}}})

    return list(map(with_control, listed))


def _draw(config: DenseEvaluation, train: DenseImages) -> _Labelled:
    """Draw the labelled images; those of several draws are held once."""
    found = [
        labelled_images(train.groups, config.labels[-1], seed=config.seed, draw=draw)
        for draw in range(config.label_draws)
    ]
    held = sorted({i for one in found for i in one})
    place = {i: at for at, i in enumerate(held)}
    return _Labelled(
        samples=[train.samples[i] for i in held],
        draws=[[place[i] for i in one] for one in found],
        groups=[train.groups[i] for i in held],
    )


def _measure(
    config: DenseEvaluation,
    task: DenseTask,
    maps: Maps,
    labelled: _Labelled,
    images: Mapping[str, DenseImages],
    *,
    rung: str,
    only: Mapping[int, str] | None = None,
) -> Counts:
    """Fit readouts of all cells, and return the counts of each image of val and test.

    Args:
        rung: what is read; `SHUFFLED` gives each labelled image the truth of one of another group.
        only: number of labels -> the only cell that is fitted.
    """
    import torch

    known: dict[str, list[Tensor]] = {}
    for batch in in_batches(labelled.samples, config.data.batch_size):
        for cell, values in maps(batch).items():
            known.setdefault(cell, []).append(values.cpu().clone())
    truth = [task.truth(one) for one in labelled.samples]
    readouts: dict[Candidate, Predict] = {}
    for cell in list(known):
        held = torch.cat(known.pop(cell))
        for draw, positions in enumerate(labelled.draws):
            for n in config.labels:
                if only is not None and only[n] != cell:
                    continue
                own = positions[:n]
                given = own
                if rung == SHUFFLED:
                    order = exchanged_truth([labelled.groups[i] for i in own], seed=config.seed, draw=draw)
                    given = [own[i] for i in order]
                targets = [truth[i] for i in given]
                if rung == BY_PLACE:
                    size = (held.shape[2], held.shape[3])
                    readouts[cell, FIXED, n, draw] = task.by_place(targets, size)
                elif rung == COLOURS:
                    readouts[cell, FIXED, n, draw] = task.by_mean(held[own], targets)
                else:
                    for penalty in config.penalties:
                        readouts[cell, penalty, n, draw] = task.fit(held[own], targets, penalty)
    counts: Counts = {}
    for split in ("val", "test"):
        found: dict[Candidate, list[NDArray[np.float64]]] = {key: [] for key in readouts}
        for batch in in_batches(images[split].samples, config.data.batch_size):
            on_cpu = {cell: one.cpu() for cell, one in maps(batch).items()}
            for at, sample in enumerate(batch):
                true = task.truth(sample)
                for key, predict in readouts.items():
                    predicted = predict(on_cpu[key[0]][at], (true.shape[0], true.shape[1]))
                    found[key].append(task.count(predicted, true))
        counts[split] = {key: np.stack(rows) for key, rows in found.items()}
    return counts
