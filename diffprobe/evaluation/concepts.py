"""`diffprobe eval concepts`: the class of each pixel by words alone, without training (ConceptAttention, 2502.04320).

The masks of val choose the cell (and the threshold of a class without words), those of test score it. Maps are those
of `scoring/concept_maps.py`, settings in `concepts_settings.py`, records in `concepts_records.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.backbones.cell import Cell
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.config.parse import record_tree
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.result import BACKBONE, RESULT_FILE, SHARDS, StartTime, make_result, write_result
from diffprobe.evaluation.concepts_classes import average_precisions, class_scores, classes_at, exchanged_owners
from diffprobe.evaluation.concepts_picture import PICTURE_FILE, Example, draw_examples
from diffprobe.evaluation.concepts_records import Candidate, Rung, best_candidate, concepts_records
from diffprobe.evaluation.concepts_settings import ConceptsEvaluation
from diffprobe.metrics.dense import image_confusion
from diffprobe.runs.provenance import checkpoint_digest, require_splits
from diffprobe.scoring.concept_maps import ConceptMaps, MapSpace
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.shards.batch import collate
from diffprobe.shards.class_maps import read_class_samples
from diffprobe.shards.holdout import open_view
from diffprobe.shards.index import ShardSet

if TYPE_CHECKING:
    from diffprobe.shards.class_maps import DenseSample

KIND = "concepts"
"""Kind of the results."""
OWN, SHUFFLED, MAJORITY, COLOURS, RANDOM = (
    "own", "shuffled_words", "majority_class", "mean_colours", "random_weights"
)  # fmt: skip
"""The rung of the cells, and controls."""
_SPACES: dict[str, MapSpace] = {"raw_attention": "attention", "prompt_attention": "probs"}
_RULES = 1


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The images of a split."""

    samples: "list[DenseSample]"
    groups: list[str]

    def batches(self, size: int) -> "Iterator[list[DenseSample]]":
        for start in range(0, len(self.samples), size):
            yield self.samples[start : start + size]


def evaluate_concepts(config: ConceptsEvaluation) -> Path:
    """Segment the images by words, score them, write `result.json` and the picture, and return the result's path.

    The folder is <output>/<experiment>/<first 12 digits of a digest>.

    Raises: SampleError for a sample without a mask, with one of another size or with a value of no class; ConfigError
        for too few images, and see `ConceptMaps`; SplitLeak for a group in two splits; BadTimestep, WeightsMissing; the
        errors of opening shards.
    """
    keep_freed_memory()
    started_at = StartTime.now()
    whole = ShardSet.load(config.data.path, storage_patience=config.data.storage_patience)
    require_splits(config.data, whole)
    shard_set = open_view(config.data, whole)
    model = _load(config, random=False)
    maps = {OWN: _maps(config, model, config.space)}
    for control in config.controls:
        if control in _SPACES:
            maps[control] = _maps(config, model, _SPACES[control])
        elif control == RANDOM:
            maps[control] = _maps(config, _load(config, random=True), config.space)
    for one in maps.values():
        one.model.spec.schedule.check(config.timesteps, model.spec.name)
        one.check(config.attentions)
    images = {
        split: _read(config, shard_set, split, n, model.spec.resolution)
        for split, n in ((config.data.val_split, config.n_val), (config.data.test_split, config.n_test))
    }
    measure = _Measure(config, shard_set, maps, images)
    rungs = measure.rungs()
    inputs = {SHARDS: whole.digest, BACKBONE: checkpoint_digest(config.backbone.path)}
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    run_dir = (
        Path(config.output) / (config.experiment or KIND) / digest_json({**tree, "inputs": inputs, KIND: _RULES})[:12]
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    groups = {name: one.groups for name, one in images.items()}
    result = make_result(
        run=run_dir.name, experiment=config.experiment, kind=KIND, config=tree,
        seeds={"noise": config.seed, "random_denoiser": config.seed, "bootstrap": config.seed},
        metrics=concepts_records(config, rungs, groups), started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    if measure.examples:
        draw_examples(measure.examples, tuple(config.classes), run_dir / PICTURE_FILE)
    return run_dir / RESULT_FILE


def _load(config: ConceptsEvaluation, *, random: bool) -> DenoisingError:
    model = config.backbone
    with quiet_libraries():
        return DenoisingError.from_pretrained(
            model.path, seed=config.seed, dtype=model.dtype, device=model.device, rows=model.max_rows_per_pass,
            random_seed=config.seed if random else None,
        )  # fmt: skip


def _maps(config: ConceptsEvaluation, model: DenoisingError, space: MapSpace) -> ConceptMaps:
    prompt = config.prompt if space == config.space else None
    return ConceptMaps(model, config.texts, prompt=prompt, space=space)


def _read(config: ConceptsEvaluation, shard_set: ShardSet, split: str, n: int, resolution: int) -> _Images:
    samples = list(
        read_class_samples(
            shard_set, split, classes=config.classes, fields=shard_set.fields_for(config.data.fields),
            resolution=resolution, limit=n, caps=config.data.caps,
        )
    )  # fmt: skip
    if len(samples) < 2:
        raise ConfigError(f"split '{split}' of '{config.data.path}' has {len(samples)} images; 2 are needed.")
    group = shard_set.group
    groups = [(one.sample.attributes.get(group) if group else None) or one.sample.key for one in samples]
    return _Images(samples=samples, groups=groups)


class _Measure:
    """Scores all rungs: first on val, then on test, where the average precision is of the chosen candidate alone."""

    def __init__(
        self,
        config: ConceptsEvaluation,
        shard_set: ShardSet,
        maps: Mapping[str, ConceptMaps],
        images: Mapping[str, _Images],
    ) -> None:
        self.config, self.shard_set, self.maps = config, shard_set, maps
        self.val, self.test = images[config.data.val_split], images[config.data.test_split]
        self.examples: list[Example] = []

    def rungs(self) -> dict[str, Rung]:
        """Return the counts of all rungs."""
        found: dict[str, Rung] = {}
        for name, maps in self.maps.items():
            owners = {name: list(self.config.owners)}
            if name == OWN and SHUFFLED in self.config.controls:
                owners[SHUFFLED] = exchanged_owners(self.config.owners)
            found.update(self._of_maps(maps, owners))
        for name in (MAJORITY, COLOURS):
            if name in self.config.controls:
                found[name] = self._of_masks(name)
        return found

    def _of_maps(self, maps: ConceptMaps, owners: Mapping[str, list[int]]) -> dict[str, Rung]:
        config, n_classes = self.config, len(self.config.classes)
        thresholds = config.thresholds or (None,)
        counts: dict[str, dict[str, dict[Candidate, list[NDArray[np.int64]]]]] = {
            name: {"val": {}, "test": {}} for name in owners
        }
        precisions: dict[str, list[NDArray[np.float64]]] = {name: [] for name in owners}
        chosen: dict[str, Candidate] = {}
        for split, images in (("val", self.val), ("test", self.test)):
            for batch in images.batches(config.data.batch_size):
                cells = self._cells(maps, batch)
                for (cell, found), (name, own) in ((a, b) for a in cells.items() for b in owners.items()):
                    for one, of in zip(batch, found, strict=True):
                        true = torch.from_numpy(one.truth.copy()).long()
                        scores = self._scores(of, own, true)
                        for threshold in thresholds:
                            at = classes_at(scores, config.rest, threshold)
                            rows = counts[name][split].setdefault(Candidate(cell=cell, threshold=threshold), [])
                            rows.append(image_confusion(at, true, n_classes))
                            picked = chosen.get(name)
                            if picked != Candidate(cell=cell, threshold=threshold):
                                continue
                            precisions[name].append(average_precisions(scores, true))
                            if name == OWN and len(self.examples) < config.n_shown:
                                self.examples.append(
                                    Example(image=one.sample.image, truth=true, scores=scores, found=at)
                                )
            if split == "val":
                chosen = {name: best_candidate(_stacked(of["val"])) for name, of in counts.items()}
        return {
            name: Rung(
                val=_stacked(of["val"]), test=_stacked(of["test"]), chosen=chosen[name],
                precisions=np.stack(precisions[name]),
            )
            for name, of in counts.items()
        }  # fmt: skip

    def _cells(self, maps: ConceptMaps, batch: "Sequence[DenseSample]") -> dict[str, Tensor]:
        images = collate([one.sample for one in batch], self.shard_set).images
        keys = [one.sample.key for one in batch]
        found = maps.cells(images, keys, self.config.timesteps, attentions=self.config.attentions)
        return {Cell(path, t, "prompt", "none").name: values for (path, t), values in found.items()}

    def _scores(self, maps: Tensor, owners: Sequence[int], true: Tensor) -> Tensor:
        size = (true.shape[0], true.shape[1])
        min_max = self.config.scale == "min_max"
        return class_scores(maps, owners, len(self.config.classes), size, min_max=min_max)

    def _of_masks(self, name: str) -> Rung:
        """Return the rung of a control that is made from the masks of val."""
        n_classes = len(self.config.classes)
        pixels = np.concatenate([_colours(one) for one in self.val.samples]).reshape(-1, 3)
        classes = np.concatenate([one.truth.ravel() for one in self.val.samples])
        shares = np.bincount(classes, minlength=n_classes) / len(classes)
        means = [pixels[classes == i].mean(0) if shares[i] else np.full(3, np.inf) for i in range(n_classes)]
        only = Candidate(cell="", threshold=None)
        counts: dict[str, list[NDArray[np.int64]]] = {"val": [], "test": []}
        precisions = []
        for split, images in (("val", self.val), ("test", self.test)):
            for one in images.samples:
                true = torch.from_numpy(one.truth.copy()).long()
                if name == MAJORITY:
                    scores = torch.from_numpy(shares).float()[:, None, None].expand(n_classes, *true.shape)
                else:
                    distances = ((_colours(one)[..., None, :] - np.stack(means)) ** 2).sum(-1)
                    scores = torch.from_numpy(np.exp(-distances)).float().movedim(-1, 0)
                counts[split].append(image_confusion(scores.argmax(0), true, n_classes))
                if split == "test":
                    precisions.append(average_precisions(scores, true))
        val, test = ({only: np.stack(counts[split]).astype(np.float64)} for split in ("val", "test"))
        return Rung(val=val, test=test, chosen=only, precisions=np.stack(precisions))


def _stacked(counts: Mapping[Candidate, list[NDArray[np.int64]]]) -> dict[Candidate, NDArray[np.float64]]:
    return {candidate: np.stack(rows).astype(np.float64) for candidate, rows in counts.items()}


def _colours(one: "DenseSample") -> NDArray[np.float64]:
    """Return the image at the size of its truth, (side, side, 3), in [0, 1]."""
    side = len(one.truth)
    return np.asarray(one.sample.image.resize((side, side)), np.float64) / 255
