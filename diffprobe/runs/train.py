"""`diffprobe train`: one probe on the features of one backbone, from a validated config to `result.json`.

Whatever can be validated without features is validated before any are opened. `training/kinds` has what differs between
kinds of probes.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from diffprobe.config.controls import has_one_cell
from diffprobe.config.schema import RunConfig
from diffprobe.core.atomic_file import remove_unfinished
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.core.processes import is_main_process
from diffprobe.core.restarts import RECORD, written_by_this_job
from diffprobe.core.result import MEMBERS, RESULT_FILE, StartTime
from diffprobe.core.signals import end_on_sigterm
from diffprobe.runs.extract import backbone_and_features
from diffprobe.runs.grid import seeds_of
from diffprobe.runs.label_injection import mark_injection
from diffprobe.runs.massive_notes import list_massive
from diffprobe.runs.plan import RunPlan, also_read, plan, training_of
from diffprobe.runs.provenance import inputs_of, require_no_leak, require_splits
from diffprobe.runs.run_media import media_of
from diffprobe.runs.seeds import recorded_seeds

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from diffprobe.features.datamodule import FeatureSource
    from diffprobe.training.module import ProbeModule


def train(config: RunConfig, *, callbacks: "Sequence[Callback]" = ()) -> Path:
    """Train, evaluate on validation and test, and write probe and `result.json` into the run's folder.

    The points of a grid train together; probe and `result.json` of each are in members/<name> below the run's folder,
    whose own `result.json` then has no metrics.

    An interrupted run continues from its last checkpoint (`trainer.resume`); a finished one is trained anew, and keeps
    its files until everything that can be validated before training has been. A job that SLURM starts again after it
    has written its result returns that.

    Args:
        config: the run.
        callbacks: Lightning callbacks that watch the run; none of them may change what is measured.

    Returns: the path of `result.json`. All processes of a DDP run return it; the main one writes it.
    Raises: ConfigError, UnknownName, and what opening the features or the trackers raises; ConfigError or SchemaError
        if the run would continue with other inputs or from a damaged checkpoint; Terminated at SIGTERM.
    """
    started_at = StartTime.now()
    planned = plan(config)
    import lightning

    from diffprobe.training import loggers
    from diffprobe.training.checkpoint import CONFIG, LAST, find_checkpoint, forget, note_inputs, require_resumable
    from diffprobe.training.launch import cluster_environment
    from diffprobe.training.progress import StepHeartbeat
    from diffprobe.training.requeue import Requeue
    from diffprobe.training.run_progress import phase_notes
    from diffprobe.training.start import begin
    from diffprobe.training.trainer import fit, honest_ends, make_trainer, quiet

    cluster_environment(config.trainer, os.environ)  # refuses processes that nobody asked for, before anything is read
    record = planned.run_dir / RECORD
    if written_by_this_job(record, planned.run_dir / RESULT_FILE):
        return planned.run_dir / RESULT_FILE
    with end_on_sigterm(), Requeue() as requeue, honest_ends(requeue), quiet():
        phase_notes(config.trainer.enable_progress_bar)("opening the features")
        source = make_source(config)
        module = make_module(planned, source)
        _check_seed(config, module, source)
        source.setup("fit")  # opens the backbone of live features, so that a refusal comes before files are removed
        inputs = {CONFIG: digest_json(planned.tree), **inputs_of(source)}
        resume = config.trainer.resume or written_by_this_job(record, planned.run_dir / LAST)
        checkpoint = find_checkpoint(planned.run_dir, resume=resume)
        if checkpoint is not None:
            require_resumable(checkpoint, inputs)
        lightning.seed_everything(config.seed, workers=True, verbose=False)
        watching = [*callbacks, StepHeartbeat()]
        trainer = make_trainer(config.trainer, run_dir=planned.run_dir, callbacks=watching, requeue=requeue)
        checkpoint = begin(trainer, planned.run_dir, checkpoint)
        if is_main_process():
            planned.run_dir.mkdir(parents=True, exist_ok=True)
            remove_unfinished(planned.run_dir)
        logger = loggers.make_logger(
            config.logger,
            run_dir=planned.run_dir,
            experiment=config.experiment,
            run_name=f"{config.experiment or config.probe.kind}/{planned.name}",
            job_type=config.probe.kind,
            tree=planned.tree,
            tags=_tags(config),
            resume=checkpoint is not None or written_by_this_job(record, planned.run_dir / loggers.RUN_FILE),
        )
        trainer.logger = logger
        if checkpoint is None and is_main_process():
            forget(planned.run_dir, *(planned.run_dir / MEMBERS / point.name for point in planned.points))
            note_inputs(planned.run_dir, inputs)
        if _has_steps(module):
            fit(trainer, module, source, checkpoint)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
        module.save_together(planned.run_dir / "probes")
        if trainer.is_global_zero:
            _write(planned, module, source, logger, started_at)
        trainer.strategy.barrier("result written")
    return planned.run_dir / RESULT_FILE


def make_source(config: RunConfig) -> "FeatureSource":
    """Make the DataModule of a run: the backbone or what its control puts in its place, and the cells that it reads."""
    from diffprobe.features.live import LiveFeatures
    from diffprobe.features.stored import StoredFeatures

    backbone, features = backbone_and_features(config)
    cells = None if config.probe.cell is None or has_one_cell(config.control) else [config.probe.cell]
    cells = list(config.probe.grid.get("cell", ())) or cells
    if cells is not None:
        cells += also_read(config, cells)
    source: FeatureSource
    if features.source == "live":
        source = LiveFeatures(backbone, config.data, features, seed=config.seed, cells=cells)
    else:
        source = StoredFeatures(
            backbone, config.data, features, seed=config.seed, cells=cells, balance=config.probe.balance
        )
    require_splits(config.data, source.request.shard_set)
    require_no_leak(config.data, source.request.shard_set)
    training_of(config.probe.kind).check_cells(config, list(source.widths))
    return source


def make_module(planned: RunPlan, source: "FeatureSource") -> "ProbeModule":
    """Make the LightningModule of a run for the features that `source` gives. Raises: UnknownName for a target."""
    return cast("ProbeModule", training_of(planned.config.probe.kind).make_module(planned, source))


def _check_seed(config: RunConfig, module: "ProbeModule", source: "FeatureSource") -> None:
    """Refuse a seed that changes nothing: its results would look like a spread of 0. Raises: ConfigError."""
    is_drawn = source.balance is not None
    if config.seed and not module.seed_counts and not is_drawn and _n_train(config, source) <= config.data.batch_size:
        raise ConfigError(
            f"seed={config.seed} has no effect: the weights of probe '{config.probe.name}' start at zero, an epoch is "
            "one batch, and no control is drawn.",
            fix="seed=0; for a spread, features.seed varies the noise, and a smaller data.batch_size the order",
        )


def _n_train(config: RunConfig, source: "FeatureSource") -> int:
    """Return the number of samples of an epoch."""
    from diffprobe.features.request import shard_entries

    shards = shard_entries(source.request.view, config.data.train_split, config.data.limit)
    return sum(shard.n for shard in shards) * source.views_per_epoch


def _has_steps(module: "ProbeModule") -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _tags(config: RunConfig) -> tuple[str, ...]:
    control = None if config.control == "none" else f"control:{config.control}"
    named = (config.probe.kind, config.probe.name, config.paper, config.table, control)
    return tuple(tag for tag in named if tag)


def _write(
    planned: RunPlan, module: "ProbeModule", source: "FeatureSource", logger: Any, started_at: StartTime
) -> None:
    from diffprobe.training import loggers

    config = planned.config
    ordered = config.probe.kind == "sae" or source.balance is not None
    ordered = ordered or _n_train(config, source) > config.data.batch_size
    group = source.request.shard_set.group
    written: dict[str, str] = {}  # all probes of the run; the record of a grid lists those of its members

    def write(folder: Path, run: str, tree: dict[str, Any], seeds: dict[str, int], part: "ProbeModule | None") -> Any:
        from diffprobe.core.result import make_result, predictions_file, write_result
        from diffprobe.probes.predictions import save_predictions
        from diffprobe.probes.serialization import TENSORS

        saved = part.save(folder / "probes") if part else []
        artifacts = {str(path.relative_to(folder)): digest_file(path / TENSORS) for path in saved}
        for split, predictions in (part.predictions if part else {}).items():
            name = predictions_file(split)
            save_predictions(replace(predictions, group=group), folder / name)
            artifacts[name] = digest_file(folder / name)
        written.update({str((folder / name).relative_to(planned.run_dir)): sha for name, sha in artifacts.items()})
        records = [record for split in part.scores for record in part.records(split)] if part else []
        result = make_result(
            run=run,
            experiment=config.experiment,
            kind=config.probe.kind,
            config=tree,
            seeds={
                **recorded_seeds(seeds, part.seed_varies if part else (), ordered=ordered),
                "noise": config.features.seed,
                "random_weights": config.backbone.random_seed,
            },
            metrics=list_massive(mark_injection(records, source.request, config.probe.kind), source),
            started_at=started_at,
            artifacts={**(artifacts if part else written), **inputs_of(source)},
            wandb_run_id=loggers.run_id(logger),
        )
        write_result(result, folder / RESULT_FILE)
        return result

    whole: ProbeModule | None = module
    members = {}
    if planned.points:
        for point, member in zip(planned.points, module.members, strict=True):
            folder = planned.run_dir / MEMBERS / point.name
            run = f"{planned.name}/{point.name}"
            members[point.name] = write(folder, run, point.tree, seeds_of(point, config), member)
        whole = None  # the metrics are in the records of the members; a table must not find them twice
    result = write(planned.run_dir, planned.name, planned.tree, {"run": config.seed}, whole)
    loggers.finish(logger, result, members=members, media=lambda: media_of(result, members))
