"""Loggers: W&B, a CSV file, or none. W&B is online if logged in, else offline, and never prompts."""

import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from diffprobe.config.schema import LoggerConfig
from diffprobe.core.artifact import read_json, write_artifact
from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.core.json_file import expect
from diffprobe.core.processes import is_main_process
from diffprobe.core.progress import Announce, print_note
from diffprobe.core.result import RESULT_FILE, MetricRecord, RunResult
from diffprobe.core.terminal import one_line
from diffprobe.training.wandb_history import CheckpointedWandbLogger
from diffprobe.training.wandb_media import Media, log_media
from diffprobe.training.wandb_run import environment, log_artifacts, save_results, scores, val_scores

if TYPE_CHECKING:
    from wandb import Run

_TRUE = ("true", "1", "yes", "on", "y", "t")
RUN_FILE, _KIND, _SCHEMA_VERSION = "wandb.json", "wandb_run", 1


def logged_in() -> bool:
    """Return whether W&B has a key for the server it would send to. Nothing is prompted or sent.

    This calls W&B's own lookup (its settings file names the server, netrc may name a port), so that the answer is the
    one that W&B itself would come to.

    Raises: ConfigError for a key of a wrong form.
    """
    from wandb.errors import AuthenticationError
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    host = wandb_setup.singleton().settings.base_url
    try:
        found = wbauth.authenticate_session(host=host, source="diffprobe", prompt=False, update_session=False)
    except AuthenticationError as error:
        raise ConfigError(f"W&B does not accept its key: {error}", fix="wandb login --relogin") from error
    return found is not None


def wandb_mode(config: LoggerConfig) -> Literal["online", "offline", "disabled"]:
    """Return the mode. WANDB_MODE of the environment overrides `auto`, and nothing else.

    Raises: ConfigError if `online` is asked for without a login, for an unknown mode, or if WANDB_DISABLED contradicts
        the kind of the logger.
    """
    asked: str = config.mode
    by = "logger.mode"
    if asked == "auto":
        asked, by = os.environ.get("WANDB_MODE") or "auto", "WANDB_MODE"
    if os.environ.get("WANDB_DISABLED", "").lower() in _TRUE:
        raise ConfigError(
            f"logger.kind=wandb, but WANDB_DISABLED={os.environ['WANDB_DISABLED']}; W&B itself no longer reads it.",
            fix="logger=none, or unset WANDB_DISABLED",
        )
    if asked in ("offline", "dryrun"):
        return "offline"
    if asked == "disabled":
        return "disabled"
    if asked not in ("auto", "online", "run"):  # "run" is W&B's old word for online
        raise ConfigError(f"{by}={asked} is not a known mode.", fix="online, offline or disabled")
    if logged_in():
        return "online"
    if asked != "auto":
        raise ConfigError(
            f"{by}={asked}, but W&B has no key for its server (neither WANDB_API_KEY nor a netrc entry).",
            "results do not depend on W&B: result.json is written in any case",
            fix="wandb login    or: logger.mode=offline (send later: wandb sync)    or: logger=csv",
        )
    return "offline"


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
    announce: Announce = print_note,
) -> Logger | None:
    """Make the logger of one run, or None: of kind "none", or where WANDB_MODE=disabled.

    Args:
        experiment: W&B's group, unless the config names one.
        run_name: display name of the run.
        job_type: what kind of run it is, for example "classifier".
        tree: the whole resolved configuration, as JSON can hold it.
        tags: tags of the run, besides those of the config.
        resume: continue the W&B run and the CSV file of an interrupted run.
        announce: takes a line on W&B's mode, the run and its folder; on the main process alone.

    Raises: ConfigError if `online` is asked for without a login, for an unknown mode, or for variables of W&B that
        contradict the settings.
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
    mode = wandb_mode(config)
    if mode == "disabled":
        if is_main_process():
            announce("W&B: disabled (WANDB_MODE); the curves of this run are not logged.")
        return None
    refuse_contradictions(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    name = _run_id(run_dir, resume=resume)
    if not is_main_process():
        return WandbLogger(offline=True, id=name)  # never opens a run: Lightning logs on the main process only
    run = open_run(
        config,
        mode=mode,
        dir=os.environ.get("WANDB_DIR") or str(run_dir),
        id=name,
        name=os.environ.get("WANDB_NAME") or run_name,
        group=config.group or os.environ.get("WANDB_RUN_GROUP") or experiment or None,
        job_type=os.environ.get("WANDB_JOB_TYPE") or job_type,
        tags=list(dict.fromkeys((*config.tags, *filter(None, os.environ.get("WANDB_TAGS", "").split(",")), *tags))),
        config={**tree, **environment()},
    )
    logger = CheckpointedWandbLogger(run, run_dir, resume=resume)
    announce(place_of(run, chosen=config.mode != "auto"))
    return logger


def place_of(run: "Run", *, chosen: bool = True, done: bool = False) -> str:
    """Say in a line where a W&B run is: its address, or its folder with the command that sends it.

    Args:
        chosen: whether the settings ask for the mode; if not, an offline run says why it is offline.
        done: whether the run is complete, and can be sent now.
    """
    if not run.offline:
        return f"W&B: online, run {run.id}: {run.url}"
    folder = _shown_path(Path(run.dir).parent)
    why = "" if chosen or done or os.environ.get("WANDB_MODE") else " (no login)"
    return f"W&B: offline{why}, run {run.id} in {folder}; to send it{'' if done else ' later'}: wandb sync {folder}"


def _shown_path(path: Path) -> str:
    """Return a path for a command line, relative to the working folder where it is below it."""
    with suppress(ValueError):
        path = path.resolve().relative_to(Path.cwd())
    return shlex.quote(str(path))


def refuse_contradictions(config: LoggerConfig) -> None:
    """Refuse variables of W&B that name something else than the settings do. Raises: ConfigError with both choices.

    WANDB_ENTITY and WANDB_RUN_GROUP apply where the settings leave them open; WANDB_DIR, WANDB_NAME, WANDB_JOB_TYPE and
    WANDB_TAGS always do.
    """
    for variable, key in (("WANDB_PROJECT", "project"), ("WANDB_ENTITY", "entity"), ("WANDB_RUN_GROUP", "group")):
        given, ours = os.environ.get(variable), getattr(config, key)
        if given and ours is not None and given != ours:
            raise ConfigError(
                f"logger.{key}={ours}, but {variable}={given}.", fix=f"logger.{key}={given}, or unset {variable}"
            )
    for variable in ("WANDB_RUN_ID", "WANDB_RESUME"):
        if os.environ.get(variable) and not (variable == "WANDB_RUN_ID" and _id_in_sweep()):
            raise ConfigError(
                f"{variable}={os.environ[variable]} would be ignored.",
                f"the id of a W&B run is kept in the run's folder ({RUN_FILE}); a run that resumes continues its own",
                fix=f"unset {variable}",
            )


def open_run(keys: LoggerConfig, *, mode: Literal["online", "offline"], **arguments: Any) -> Any:
    """Start a W&B run without console output; Lightning's own call warns and changes the environment.

    Args:
        keys: project and entity.
        mode: see `wandb_mode`.
        arguments: further ones of `wandb.init`.
    """
    import wandb

    run = wandb.init(
        project=keys.project,
        entity=keys.entity,
        mode=mode,
        resume=None if mode == "offline" else "allow",
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off", quiet=True),
        **arguments,
    )
    if "SLURM_JOB_ID" in os.environ:
        _expect_end_of_service()
    run.define_metric("trainer/global_step")  # the x-axis under which Lightning logs
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def _expect_end_of_service() -> None:
    """Print nothing where W&B's own process has ended before this one: SLURM ends all processes of a job at once.

    It has written what was logged; at its exit this process would print a traceback of the lost connection.
    """
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if not (isinstance(found.exc_value, ConnectionError) and "teardown_atexit" in repr(found.object)):
            before(found)

    sys.unraisablehook = hook


def _run_id(run_dir: Path, *, resume: bool) -> str:
    """Return the id of the run's folder if it continues, else a new one: a restart must not become a second run."""
    file = run_dir / RUN_FILE
    of_sweep = _id_in_sweep()
    if of_sweep and is_main_process():  # the agent of the sweep waits for this one, also where the folder had another
        write_artifact(file, {"id": of_sweep}, kind=_KIND, schema_version=_SCHEMA_VERSION)
        return of_sweep
    if (resume or not is_main_process()) and file.exists():
        try:
            tree = read_json(file, kind=_KIND, schema_version=_SCHEMA_VERSION)
            return expect(tree.get("id"), str, where=f"'{file}', id")
        except SchemaError as error:
            fix = "remove the file; the run then continues as a new one of W&B"
            raise SchemaError(error.what, *error.details, fix=fix) from error
    made = uuid.uuid4().hex[:8]
    if is_main_process():
        write_artifact(file, {"id": made}, kind=_KIND, schema_version=_SCHEMA_VERSION)
    return made


def _id_in_sweep() -> str | None:
    """Return the id that the agent of a W&B sweep gives to the run that it starts; None outside of a sweep."""
    return os.environ.get("WANDB_RUN_ID") or None if os.environ.get("WANDB_SWEEP_ID") else None


def run_id(logger: Logger | None) -> str | None:
    """Return the id of the W&B run, or None without W&B."""
    return str(logger.version) if isinstance(logger, WandbLogger) else None


def summary_name(record: MetricRecord) -> str:
    """Name a record in W&B's summary: "result/test/accuracy/mid_block@t100:empty:mean/label"."""
    parts = ("result", record.split, record.name, record.cell, record.target)
    return "/".join(part for part in parts if part)


def finish(
    logger: Logger | None,
    result: RunResult,
    *,
    members: Mapping[str, RunResult] | None = None,
    media: Callable[[], Media] | None = None,
    announce: Announce = print_note,
) -> None:
    """Put the results and their controls into the summary and close the run. Call on the main process only.

    Args:
        members: name -> result of what trained in a run of a grid, whose own result holds no numbers; the name stands
            before theirs: "k=16/result/test/fvu/...".
        media: makes the tables, figures and pages of the run; called with W&B only.
        announce: takes a line on where the W&B run is.
    """
    if isinstance(logger, WandbLogger):
        run = logger.experiment
        if isinstance(logger, CheckpointedWandbLogger):
            logger.send_all()
        for prefix, one in (("", result), *((f"{name}/", member) for name, member in (members or {}).items())):
            for record in one.metrics:
                name = prefix + summary_name(record)
                run.summary[name] = record.value
                for control, value in record.controls.items():
                    run.summary[f"{name}/{control}"] = value
            for name, value in {**scores(one), **val_scores(one)}.items():
                run.summary[prefix + name] = value
        run.summary["config_digest"] = result.config_digest
        save_results(run, result, members or {})
        # an error of any class: the record is written and sent, so the run has not failed
        if media is not None:
            try:
                log_media(run, media())
            except Exception as error:
                announce(f"W&B: tables and figures of run {run.id} could not be logged: {one_line(str(error))}")
        try:
            log_artifacts(run, result, Path(logger.save_dir or "."))
        except Exception as error:
            announce(
                f"W&B: the artifacts of run {run.id} could not be logged: {one_line(str(error))} "
                f"(the digests of its inputs are in {RESULT_FILE})"
            )
        run.finish()
        announce(place_of(run, done=True))
    elif logger is not None:
        logger.finalize("success")
