"""`diffprobe train` for experiments that train a diffusion model: its autoencoder, its text encoder, then its denoiser.

Owns the run's folder and the order of things; losses and export are the modules'. An interrupted run continues from
its last epoch, as if it had not been interrupted.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffprobe.config.parse import to_tree
from diffprobe.core.artifact import open_to_readers
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.result import MetricRecord, make_result, write_result
from diffprobe.experiment.inputs import SHARDS

if TYPE_CHECKING:
    from diffprobe.training.autoencoder import AutoencoderTraining
    from diffprobe.training.denoiser import DenoiserTraining
    from diffprobe.training.text_encoder import TextEncoderTraining

    BackboneTraining = AutoencoderTraining | TextEncoderTraining | DenoiserTraining

WEIGHTS = "weights"
"""Folder in the run's folder that holds what was trained, in diffusers' format."""


OTHER_VERBS = {
    "DemoConfig": "demo",
    "BackboneEvaluation": "eval backbone BACKBONE",
    "SaeEvaluation": "eval sae RUN_FOLDER",
}
"""Class of an experiment's settings -> the verb that takes it instead."""


def run_dir_of(config: "BackboneTraining") -> Path:
    """Return the folder of the run: <output>/<experiment>/<first 12 digits of the config's digest>."""
    tree = {key: value for key, value in to_tree(config).items() if key != "output"}
    return Path(config.output) / config.experiment / digest_json(tree)[:12]


def plan_backbone(config: Any) -> Path:
    """Judge a run as far as it can be without data, and return its folder. Nothing is loaded or written.

    Raises: ConfigError for what is not trained by this verb, and for more than one process; WeightsMissing if the
        weights that it builds on are not there.
    """
    from diffprobe.backbones.weights import require_files
    from diffprobe.training import networks
    from diffprobe.training.autoencoder import AutoencoderTraining
    from diffprobe.training.denoiser import DenoiserTraining
    from diffprobe.training.text_encoder import TextEncoderTraining

    if not isinstance(config, AutoencoderTraining | TextEncoderTraining | DenoiserTraining):
        name = getattr(config, "experiment", "")
        verb = OTHER_VERBS.get(type(config).__name__, "config")
        raise ConfigError(
            f"experiment '{name}' describes no training: its settings are those of {type(config).__name__}.",
            fix=f"diffprobe {verb} experiment={name}",
        )
    if config.trainer.devices != 1 or config.trainer.num_nodes != 1:
        raise ConfigError(
            "a backbone is trained in one process.",
            f"given: trainer.devices={config.trainer.devices} trainer.num_nodes={config.trainer.num_nodes}",
            fix="trainer.devices=1 trainer.num_nodes=1",
        )
    if isinstance(config, DenoiserTraining):
        networks.require_autoencoder(config.autoencoder)
        if config.text_encoder or config.start:
            networks.require_text_encoder(networks.weights_folder(config.text_encoder or config.start or ""))
        if config.start:
            require_files(networks.weights_folder(config.start) / "unet")
    return run_dir_of(config)


def train_backbone(config: "BackboneTraining") -> Path:
    """Train, save the weights and write `result.json`; return its path.

    Raises: what `plan_backbone` raises, and what opening data and trackers raises; ConfigError if an interrupted run
        would go on with other files than it started with; NonFinite if what was trained scores no number, in which
        case no weights are written.
    """
    run_dir = plan_backbone(config)
    started_at = time.time()
    keep_freed_memory()
    import lightning

    from diffprobe.training import fit, resume, tracking
    from diffprobe.training.averaging import Averaging

    checkpoint = resume.find_checkpoint(run_dir, resume=config.trainer.resume)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    module, data = _make_module(config)
    inputs = inputs_of(config)
    if checkpoint is not None:
        resume.require_same_inputs(run_dir, inputs)
    tree = to_tree(config)
    with fit.quiet():
        averaging = Averaging(config.ema_decay)
        trainer = fit.make_trainer(config.trainer, run_dir=run_dir, callbacks=[averaging])
        run_dir.mkdir(parents=True, exist_ok=True)
        logger = tracking.make_logger(
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
            resume.forget(run_dir)
            resume.note_inputs(run_dir, inputs)
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
        wandb_run_id=tracking.run_id(logger),
    )
    write_result(result, run_dir / resume.RESULT)
    tracking.finish(logger, result)
    return run_dir / resume.RESULT


def inputs_of(config: "BackboneTraining") -> dict[str, str]:
    """Name what a run rests on by content: the shard set and all trained networks that it opens.

    Raises: WeightsMissing, and what loading the index of the shards raises.
    """
    from diffprobe.backbones.weights import digest_files, digest_part
    from diffprobe.shards.index import ShardSet
    from diffprobe.training import networks
    from diffprobe.training.denoiser import DenoiserTraining
    from diffprobe.training.text_encoder import TextEncoderTraining

    inputs = {SHARDS: ShardSet.load(config.data.path).digest}
    if isinstance(config, TextEncoderTraining):
        teacher = Path(config.teacher)
        parts = {"network": digest_part(teacher), "words": digest_files([teacher / "tokenizer.json"])}
        inputs["input/teacher"] = digest_json(parts)
    if isinstance(config, DenoiserTraining):
        inputs["input/autoencoder"] = digest_part(networks.require_autoencoder(config.autoencoder))
        text_encoder = config.text_encoder or config.start
        if text_encoder:
            folder = networks.weights_folder(text_encoder)
            words = digest_files(sorted((folder / "tokenizer").iterdir()))
            inputs["input/text_encoder"] = digest_json(
                {"network": digest_part(folder / "text_encoder"), "words": words}
            )
        if config.start:
            inputs["input/start"] = digest_part(networks.weights_folder(config.start) / "unet")
    return inputs


def _require_numbers(scores: Mapping[str, float], run_dir: Path) -> None:
    """Refuse weights that score no number; those of a run before stay as they are. Raises: NonFinite."""
    broken = [f"{name}={value}" for name, value in scores.items() if not math.isfinite(value)]
    if broken:
        raise NonFinite(
            f"what was trained scores no number: {', '.join(broken)}.",
            f"no weights are written to {run_dir / WEIGHTS}",
            fix="a smaller trainer.learning_rate",
        )


def _make_module(config: "BackboneTraining") -> tuple[Any, Any]:
    """Make what is trained, and its data."""
    from diffprobe.training.autoencoder import AutoencoderModule, AutoencoderTraining
    from diffprobe.training.denoiser import DenoiserModule
    from diffprobe.training.images import ImagesInMemory
    from diffprobe.training.text_encoder import TextEncoderModule, TextEncoderTraining, Texts

    if isinstance(config, TextEncoderTraining):
        texts = Texts(config)
        return TextEncoderModule(config, texts), texts
    if isinstance(config, AutoencoderTraining):
        autoencoder = AutoencoderModule(config)
        return autoencoder, ImagesInMemory(config.data, resolution=config.model.resolution, seed=config.seed)
    denoiser = DenoiserModule(config)
    images = ImagesInMemory(
        config.data, resolution=denoiser.resolution, seed=config.seed, captioned=True, balance=denoiser.balance
    )
    return denoiser, images
