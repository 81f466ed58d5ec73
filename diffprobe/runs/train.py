"""`diffprobe train`: one probe on the features of one backbone, from a judged config to `result.json`.

Owns the order of things and the run's folder. Everything that can be judged without features is judged before any are
opened. Next in the flow: `report/collect.py` reads the result.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffprobe.config.schema import RunConfig
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.core.result import RESULT_FILE
from diffprobe.runs.extract import backbone_and_features
from diffprobe.runs.grid import MEMBERS, seeds_of
from diffprobe.runs.plan import RunPlan, plan
from diffprobe.runs.provenance import inputs_of, require_splits

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from diffprobe.features.datamodule import FeatureSource
    from diffprobe.training.module import ProbeModule


def train(config: RunConfig, *, callbacks: "Sequence[Callback]" = ()) -> Path:
    """Train, evaluate on validation and test, and write probe and `result.json` into the run's folder.

    The points of a grid train together; probe and `result.json` of each are in members/<name> below the run's folder,
    whose own `result.json` then holds no numbers.

    An interrupted run continues from its last checkpoint (`trainer.resume`); a finished one is trained anew, and keeps
    its files until everything that can be judged before training has been.

    Args:
        callbacks: Lightning callbacks that watch the run; none of them may change what is measured.

    Returns: the path of `result.json`. All processes of a DDP run return it; the main one writes it.
    Raises: ConfigError, UnknownName, and what opening the features or the trackers raises.
    """
    started_at = time.time()
    planned = plan(config)
    import lightning

    from diffprobe.training import loggers
    from diffprobe.training.checkpoint import find_checkpoint, forget
    from diffprobe.training.trainer import is_main_process, make_trainer, quiet

    source = make_source(config)
    module = make_module(planned, source)
    source.setup("fit")  # with live features it opens the backbone: what can be refused is, before files are removed
    checkpoint = find_checkpoint(planned.run_dir, resume=config.trainer.resume)
    with quiet():
        lightning.seed_everything(config.seed, workers=True, verbose=False)
        trainer = make_trainer(config.trainer, run_dir=planned.run_dir, callbacks=callbacks)
        if is_main_process():
            planned.run_dir.mkdir(parents=True, exist_ok=True)
        logger = loggers.make_logger(
            config.logger,
            run_dir=planned.run_dir,
            experiment=config.experiment,
            run_name=f"{config.experiment or config.probe.kind}/{planned.name}",
            job_type=config.probe.kind,
            tree=planned.tree,
            tags=_tags(config),
            resume=checkpoint is not None,
        )
        trainer.logger = logger
        if checkpoint is None and is_main_process():
            forget(planned.run_dir, *(planned.run_dir / MEMBERS / point.name for point in planned.points))
        if _has_steps(module):
            trainer.fit(module, datamodule=source, ckpt_path=checkpoint, weights_only=True)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
        if trainer.is_global_zero:
            _write(planned, module, source, logger, started_at)
        trainer.strategy.barrier("result written")
    return planned.run_dir / RESULT_FILE


def make_source(config: RunConfig) -> "FeatureSource":
    """Make the DataModule of a run: what its control puts in the place of the backbone, and the cells it reads."""
    from diffprobe.features.live import LiveFeatures
    from diffprobe.features.stored import StoredFeatures

    backbone, features = backbone_and_features(config)
    cells = None if config.probe.cell is None or config.control == "raw_pixels" else [config.probe.cell]
    cells = list(config.probe.grid.get("cell", ())) or cells
    make = LiveFeatures if features.source == "live" else StoredFeatures
    source: FeatureSource = make(backbone, config.data, features, seed=config.seed, cells=cells)
    require_splits(config.data, source.request.shard_set)
    names_several = config.probe.kind == "sae" and cells is not None  # all timesteps of a tap, and asked for
    if config.probe.kind != "classifier" and len(source.widths) > 1 and not names_several:
        first = next(iter(source.widths))
        several = f", or {first.partition('@')[0]}@t* for all timesteps of it" if config.probe.kind == "sae" else ""
        raise ConfigError(
            f"a probe of kind '{config.probe.kind}' reads one cell; the features have {len(source.widths)}.",
            f"cells: {', '.join(source.widths)}",
            fix=f"probe.cell={first}{several}",
        )
    return source


def make_module(planned: RunPlan, source: "FeatureSource") -> "ProbeModule":
    """Make the LightningModule of a run for the features that `source` gives. Raises: UnknownName for a target."""
    config, params = planned.config, planned.params
    common: dict[str, Any] = {"settings": config.trainer, "seed": config.seed}
    if planned.points:
        return _bank(planned, source)
    if config.probe.kind == "sae":
        from diffprobe.features.row_layout import joint_width
        from diffprobe.training.sae import SparseAutoencoderModule

        return SparseAutoencoderModule(params, cell=list(source.widths), d_in=joint_width(source.widths), **common)
    classes = target_classes(config.probe.targets, source)
    if config.probe.kind == "classifier":
        from diffprobe.training.classifier import ClassifierModule

        only_control = config.control == "shuffled_labels"
        return ClassifierModule(
            widths=source.widths, classes=classes, controls=params.controls, only_control=only_control, **common
        )
    from diffprobe.training.direction import DirectionModule

    return DirectionModule(
        config.probe.name,
        params,
        estimate=getattr(planned.probe, "estimate", None),
        needs_gram=planned.probe.NEEDS_GRAM,
        axes=params.axes(list(source.widths), classes),
        widths=source.widths,
        **common,
    )


def _bank(planned: RunPlan, source: "FeatureSource") -> "ProbeModule":
    from diffprobe.features.cell_selection import choose_cells
    from diffprobe.training.sae_bank import MemberSpec, SparseAutoencoderBankModule

    specs: list[MemberSpec] = []
    asked: dict[str, str | None] = {}
    for point in planned.points:
        wanted = [point.cell] if "cell" in planned.config.probe.grid and point.cell else None
        found = choose_cells(wanted, list(source.widths))
        if len(found) > 1:
            raise ConfigError(
                f"'{point.name}' has several cells; one of a grid reads one.", f"given: {', '.join(found)}"
            )
        cell = found[0]
        if asked.setdefault(cell, point.cell) != point.cell:
            raise ConfigError(f"probe.grid.cell names '{cell}' twice: {asked[cell]}, {point.cell}.")
        d_in = source.widths[cell]
        specs.append(MemberSpec(name=point.name, config=point.params, cell=cell, d_in=d_in, seed=point.seed))
    settings, batched = planned.config.trainer, planned.config.probe.batched
    return SparseAutoencoderBankModule(specs, settings=settings, seed=planned.config.seed, batched=batched)


def target_classes(targets: tuple[str, ...], source: "FeatureSource") -> dict[str, tuple[str, ...]]:
    """Return the names of each target's classes. Raises: UnknownName for a target that the data has not got."""
    known = {"label": source.classes, **source.attributes}
    for target in targets:
        if target not in known:
            raise unknown("target", target, known)
    return {target: tuple(known[target]) for target in targets}


def _has_steps(module: "ProbeModule") -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _tags(config: RunConfig) -> tuple[str, ...]:
    control = None if config.control == "none" else f"control:{config.control}"
    named = (config.probe.kind, config.probe.name, config.paper, config.table, control)
    return tuple(tag for tag in named if tag)


def _write(planned: RunPlan, module: "ProbeModule", source: "FeatureSource", logger: Any, started_at: float) -> None:
    from diffprobe.training import loggers
    from diffprobe.training.sae_bank import SparseAutoencoderBankModule

    config = planned.config
    written: dict[str, str] = {}  # all probes of the run; the record of a grid names those of its members

    def write(folder: Path, run: str, tree: dict[str, Any], seeds: dict[str, int], part: "ProbeModule | None") -> Any:
        from diffprobe.core.result import make_result, write_result
        from diffprobe.probes.serialization import TENSORS

        saved = part.save(folder / "probes") if part else []
        artifacts = {str(path.relative_to(folder)): digest_file(path / TENSORS) for path in saved}
        written.update({str((folder / name).relative_to(planned.run_dir)): sha for name, sha in artifacts.items()})
        result = make_result(
            run=run,
            experiment=config.experiment,
            kind=config.probe.kind,
            config=tree,
            seeds={**seeds, "noise": config.features.seed, "random_weights": config.backbone.random_seed},
            metrics=[record for split in part.scores for record in part.records(split)] if part else [],
            started_at=started_at,
            artifacts={**(artifacts if part else written), **inputs_of(source)},
            wandb_run_id=loggers.run_id(logger),
        )
        write_result(result, folder / RESULT_FILE)
        return result

    whole: ProbeModule | None = module
    members = {}
    if isinstance(module, SparseAutoencoderBankModule):
        for point, member in zip(planned.points, module.members, strict=True):
            folder = planned.run_dir / MEMBERS / point.name
            run = f"{planned.name}/{point.name}"
            members[point.name] = write(folder, run, point.tree, seeds_of(point, config), member)
        whole = None  # its numbers are those of the members: a table must not find them twice
    result = write(planned.run_dir, planned.name, planned.tree, {"run": config.seed}, whole)
    loggers.finish(logger, result, members=members)
