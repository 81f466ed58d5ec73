"""Where curves go: W&B, a CSV file, or nowhere. Owns the rule for W&B: online if logged in, else offline, no prompt."""

import netrc
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from diffprobe.config.schema import LoggerConfig
from diffprobe.core.artifact import read_json, write_artifact
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.training.fit import is_main_process

_HOST = "https://api.wandb.ai"
_RUN_FILE, _KIND, _SCHEMA_VERSION = "wandb.json", "wandb_run", 1


def logged_in() -> bool:
    """Tell whether W&B has a key: WANDB_API_KEY, or a netrc entry of its host. Nothing is asked or sent."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", _HOST)).hostname or ""
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def is_offline(config: LoggerConfig) -> bool:
    """Judge the mode. WANDB_MODE of the environment wins over `auto`.

    Raises: ConfigError if `online` is asked for without a login.
    """
    mode = config.mode if config.mode != "auto" else os.environ.get("WANDB_MODE", "auto")
    if mode == "online" and not logged_in():
        raise ConfigError(
            "logger.mode=online, but there is no W&B key (neither WANDB_API_KEY nor a netrc entry).",
            "results do not depend on W&B: result.json is written in any case",
            fix="wandb login    or: logger.mode=offline (send later: wandb sync)    or: logger=csv",
        )
    return mode in ("offline", "disabled", "dryrun") or not logged_in()


def make_logger(
    config: LoggerConfig,
    *,
    run_dir: Path,
    experiment: str,
    run_name: str,
    job_type: str,
    tree: Mapping[str, Any],
    tags: tuple[str, ...] = (),
    resume: bool = False,
) -> Logger | None:
    """Make the logger of one run, or None.

    Args:
        experiment: W&B's group, unless the config names one.
        run_name: display name of the run.
        job_type: what kind of run it is, for example "classifier".
        tree: the whole resolved configuration, as JSON can hold it.
        tags: tags of the run, besides those of the config.
        resume: continue the W&B run and the CSV file of an interrupted run.

    Raises: ConfigError if `online` is asked for without a login.
    """
    if config.kind == "none":
        return None
    if config.kind == "csv":
        old = sorted(run_dir.glob("curves*"))
        n = len(old) if resume else 0
        if not resume and is_main_process():  # Lightning would empty them, with a warning
            for folder in old:
                shutil.rmtree(folder)
        return CSVLogger(run_dir, name="", version=f"curves-{n}" if n else "curves")
    offline = is_offline(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    name = _run_id(run_dir, resume=resume)
    if not is_main_process():
        return WandbLogger(offline=True, id=name)  # never opens a run: Lightning logs on the main process only
    run = _open_run(
        config,
        offline=offline,
        dir=str(run_dir),
        id=name,
        name=run_name,
        group=config.group or experiment or None,
        job_type=job_type,
        tags=list(dict.fromkeys((*config.tags, *tags))),
        config=dict(tree),
    )
    return WandbLogger(experiment=run, save_dir=run_dir)


def _open_run(keys: LoggerConfig, *, offline: bool, **arguments: Any) -> Any:
    """Start a W&B run that says nothing on the console; Lightning's own call warns and changes the environment."""
    import wandb

    run = wandb.init(
        project=keys.project,
        entity=keys.entity,
        mode="offline" if offline else "online",
        resume=None if offline else "allow",
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off", quiet=True),
        **arguments,
    )
    run.define_metric("trainer/global_step")  # the x-axis under which Lightning logs
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def _run_id(run_dir: Path, *, resume: bool) -> str:
    """Return the id of the run's folder if it continues, else a new one: a restart must not become a second run."""
    file = run_dir / _RUN_FILE
    if (resume or not is_main_process()) and file.exists():
        return str(read_json(file, kind=_KIND, schema_version=_SCHEMA_VERSION)["id"])
    made = uuid.uuid4().hex[:8]
    if is_main_process():
        write_artifact(file, {"id": made}, kind=_KIND, schema_version=_SCHEMA_VERSION)
    return made


def run_id(logger: Logger | None) -> str | None:
    """Return the id of the W&B run, or None without W&B."""
    return str(logger.version) if isinstance(logger, WandbLogger) else None


def summary_name(record: MetricRecord) -> str:
    """Name a record in W&B's summary: "result/test/accuracy/mid_block@t100:empty:mean/label"."""
    parts = ("result", record.split, record.name, record.cell, record.target)
    return "/".join(part for part in parts if part)


def finish(logger: Logger | None, result: RunResult) -> None:
    """Put the results and their nulls into the summary and close the run. Call on the main process only."""
    if isinstance(logger, WandbLogger):
        run = logger.experiment
        for record in result.metrics:
            name = summary_name(record)
            run.summary[name] = record.value
            for null, value in record.nulls.items():
                run.summary[f"{name}/{null}"] = value
        run.summary["config_digest"] = result.config_digest
        run.finish()
    elif logger is not None:
        logger.finalize("success")
