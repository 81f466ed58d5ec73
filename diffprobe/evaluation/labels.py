"""`diffprobe eval labels`: whether the top images of an autoencoder's latents are of one class.

Latents are ranked on the training split by their mean activation. sigma_label, purity, entropy and AUROC of the first
100, 200, ... are measured on the training split, as in Revelio, and on held-out images, next to chance
(`analysis/label_scores.py`), in two readings:

- described: the activations of the sparse code, as the paper describes it;
- released: ReLU of all activations before the selection, as the released code ranks (it hooks them before the top k).

A result has the experiment and the configuration of the trained run, so that tables of that experiment find it.

Codes are read in one pass over each split and reading. Held for each latent: a count, a sum, its top images; for the
ranked latents and a held-out split, one activation per image.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffprobe.config.validators import a_device, at_least
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName, unknown
from diffprobe.core.groups import SINGLE_SAMPLES, Groups
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import INPUT, RESULT_FILE, MetricRecord, RunResult, StartTime, make_result, write_result
from diffprobe.evaluation.load_sae_run import TrainedRun, open_runs
from diffprobe.runs.massive_notes import with_channels_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from diffprobe.analysis.label_scores import LabelScore, SplitImages
    from diffprobe.analysis.latent_ranking import Ranking
    from diffprobe.analysis.top_samples import TopSamples
    from diffprobe.evaluation.page_features import PageFeatures
    from diffprobe.features.batch import FeatureTable
    from diffprobe.probes.sae.base import KSAE
    from diffprobe.probes.sae.types import Code

Reading = Literal["described", "released"]
KIND = "sae_labels"
"""Kind of the result."""
SETTINGS = "labels"
"""Key of the evaluation's own settings in the configuration of its result; the others are those of the trained run."""
_NOT_RECORDED = ("experiment", "run", "data_path", "device", "output")


@dataclass(frozen=True, kw_only=True)
class LabelsEvaluation:
    """Settings of `diffprobe eval labels` (experiment files of kind `evaluate_labels`)."""

    experiment: str
    """Name of the experiment; the folder of results below `output`."""
    run: str = ""
    """Folder of a trained sae run; for a grid, all members are measured."""
    target: str = "label"
    """The classes: label, or the name of an attribute. Images without a value are left out."""
    readings: tuple[Reading, ...] = ("described", "released")
    """Activations by which latents and images are ranked: those of the sparse code, or ReLU of all of them."""
    top: tuple[int, ...] = (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
    """Numbers of latents that are averaged over, ascending; all ranked ones where there are fewer. Names of metrics end
    in @100 for a mean over the first 100, and have no such end for the last of these numbers."""
    n_top_images: int = 10
    """Images of each latent, the most active ones. Latents are ranked if they are active on more training images."""
    held_out: tuple[str, ...] = ()
    """Splits that are measured beside the training split; empty for the val (if there is one) and test splits."""
    group_attribute: str | None = None
    """Attribute whose values are the groups of the permutations; None for the group that the data set names. Images
    without a value, and all images if it is "sample" or the data set names none, are groups of their own."""
    n_permutations: int = 1000
    """Permutations of the labels by group, for the chance level and p."""
    n_renumberings: int = 1000
    """Random numberings of the classes, for sigma_label."""
    data_path: str | None = None
    """Folder of the shards; None for the path of the run. The feature store alone is enough."""
    device: str = "auto"
    """Torch device; "auto" for the accelerator if there is one."""
    seed: int = 0
    """Seed of permutations and numberings."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        a_device(self.device)
        at_least(2, n_top_images=self.n_top_images)
        at_least(1, n_permutations=self.n_permutations, n_renumberings=self.n_renumberings)
        at_least(0, seed=self.seed)
        if not self.top or min(self.top) < 1 or list(self.top) != sorted(set(self.top)):
            raise ConfigError(f"top={list(self.top)}: expected ascending numbers of latents, each at least 1.")
        for name in ("readings", "held_out"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"{name} has duplicates: {', '.join(values)}.")
        if not self.readings:
            raise ConfigError("readings is empty.", "allowed: described, released")


def evaluate_labels(config: LabelsEvaluation) -> list[Path]:
    """Measure every autoencoder of a run, write `result.json`, and return its path; for a grid, one path per member.

    Raises: ConfigError for a folder that is not an sae run, and for a run on live features; UnknownName for a target,
        group or split that the data set does not have; EmptyClass for too few labelled images or classes, or latents
        that are active too rarely; the errors of opening features and weights.
    """
    runs = open_runs(config.run)
    with ProgressDisplay(transient=True) as progress:
        with progress.bar(len(runs), "classes of latents", unit="autoencoders", keep=False) as bar:
            paths = []
            for trained in runs:
                paths.append(_evaluate(config, trained))
                bar.update(1)
            return paths


def _evaluate(config: LabelsEvaluation, trained: TrainedRun) -> Path:
    started_at = StartTime.now()
    settings = {key: value for key, value in asdict(config).items() if key not in _NOT_RECORDED}
    tree = {**trained.result.config, SETTINGS: settings, "run": trained.result.run}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "weights": trained.result.artifacts})[:12]
    metrics = with_channels_of(_measure(config, trained), trained.result)
    artifacts = {INPUT + name.removeprefix(INPUT): sha for name, sha in trained.result.artifacts.items()}
    result = make_result(
        run=run_dir.name, experiment=trained.result.experiment or config.experiment, kind=KIND, config=tree,
        seeds={**trained.result.seeds, "permutation": config.seed}, metrics=metrics, started_at=started_at,
        artifacts=artifacts,
    )  # fmt: skip
    run_dir.mkdir(parents=True, exist_ok=True)
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


def _measure(config: LabelsEvaluation, trained: TrainedRun) -> list[MetricRecord]:
    """Measure all autoencoders of a run, each in the cells that it was trained on, one cell at a time."""
    from diffprobe.backbones.device import choose_device
    from diffprobe.evaluation.page_features import open_features, with_data_path
    from diffprobe.evaluation.probe_runs import ProbeRun
    from diffprobe.probes.sae.base import KSAE

    run = ProbeRun(config=trained.config, result=trained.result, folder=trained.folder)
    source = open_features(with_data_path(run, config.data_path))
    splits = _splits(config, trained, source)
    metrics: list[MetricRecord] = []
    for name, folder in trained.saes().items():
        sae = KSAE.from_pretrained(folder).eval().requires_grad_(False).to(choose_device(config.device))
        for cell in trained.cells(folder):
            for reading in config.readings:
                for split, n_images, ranking, scores in _scores(config, sae, cell.name, reading, splits):
                    context = {"sae": name, "reading": reading, "n_eligible": ranking.n_eligible}
                    metrics += [
                        _record(score, context, split, n_images, cell.name, trained.config.probe.name, config)
                        for score in scores
                    ]
    return metrics


def _scores(
    config: LabelsEvaluation, sae: "KSAE", cell: str, reading: Reading, splits: "Sequence[LabelledSplit]"
) -> "Iterator[tuple[str, int, Ranking, list[LabelScore]]]":
    """Yield split, number of images, ranking and scores of each split, the training split first."""
    from diffprobe.analysis.label_purity import top_classes
    from diffprobe.analysis.label_scores import ChanceSettings, label_scores

    chance = ChanceSettings(
        n_permutations=config.n_permutations, n_renumberings=config.n_renumberings, seed=config.seed
    )
    train, *others = splits
    ranking, top = rank_latents(train, sae, cell, reading, n_top=config.n_top_images, n=config.top[-1])
    images = train.images(top, ranking, config.n_top_images)
    classes = top_classes(images.label[images.top])
    yield train.name, len(train), ranking, label_scores(images, train.n_classes, config.top, chance)
    for split in others:
        images = held_out_images(split, split.codes(sae, cell, reading), ranking, classes, config.n_top_images)
        yield split.name, len(split), ranking, label_scores(images, split.n_classes, config.top, chance)


def rank_latents(
    train: "LabelledSplit", sae: "KSAE", cell: str, reading: Reading, *, n_top: int, n: int
) -> "tuple[Ranking, TopSamples]":
    """Rank latents by mean activation, and return the first `n`, with the top images of all latents.

    Raises: EmptyClass if no latent is active on more than `n_top` images.
    """
    from diffprobe.analysis.latent_ranking import LatentActivity
    from diffprobe.analysis.top_samples import TopSamples

    activity, top = LatentActivity(sae.n_latents), TopSamples(sae.n_latents, n_top)
    for values, indices, places in train.codes(sae, cell, reading):
        activity.update(values, indices)
        top.update(values, indices, [train.keys[place] for place in places])
    return activity.rank(more_than=n_top, n=n), top


def held_out_images(
    split: "LabelledSplit",
    codes: "Iterator[tuple[Tensor, Tensor, list[int]]]",
    ranking: "Ranking",
    classes: "NDArray[np.int64]",
    n_top: int,
) -> "SplitImages":
    """Return the top images of ranked latents on a split, and their activations on all of its images."""
    import numpy as np
    import torch

    from diffprobe.analysis.top_samples import TopSamples

    n = len(ranking.latents)
    column = torch.full((ranking.n_latents,), n)  # the last column collects what is not ranked
    column[torch.from_numpy(ranking.latents)] = torch.arange(n)
    top = TopSamples(ranking.n_latents, n_top)
    activations = np.zeros((len(split), n), dtype=np.float32)
    for values, indices, places in codes:
        here = column[indices.cpu()]
        kept = torch.where(here < n, values.cpu().relu(), 0.0)
        top.update(kept, indices, [split.keys[place] for place in places])
        batch = torch.zeros(len(places), n + 1).scatter_reduce_(1, here, kept.float(), "amax")
        activations[places] = batch[:, :n].numpy()
    return split.images(top, ranking, n_top, classes=classes, activations=activations)


class LabelledSplit:
    """The images of a split that have a class.

    Args:
        name: name of the split.
        table: its features.
        label: class of each sample of the table, -1 for none.
        groups: id of the group of each sample, -1 for a group of its own; None where all are.
        n_classes: number of classes of the data set.
    """

    def __init__(
        self, name: str, table: "FeatureTable", label: "Tensor", groups: "Tensor | None", n_classes: int
    ) -> None:
        import numpy as np

        self.name, self.n_classes, self._table = name, n_classes, table
        known = (label >= 0).numpy()
        rows = np.flatnonzero(known)
        self._place = np.where(known, known.cumsum() - 1, -1)
        self.keys = [table.keys[row] for row in rows.tolist()]
        self.label: NDArray[np.int64] = label.numpy()[rows].astype(np.int64)
        ids = np.full(len(label), -1) if groups is None else groups.numpy()
        self.groups = Groups.of_values(ids[rows].astype(np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    def require(self, n_top: int, target: str) -> None:
        """Check that classes can be compared. Raises: EmptyClass, with the split and what it lacks."""
        fix = "another target: target=NAME"
        if len(self) == 0:
            raise EmptyClass(f"split '{self.name}': none of {len(self._table):,} images has a '{target}'.", fix=fix)
        n_classes = len(set(self.label.tolist()))
        if n_classes < 2:
            raise EmptyClass(
                f"split '{self.name}': the {len(self):,} images with a '{target}' are of {n_classes} class; whether a "
                "latent is pure needs at least two.",
                fix=fix,
            )
        if len(self) < n_top:
            raise EmptyClass(
                f"split '{self.name}' has {len(self):,} images with a '{target}'; the top {n_top} of a latent need as "
                "many.",
                fix=f"n_top_images={max(len(self) - 1, 2)} or less, or more images",
            )

    def codes(self, sae: "KSAE", cell: str, reading: Reading) -> "Iterator[tuple[Tensor, Tensor, list[int]]]":
        """Yield values and indices of the codes of batches, and the places of their images in `keys`."""
        from diffprobe.evaluation.sample_codes import dense_codes, sample_codes

        reader: Callable[..., Iterator[tuple[Code, Tensor, FeatureTable]]]
        reader = sample_codes if reading == "described" else dense_codes
        for code, rows, _ in reader(sae, self._table, [cell]):
            places = self._place[rows.numpy()]
            kept = places >= 0
            if kept.all():
                yield code.values, code.indices, places.tolist()
            elif kept.any():
                yield code.values[kept], code.indices[kept], places[kept].tolist()

    def images(self, top: "TopSamples", ranking: "Ranking", n_top: int, **more: Any) -> "SplitImages":
        """Return the images of ranked latents, given the `TopSamples` of all latents."""
        import numpy as np

        from diffprobe.analysis.label_scores import SplitImages

        place = {key: i for i, key in enumerate(self.keys)}
        samples = top.result()
        found = np.full((len(ranking.latents), n_top), -1, dtype=np.int64)
        for row, latent in enumerate(ranking.latents.tolist()):
            places = [place[sample.key] for sample in samples[latent]]
            found[row, : len(places)] = places
        return SplitImages(label=self.label, groups=self.groups, top=found, **more)


def _splits(config: LabelsEvaluation, trained: TrainedRun, source: "PageFeatures") -> list[LabelledSplit]:
    """Return the training split and the held-out ones."""
    data = trained.config.data
    if config.target == "label":
        names: tuple[str, ...] = source.classes
    elif config.target in source.attributes:
        names = source.attributes[config.target]
    else:
        raise unknown("target", config.target, ["label", *source.attributes])
    group = config.group_attribute or source.group or SINGLE_SAMPLES
    if group not in (SINGLE_SAMPLES, *source.attributes):
        raise unknown("group_attribute", group, source.attributes)
    if data.train_split in config.held_out:
        raise ConfigError(f"held_out has the training split '{data.train_split}', which is always measured.")
    splits = []
    for split in (data.train_split, *(config.held_out or (data.val_split, data.test_split))):
        try:
            table = source.table(split)
        except UnknownName:
            if split == data.val_split and not config.held_out:
                continue  # a data set without a validation split
            raise
        label = table.label if config.target == "label" else table.attributes[config.target]
        groups = None if group == SINGLE_SAMPLES else table.attributes[group]
        found = LabelledSplit(split, table, label, groups, len(names))
        found.require(config.n_top_images, config.target)
        splits.append(found)
    return splits


def _record(
    score: "LabelScore",
    context: dict[str, Any],
    split: str,
    n_images: int,
    cell: str,
    probe: str,
    config: LabelsEvaluation,
) -> MetricRecord:
    """Return the record of a score: `sigma_label_described`, and `sigma_label_described@100` for fewer latents."""
    controls = {"chance": score.chance}
    detail = {**context, "n_latents": score.n_latents, "n_top_images": config.n_top_images}
    if score.null is None:
        detail["no_null"] = score.no_null
    else:
        detail["null"] = score.null.describe()
        controls["permuted_labels"] = score.null.mean
    if score.renumbered is not None:
        mean, low, high = score.renumbered
        controls["renumbered_classes"] = mean
        detail["renumbered"] = {"mean": mean, "low": low, "high": high, "n": config.n_renumberings}
    of_first = "" if score.top == config.top[-1] else f"@{score.top}"
    return MetricRecord(
        name=f"{score.measure}_{context['reading']}{of_first}", value=score.value, split=split, n=n_images,
        cell=cell, target=config.target, probe=probe, controls=controls, detail=detail,
    )  # fmt: skip


def summary_lines(result: RunResult) -> list[str]:
    """Return the scores of a result as lines: by cell, split and reading, over the largest number of latents."""
    heading: tuple[object, ...] | None = None
    lines = []
    for record in result.metrics:
        if "@" in record.name:  # a mean over fewer latents
            continue
        detail = record.detail
        if (place := (record.cell, record.split, detail["reading"])) != heading:
            heading = place
            lines.append(
                f"{record.cell}, {record.split}, {detail['reading']}: {detail['n_eligible']:,} latents are active on "
                f"more than {detail['n_top_images']} training images; n={record.n:,}"
            )
        chance = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in record.controls.items())
        p = f"; p {detail['null']['p']:.3g}" if "null" in detail else f"; no test: {detail['no_null']}"
        lines.append(f"  {record.name} = {record.value:.3f}  {detail['n_latents']:,} latents  ({chance}{p})")
    return lines
