"""`diffprobe eval sae`: the denoising error of a backbone with the reconstruction of a trained autoencoder in place.

Opens the run, its backbone and held-out samples; `scoring/intervention_error.py` measures the errors, and
`analysis/loss_recovered.py` turns them into records.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffprobe.config.validators import a_device, at_least
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, SchemaError, WeightsMismatch
from diffprobe.core.groups import SINGLE_SAMPLES
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import (
    BACKBONE,
    INPUT,
    RESULT_FILE,
    SHARDS,
    MetricRecord,
    StartTime,
    make_result,
    write_result,
)
from diffprobe.evaluation.held_out import encode_split, group_of
from diffprobe.evaluation.load_sae_run import TrainedRun, open_runs
from diffprobe.runs.extract import backbone_and_features
from diffprobe.runs.provenance import backbone_digest

if TYPE_CHECKING:
    from diffprobe.backbones.cell import Cell
    from diffprobe.features.request import Request
    from diffprobe.scoring.intervention_error import Baseline, SplicedError
    from diffprobe.scoring.intervention_network import HeldOut


@dataclass(frozen=True, kw_only=True)
class SaeEvaluation:
    """Settings of `diffprobe eval sae` (experiment files of kind `evaluate_sae`)."""

    experiment: str
    """Name of the experiment."""
    run: str = ""
    """Folder of a trained sae run; for a grid, all members are measured."""
    timesteps: tuple[int, ...] = ()
    """Timesteps at which features are replaced; empty for those that the autoencoder was trained on."""
    split: str | None = None
    """Split that is denoised; None for the test split of the run."""
    limit: int | None = None
    """Number of samples, the first ones in shard order; None for the `data.limit` of the run."""
    train_limit: int = 512
    """Number of training samples whose mean feature is put in place of all (mean ablation), the first ones in shard
    order, and at most `limit`."""
    group_attribute: str | None = None
    """Attribute whose values are the clusters of the bootstrap; None for the group that the data set names. Samples
    without a value, and all samples if it is "sample" or the data set names none, are clusters of their own."""
    backbone_path: str | None = None
    """Path of the backbone; None for the path of the run."""
    data_path: str | None = None
    """Folder of the shards; None for the path of the run."""
    device: str = "auto"
    """Torch device; "auto" for the accelerator if there is one."""
    seed: int = 0
    """Seed of the bootstrap. The seed of the noise is that of the run."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        at_least(1, limit=self.limit, train_limit=self.train_limit)
        a_device(self.device)


def evaluate_sae(config: SaeEvaluation) -> list[Path]:
    """Measure every autoencoder of a run, write `result.json`, and return its path; for a grid, one path per member.

    Raises: ConfigError for a folder that is not an sae run, or for features that cannot be put back; WeightsMissing,
        WeightsMismatch, SchemaError for files that do not fit the run; UnknownName, BadTimestep, EmptyClass; the errors
        of opening shards and backbone.
    """
    from diffprobe.core.memory import keep_freed_memory

    keep_freed_memory()
    runs = [(_with_current_paths(config, trained), trained.saes()) for trained in open_runs(config.run)]
    runs.sort(key=lambda run: [cell.name for folder in run[1].values() for cell in run[0].cells(folder)])
    networks: dict[tuple[Any, ...], _Opened] = {}
    with ProgressDisplay(transient=True) as progress:
        return [_evaluate(config, trained, saes, networks, progress) for trained, saes in runs]


def _with_current_paths(config: SaeEvaluation, trained: TrainedRun) -> TrainedRun:
    """Return the run with the paths of data and backbone that `config` sets."""
    run = trained.config
    backbone = replace(run.backbone, path=config.backbone_path or run.backbone.path, device=config.device)
    limit = run.data.limit if config.limit is None else config.limit
    data = replace(run.data, path=config.data_path or run.data.path, limit=limit)
    return replace(trained, config=replace(run, backbone=backbone, data=data))


def _evaluate(
    config: SaeEvaluation,
    trained: TrainedRun,
    saes: dict[str, Path],
    networks: "dict[tuple[Any, ...], _Opened]",
    progress: ProgressDisplay,
) -> Path:
    """Measure one run, or one member of a grid, and write its result."""
    started_at = StartTime.now()
    tree = {key: value for key, value in asdict(config).items() if key not in ("output", "run", "device")}
    tree |= {"run": trained.result.run, "trained": trained.result.config}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "weights": trained.result.artifacts})[:12]
    metrics = _measure(config, trained, saes, networks, run_dir, progress)
    result = make_result(
        run=run_dir.name,
        experiment=config.experiment,
        kind="sae_eval",
        config=tree,
        seeds={**trained.result.seeds, "bootstrap": config.seed},
        metrics=metrics,
        started_at=started_at,
        artifacts={INPUT + name.removeprefix(INPUT): sha for name, sha in trained.result.artifacts.items()},
    )
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


def _measure(
    config: SaeEvaluation,
    trained: TrainedRun,
    saes: dict[str, Path],
    networks: "dict[tuple[Any, ...], _Opened]",
    run_dir: Path,
    progress: ProgressDisplay,
) -> list[MetricRecord]:
    """Measure all autoencoders. Consecutive ones of one tap share the network and the errors without an autoencoder.

    Args:
        networks: holds the network that was opened last, one at a time: those of all taps may not fit into memory.
        run_dir: created after all checks and before the first measurement, so that the result can be written.
    """
    from diffprobe.analysis.loss_recovered import RecordContext, loss_recovered_records
    from diffprobe.probes.sae import KSAE
    from diffprobe.scoring.intervention_error import join_spliced

    metrics: list[MetricRecord] = []
    for name, folder in saes.items():
        sae = KSAE.from_pretrained(folder).eval().requires_grad_(False)
        if sae.reads == "pairs":
            raise ConfigError(
                f"'{trained.folder}' is a transcoder: it does not reconstruct what it reads.",
                fix="an autoencoder of one tap",
            )
        cells = trained.cells(folder)
        cell, timesteps = cells[0], config.timesteps or tuple(cell.timestep for cell in cells)
        for timestep in timesteps:
            sae.at(timestep)  # refuses a timestep that it was not trained on, before anything is opened
        key = (cell.tap, cell.condition, cell.pool, timesteps, sae.d_in)
        if key not in networks:
            networks.clear()
            networks[key] = _open(config, trained, cell, timesteps, sae.d_in, run_dir, progress)
        here = networks[key]
        sae.to(here.network.device)
        total, title = len(here.samples) * len(timesteps), f"{trained.result.run}: reconstruction"
        with progress.bar(total, title, unit="passes", keep=False) as bar:
            spliced = join_spliced(
                here.network.spliced(here.samples, (t,), partial(_reconstruct, sae.at(t)), bar.update)
                for t in timesteps
            )
        context = RecordContext(
            cell=cell,
            several=len(cells) > 1,
            split=config.split or trained.config.data.test_split,
            probe=trained.config.probe.name,
            clusters=here.clusters,
            seed=config.seed,
            detail={
                "sae": name,
                "trained_on": ", ".join(cell.name for cell in cells),
                "replaced": here.network.splice.description,
                "target": here.network.target,
                "draws": here.network.plan.draws,
                "clusters": here.group,
                "mean_of": f"{here.baseline.n_train} training samples",
            },
        )
        metrics += loss_recovered_records(here.baseline, spliced, context)
    return metrics


def _reconstruct(sae: Any, x: Any) -> Any:
    return sae(x)[0]


@dataclass(frozen=True)
class _Opened:
    """A network with an open tap, the samples, and their errors without an autoencoder."""

    network: "SplicedError"
    samples: "HeldOut"
    clusters: list[Any]
    group: str
    """Attribute whose values are the clusters, or "sample"."""
    baseline: "Baseline"


def _open(
    config: SaeEvaluation,
    trained: TrainedRun,
    cell: "Cell",
    timesteps: tuple[int, ...],
    d_in: int,
    run_dir: Path,
    progress: ProgressDisplay,
) -> _Opened:
    request, network = open_tap(trained, cell, timesteps, d_in)
    group = group_of(request.shard_set, config.group_attribute)
    split = config.split or trained.config.data.test_split
    run_dir.mkdir(parents=True, exist_ok=True)
    data = trained.config.data
    encoded = encode_split(request, network, split, group, limit=data.limit)
    limit = min(config.train_limit, data.limit or config.train_limit)
    train = encode_split(request, network, data.train_split, SINGLE_SAMPLES, limit=limit)
    samples, means_of = encoded.of_condition[cell.condition], train.of_condition[cell.condition]
    passes = len(samples) * (3 if network.splice.is_pooled else 2) + len(train)
    title = f"{cell.tap}: unchanged model and mean ablation"
    with progress.bar(passes * len(timesteps), title, unit="passes", keep=False) as bar:
        baseline = network.baseline(samples, means_of, timesteps, bar.update)
    return _Opened(network, samples, encoded.groups, group, baseline)


def open_tap(
    trained: TrainedRun, cell: "Cell", timesteps: tuple[int, ...], d_in: int
) -> "tuple[Request, SplicedError]":
    """Open the data of a run, and its backbone with the tap of a cell replaceable, after all checks without weights.

    Args:
        trained: the run, with the paths of data and backbone that are opened.
        cell: cell of an autoencoder.
        timesteps: timesteps that are read.
        d_in: width of the autoencoder.
    Raises: ConfigError for features that cannot be put back, and a backbone without a denoising error; SchemaError for
        other shards than those of the run; WeightsMismatch for another backbone or width; BadTimestep; the errors of
        opening shards and backbone.
    """
    from diffprobe.backbones.intervention import Splice
    from diffprobe.backbones.library_logging import quiet_libraries
    from diffprobe.features.request import Request
    from diffprobe.scoring.intervention_error import SplicedError
    from diffprobe.scoring.intervention_network import require_replaceable

    Splice(cell.pool)  # raises for a pooling that cannot be put back, before anything is opened
    backbone, features = backbone_and_features(trained.config)
    features = replace(features, taps=(cell.tap,), timesteps=timesteps, snr=())
    request = Request(backbone, trained.config.data, features)
    inputs = trained.result.artifacts
    if request.shard_set.digest != inputs.get(SHARDS):
        raise SchemaError(
            f"'{trained.config.data.path}' is not the shard set that the run was trained on.",
            f"digest of the run: {inputs.get(SHARDS)}, of this set: {request.shard_set.digest}",
            fix="set the folder of that shard set: data_path=FOLDER",
        )
    require_replaceable(request.plan)
    (width,) = set(request.plan.widths.values())
    if d_in != width:
        raise WeightsMismatch(
            f"the autoencoder takes features of width {d_in}; tap '{cell.tap}' of '{backbone.path}' has width {width}."
        )
    digest = backbone_digest(request.plan.fingerprint)
    if digest != inputs.get(BACKBONE):
        raise WeightsMismatch(
            f"'{backbone.path}' is not the backbone that the run was trained on.",
            f"digest of the run: {inputs.get(BACKBONE, 'not recorded')}, of this backbone: {digest}",
            fix="set the folder of that backbone: backbone_path=FOLDER; or train on this one",
        )
    with quiet_libraries():
        return request, SplicedError(request.plan, cell.tap, device=backbone.device)
