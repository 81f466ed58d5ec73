"""`diffprobe train` for experiments that train a diffusion model: its autoencoder, its text encoder, then its denoiser.

Owns the run's folder and the order of things; losses and export are the modules'. An interrupted run continues from
its last epoch, as if it had not been interrupted.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.config.parse import to_tree
from diffprobe.core.artifact import open_to_readers
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.result import INPUT, RESULT_FILE, SHARDS, MetricRecord, make_result, write_result

if TYPE_CHECKING:
    from diffprobe.generative.run_settings import GenerativeTraining

WEIGHTS = "weights"
"""Folder in the run's folder that holds what was trained, in diffusers' format."""


def run_dir_of(config: "GenerativeTraining") -> Path:
    """Return the folder of the run: <output>/<experiment>/<first 12 digits of the config's digest>."""
    tree = {key: value for key, value in to_tree(config).items() if key != "output"}
    return Path(config.output) / config.experiment / digest_json(tree)[:12]


def plan_backbone(config: "GenerativeTraining") -> Path:
    """Validate a run as far as possible without data, and return its folder. Nothing is loaded or written.

    Raises: ConfigError for more than one process; WeightsMissing if the weights that it builds on do not exist.
    """
    if config.trainer.devices != 1 or config.trainer.num_nodes != 1:
        raise ConfigError(
            "a backbone is trained in one process.",
            f"given: trainer.devices={config.trainer.devices} trainer.num_nodes={config.trainer.num_nodes}",
            fix="trainer.devices=1 trainer.num_nodes=1",
        )
    config.require_weights()
    return run_dir_of(config)


def train_backbone(config: "GenerativeTraining") -> Path:
    """Train, save the weights and write `result.json`; return its path.

    Raises: what `plan_backbone` raises, and what opening data and trackers raises; ConfigError if an interrupted run
        would go on with other files than it started with; NonFinite if what was trained scores no number, in which
        case no weights are written.
    """
    run_dir = plan_backbone(config)
    started_at = time.time()
    keep_freed_memory()
    import lightning

    from diffprobe.generative.ema import Averaging
    from diffprobe.training import loggers
    from diffprobe.training.checkpoint import find_checkpoint, forget, note_inputs, require_same_inputs
    from diffprobe.training.trainer import make_trainer, quiet

    checkpoint = find_checkpoint(run_dir, resume=config.trainer.resume)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    module, data = config.make()
    inputs = inputs_of(config)
    if checkpoint is not None:
        require_same_inputs(run_dir, inputs)
    tree = to_tree(config)
    with quiet():
        averaging = Averaging(config.ema_decay)
        trainer = make_trainer(config.trainer, run_dir=run_dir, callbacks=[averaging])
        run_dir.mkdir(parents=True, exist_ok=True)
        logger = loggers.make_logger(
            config.logger,
            run_dir=run_dir,
            experiment=config.experiment,
            run_name=f"{config.experiment}/{run_dir.name}",
            job_type="backbone",
            tree=tree,
            tags=("backbone",),
            resume=checkpoint is not None,
        )
        trainer.logger = logger
        if checkpoint is None:
            forget(run_dir)
            note_inputs(run_dir, inputs)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        scores = trainer.validate(module, datamodule=data, verbose=False)[0]
        _require_numbers(scores, run_dir)
        module.save(run_dir / WEIGHTS)
        open_to_readers(run_dir / WEIGHTS)
    result = make_result(
        run=f"{config.experiment}/{run_dir.name}",
        experiment=config.experiment,
        kind="train_backbone",
        config=tree,
        seeds={"seed": config.seed},
        metrics=[
            MetricRecord(name=name.removeprefix("val/"), value=float(value), split="val", n=len(data.val))
            for name, value in scores.items()
        ],
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
    loggers.finish(logger, result)
    return run_dir / RESULT_FILE


def inputs_of(config: "GenerativeTraining") -> dict[str, str]:
    """Return the digests of what a run rests on: the shard set and all trained networks that it opens.

    Raises: WeightsMissing, and what loading the index of the shards raises.
    """
    from diffprobe.shards.index import ShardSet

    networks = {f"{INPUT}{name}": digest for name, digest in config.inputs().items()}
    return {SHARDS: ShardSet.load(config.data.path).digest, **networks}


def _require_numbers(scores: Mapping[str, float], run_dir: Path) -> None:
    """Refuse weights that score no number; those of a run before stay as they are. Raises: NonFinite."""
    broken = [f"{name}={value}" for name, value in scores.items() if not math.isfinite(value)]
    if broken:
        raise NonFinite(
            f"what was trained scores no number: {', '.join(broken)}.",
            f"no weights are written to {run_dir / WEIGHTS}",
            fix="a smaller trainer.learning_rate",
        )
