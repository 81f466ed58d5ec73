"""`diffprobe eval sae`: what a trained autoencoder's reconstruction costs the model that its features come from.

Owns the way from a run's folder to the samples, the network and the autoencoders. What is measured is
`analysis/spliced_error.py`.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffprobe.config.parse import parse
from diffprobe.config.schema import RunConfig
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, EmptyClass, SchemaError, WeightsMismatch, WeightsMissing, unknown
from diffprobe.core.result import MetricRecord, RunResult, make_result, read_result, write_result
from diffprobe.experiment.extract import backbone_and_features

if TYPE_CHECKING:
    from diffprobe.analysis.spliced_error import Baseline, HeldOut, SplicedError
    from diffprobe.backbones.cell import Cell

RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class SaeEvaluation:
    """What `diffprobe eval sae` measures (`schema:` of its experiment file)."""

    experiment: str
    """Name of the experiment."""
    run: str = ""
    """Folder of a trained sae run."""
    timesteps: tuple[int, ...] = ()
    """Timesteps at which features are replaced; none takes those that the autoencoder was trained on."""
    split: str | None = None
    """Split that is denoised; None takes the run's test split."""
    limit: int | None = None
    """Samples, the first ones in shard order; None takes all."""
    group_attribute: str | None = None
    """Samples that share it are resampled together for the intervals; one without it stands alone, None: all do."""
    backbone: str | None = None
    """Where the backbone is now; None takes the run's own path."""
    data: str | None = None
    """Where the shards are now; None takes the run's own path."""
    device: str = "auto"
    """Torch device; "auto" takes the accelerator if there is one."""
    seed: int = 0
    """Seed of the bootstrap; that of the noise is the run's."""
    output: str = "runs"
    """Folder of runs."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished sae run."""

    folder: Path
    """Where it is."""
    result: RunResult
    """Its result."""
    config: RunConfig
    """Its configuration, with data and backbone where they are now."""

    def saes(self) -> dict[str, Path]:
        """Return the folders of its autoencoders by name.

        Raises: WeightsMissing, SchemaError if one is not there or not the one that the result is about.
        """
        from diffprobe.probes.saving import TENSORS

        folders = {name: self.folder / name for name in self.result.artifacts if not name.startswith("input/")}
        for name, folder in folders.items():
            if not (folder / TENSORS).is_file():
                raise WeightsMissing(
                    f"the run '{self.folder}' has no weights '{name}/{TENSORS}'.", fix="train it again"
                )
            if digest_file(folder / TENSORS) != self.result.artifacts[name]:
                raise SchemaError(f"'{folder / TENSORS}' is not the file that the run's {RESULT} is about.")
        return folders


def open_run(config: SaeEvaluation) -> Trained:
    """Read a run's result and judge that it is one of an autoencoder. Raises: ConfigError, SchemaError."""
    folder = Path(config.run)
    if not config.run or not (folder / RESULT).is_file():
        raise ConfigError(
            f"'{config.run}' is not the folder of a finished run: it has no {RESULT}.",
            fix="name the folder that `diffprobe train` printed: diffprobe eval sae runs/emoji/sae/DIGEST",
        )
    result = read_result(folder / RESULT)
    if result.kind != "sae":
        raise ConfigError(f"'{config.run}' is a run of kind '{result.kind}'; only those of kind 'sae' reconstruct.")
    run: RunConfig = parse(RunConfig, result.config, at=f"{folder / RESULT}: config")
    backbone = replace(run.backbone, path=config.backbone or run.backbone.path, device=config.device)
    data = replace(run.data, path=config.data or run.data.path, limit=config.limit or run.data.limit)
    return Trained(folder=folder, result=result, config=replace(run, backbone=backbone, data=data))


def evaluate_sae(config: SaeEvaluation) -> Path:
    """Measure every autoencoder of a run, write `result.json`, and return its path.

    Raises: ConfigError for a folder that is no sae run, or features that cannot be put back; WeightsMissing,
        WeightsMismatch, SchemaError for files that do not fit the run; UnknownName, BadTimestep, EmptyClass; what
        opening shards and backbone raises.
    """
    from diffprobe.core.memory import keep_freed_memory

    started_at = time.time()
    keep_freed_memory()
    trained = open_run(config)
    saes = trained.saes()
    tree = {key: value for key, value in asdict(config).items() if key not in ("output", "run", "device")}
    tree |= {"run": trained.result.run, "trained": trained.result.config}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "weights": trained.result.artifacts})[:12]
    with _progress() as progress:
        metrics = _measure(config, trained, saes, progress)
    run_dir.mkdir(parents=True, exist_ok=True)
    result = make_result(
        run=run_dir.name,
        experiment=config.experiment,
        kind="sae_eval",
        config=tree,
        seeds={**trained.result.seeds, "bootstrap": config.seed},
        metrics=metrics,
        started_at=started_at,
        artifacts={f"input/{name.removeprefix('input/')}": sha for name, sha in trained.result.artifacts.items()},
    )
    write_result(result, run_dir / RESULT)
    return run_dir / RESULT


def _measure(config: SaeEvaluation, trained: Trained, saes: dict[str, Path], progress: Any) -> list[MetricRecord]:
    """Measure all autoencoders; those of one tap share the network and the errors without them."""
    from diffprobe.analysis.spliced_records import Described, spliced_records
    from diffprobe.probes.sae import KSAE

    opened: dict[tuple[Any, ...], _Opened] = {}
    metrics: list[MetricRecord] = []
    for name, folder in saes.items():
        sae = KSAE.from_pretrained(folder).eval().requires_grad_(False)
        cells = _cells_of(folder, trained.result)
        cell, timesteps = cells[0], config.timesteps or tuple(cell.timestep for cell in cells)
        key = (cell.tap, cell.condition, cell.pool, timesteps, sae.d_in)
        if key not in opened:
            opened[key] = _open(config, trained, cell, timesteps, sae.d_in, progress)
        here = opened[key]
        sae.to(here.network.device)
        task = progress.add_task(f"{name}: reconstruction", total=len(here.samples) * len(timesteps))
        tick = partial(progress.advance, task)
        spliced = here.network.spliced(here.samples, timesteps, partial(_reconstruct, sae), tick)
        about = Described(
            cell=cell,
            several=len(cells) > 1,
            split=config.split or trained.config.data.test_split,
            probe=trained.config.probe.name,
            clusters=here.clusters,
            seed=config.seed,
            detail={
                "sae": name,
                "trained_on": ", ".join(cell.name for cell in cells),
                "replaced": here.network.splice.says,
                "target": here.network.target,
                "draws": here.network.plan.draws,
            },
        )
        metrics += spliced_records(here.baseline, spliced, about)
    return metrics


def _reconstruct(sae: Any, x: Any) -> Any:
    return sae(x)[0]


@dataclass(frozen=True)
class _Opened:
    """A network with a tap, the samples, and their errors without any autoencoder."""

    network: "SplicedError"
    samples: "HeldOut"
    clusters: list[Any]
    baseline: "Baseline"


def _open(
    config: SaeEvaluation, trained: Trained, cell: "Cell", timesteps: tuple[int, ...], d_in: int, progress: Any
) -> _Opened:
    from diffprobe.analysis.splice import Splice
    from diffprobe.analysis.spliced_error import SplicedError
    from diffprobe.backbones.quiet import quiet_libraries
    from diffprobe.features.request import Request

    Splice(cell.pool)  # what cannot be put back is refused before anything is opened
    backbone, features = backbone_and_features(trained.config)
    features = replace(features, taps=(cell.tap,), timesteps=timesteps, snr=())
    request = Request(backbone, trained.config.data, features)
    if request.shard_set.digest != trained.result.artifacts.get("input/shards"):
        raise SchemaError(
            f"'{trained.config.data.path}' is not the shard set that the run was trained on.",
            f"digest: the run's {trained.result.artifacts.get('input/shards')}, this one's {request.shard_set.digest}",
            fix="name the right one: data=FOLDER",
        )
    if config.group_attribute is not None and config.group_attribute not in request.shard_set.attributes:
        raise unknown("group_attribute", config.group_attribute, request.shard_set.attributes)
    (width,) = set(request.plan.widths.values())
    if d_in != width:
        raise WeightsMismatch(
            f"the autoencoder takes features of width {d_in}; tap '{cell.tap}' of '{backbone.path}' gives {width}."
        )
    with quiet_libraries():
        network = SplicedError(request.plan, cell.tap, device=backbone.device)
    split = config.split or trained.config.data.test_split
    samples, clusters = _hold_out(config, request, network, cell, split)
    passes = (3 if network.splice.is_pooled else 2) * len(timesteps)
    task = progress.add_task(f"{cell.tap}: untouched, and mean ablation", total=len(samples) * passes)
    baseline = network.baseline(samples, timesteps, partial(progress.advance, task))
    return _Opened(network, samples, clusters, baseline)


def _hold_out(
    config: SaeEvaluation, request: Any, network: "SplicedError", cell: "Cell", split: str
) -> "tuple[HeldOut, list[Any]]":
    """Encode a split, say what each sample is told, and name the cluster of each."""
    import torch

    from diffprobe.analysis.spliced_error import HeldOut
    from diffprobe.backbones.told import SampleTexts, tell
    from diffprobe.features.extract import sample_texts
    from diffprobe.shards.stream import SampleStream, make_loader

    (branch,) = (branch for branch in request.plan.branches if branch.condition == cell.condition)
    data = request.data
    stream = SampleStream(
        request.shard_set, split, resolution=request.plan.resolution, fields=request.fields, on_error=data.on_error,
        limit=data.limit,
    )  # fmt: skip
    latents, keys, told, clusters = [], [], [], []
    for batch in make_loader(stream, data.batch_size, data.num_workers):
        told += tell(branch, SampleTexts(**sample_texts(request.shard_set, batch, batch.captions)))
        latents.append(network.encode_images(batch.images))
        keys += batch.keys
        groups = batch.attributes[config.group_attribute].tolist() if config.group_attribute else [-1] * len(batch)
        clusters += [group if group >= 0 else key for group, key in zip(groups, batch.keys, strict=True)]
    if not keys:
        raise EmptyClass(f"split '{split}' of '{data.path}' has no sample without a fault.")
    return HeldOut(torch.cat(latents), keys, told), clusters


def _cells_of(folder: Path, result: RunResult) -> "tuple[Cell, ...]":
    """Return the cells that an autoencoder was trained on, by its own file, else all of the run (of one tap)."""
    import json

    from diffprobe.backbones.cell import Cell
    from diffprobe.probes.saving import SETTINGS

    named = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["settings"].get("cell")
    names = [named] if named else sorted({record.cell for record in result.metrics if record.cell})
    cells = sorted((Cell.parse(name) for name in names), key=lambda cell: cell.timestep)
    if len({(cell.tap, cell.condition, cell.pool) for cell in cells}) != 1:
        raise SchemaError(f"'{folder}' does not say which cells it was trained on.", f"cells of the run: {names}")
    return tuple(cells)


def _progress() -> AbstractContextManager[Any]:
    from rich.progress import Progress

    return Progress(transient=True)
