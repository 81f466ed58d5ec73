"""`diffprobe train` for experiments that train a part of a diffusion model: autoencoder, text encoder or denoiser.

Losses and export are in `generative/`. An interrupted run continues from its last checkpoint and ends with the same
weights as an uninterrupted one.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.config.parse import record_tree
from diffprobe.config.schema import DataConfig
from diffprobe.core.atomic_file import atomic_folder, remove_unfinished
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.restarts import RECORD, written_by_this_job
from diffprobe.core.result import INPUT, RESULT_FILE, SHARDS, MetricRecord, StartTime, make_result, write_result
from diffprobe.core.signals import end_on_sigterm
from diffprobe.runs.dense_records import dense_records
from diffprobe.runs.held_out_losses import held_out_records
from diffprobe.runs.probed_records import with_intervals
from diffprobe.runs.run_media import media_of

if TYPE_CHECKING:
    from diffprobe.generative.run_settings import GenerativeTraining

WEIGHTS = "weights"
"""Folder of the trained weights in diffusers' format, inside the run folder."""


def run_dir_of(config: "GenerativeTraining") -> Path:
    """Return the run folder: <output>/<experiment>/<first 12 digits of the digest of the configuration>."""
    return Path(config.output) / config.experiment / _digest(config)[:12]


def _digest(config: "GenerativeTraining") -> str:
    """Return the digest of the configuration, which does not depend on the place of the output."""
    return digest_json({key: value for key, value in record_tree(config).items() if key != "output"})


def plan_generative(config: "GenerativeTraining", *, fetch: bool = True) -> Path:
    """Validate a run without loading data or weights, and return its folder.

    Args:
        fetch: look for the weights of a model of the hub, which downloads them where that is allowed; else they are
            not looked for.


    Raises: ConfigError for more than one process; WeightsMissing if the weights that it starts from do not exist.
    """
    if config.trainer.devices != 1 or config.trainer.num_nodes != 1:
        raise ConfigError(
            "generative training runs in one process.",
            f"given: trainer.devices={config.trainer.devices} trainer.num_nodes={config.trainer.num_nodes}",
            fix="trainer.devices=1 trainer.num_nodes=1",
        )
    if fetch or not _is_on_the_hub(getattr(config, "model", None)):
        config.require_weights()
    return run_dir_of(config)


def _is_on_the_hub(model: object) -> bool:
    from diffprobe.backbones.hub import is_hub_id

    return isinstance(model, str) and is_hub_id(model) and not Path(model).exists()


def train_generative(config: "GenerativeTraining") -> Path:
    """Train, save the weights and write `result.json`; return its path.

    Raises: the errors of `plan_generative`, of opening the data and of the logger; ConfigError if an interrupted run
        would continue with other input files; NonFinite if a validation metric is not finite, in which case no weights
        are written.
    """
    run_dir = plan_generative(config)
    started_at = StartTime.now()
    keep_freed_memory()
    import lightning

    from diffprobe.generative.ema import EMACallback
    from diffprobe.training import loggers
    from diffprobe.training.checkpoint import CONFIG, LAST, find_checkpoint, forget, note_inputs, require_resumable
    from diffprobe.training.launch import cluster_environment
    from diffprobe.training.progress import StepHeartbeat
    from diffprobe.training.requeue import Requeue
    from diffprobe.training.run_progress import phase_notes
    from diffprobe.training.start import begin
    from diffprobe.training.trainer import fit, honest_ends, make_trainer, quiet

    cluster_environment(config.trainer, os.environ)  # refuses processes that nobody asked for, before anything is read
    record = run_dir / RECORD
    if written_by_this_job(record, run_dir / RESULT_FILE):
        return run_dir / RESULT_FILE
    tree = record_tree(config)
    with end_on_sigterm(), Requeue() as requeue, honest_ends(requeue):
        resume = config.trainer.resume or written_by_this_job(record, run_dir / LAST)
        checkpoint = find_checkpoint(run_dir, resume=resume)
        lightning.seed_everything(config.seed, workers=True, verbose=False)
        say = phase_notes(config.trainer.enable_progress_bar)
        say("opening the images and networks")
        module, data = config.make()
        inputs = inputs_of(config)
        noted = {CONFIG: _digest(config), **inputs}
        if checkpoint is not None:
            require_resumable(checkpoint, noted)
        with quiet():
            averaging = [EMACallback(config.ema_decay)] if config.ema_decay > 0 else []
            trainer = make_trainer(
                config.trainer,
                run_dir=run_dir,
                callbacks=[*averaging, StepHeartbeat()],
                requeue=requeue,
                accumulate_grad_batches=module.accumulation,
            )
            checkpoint = begin(trainer, run_dir, checkpoint)
            run_dir.mkdir(parents=True, exist_ok=True)
            remove_unfinished(run_dir)
            logger = loggers.make_logger(
                config.logger,
                run_dir=run_dir,
                experiment=config.experiment,
                run_name=f"{config.experiment}/{run_dir.name}",
                job_type="backbone",
                tree=tree,
                tags=("backbone",),
                resume=checkpoint is not None or written_by_this_job(record, run_dir / loggers.RUN_FILE),
            )
            trainer.logger = logger
            if checkpoint is None:
                forget(run_dir)
                note_inputs(run_dir, noted)
            fit(trainer, module, data, checkpoint)
            scores = trainer.validate(module, datamodule=data, verbose=False)[0]
            _require_finite(scores, run_dir)
            say("saving: weights and result")
            with atomic_folder(run_dir / WEIGHTS) as folder:
                module.save(folder)
    result = make_result(
        run=f"{config.experiment}/{run_dir.name}",
        experiment=config.experiment,
        kind=module.result_kind,
        config=tree,
        seeds={"seed": config.seed},
        metrics=[
            MetricRecord(
                name=name.removeprefix("val/"),
                value=float(value),
                split="val",
                n=len(data.val),
                detail=dict(module.facts),
            )
            for name, value in scores.items()
        ]
        + (
            list(module.records)
            if module.probed is None
            else with_intervals(module.records, module.probed, seed=config.seed)
        )
        + ([] if module.held_out is None else held_out_records(module.held_out, split="val", seed=config.seed))
        + ([] if module.dense_counts is None else dense_records(module.dense_counts, split="test", seed=config.seed)),
        started_at=started_at,
        artifacts={
            **{
                str(path.relative_to(run_dir / WEIGHTS)): digest_file(path)
                for path in sorted((run_dir / WEIGHTS).rglob("*.safetensors"))
            },
            **inputs,
        },
        wandb_run_id=loggers.run_id(logger),
    )
    write_result(result, run_dir / RESULT_FILE)
    loggers.finish(logger, result, media=lambda: media_of(result))
    return run_dir / RESULT_FILE


def inputs_of(config: "GenerativeTraining") -> dict[str, str]:
    """Return the digests of the inputs of a run: the shard set, if it reads one, and all else that it opens.

    Raises: WeightsMissing, and the errors of loading the index of the shards.
    """
    from diffprobe.shards.index import ShardSet

    found = {f"{INPUT}{name}": digest for name, digest in config.input_digests().items()}
    if not isinstance(config.data, DataConfig):  # images that are drawn on demand
        return found
    return {SHARDS: ShardSet.load(config.data.path).digest, **found}


def _require_finite(scores: Mapping[str, float], run_dir: Path) -> None:
    """Check that all validation metrics are finite before weights are overwritten. Raises: NonFinite."""
    broken = [f"{name}={value}" for name, value in scores.items() if not math.isfinite(value)]
    if broken:
        raise NonFinite(
            f"the trained model has metrics that are not finite: {', '.join(broken)}.",
            f"no weights are written to {run_dir / WEIGHTS}",
            fix="use a smaller trainer.learning_rate",
        )
