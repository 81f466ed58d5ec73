"""`diffprobe report --wandb`: the page of some runs in W&B, as a run that follows from their probes."""

import os
from collections.abc import Sequence
from pathlib import Path

from diffprobe.config.schema import LoggerConfig
from diffprobe.core.progress import Announce, print_note
from diffprobe.core.terminal import one_line
from diffprobe.report.collect import read_results
from diffprobe.report.table_request import result_paths


def send_report(
    page: Path | str, paths: Sequence[str | Path], keys: LoggerConfig, announce: Announce = print_note
) -> None:
    """Send a page that was written from some runs to W&B, or keep it to be sent later where W&B is offline.

    Args:
        page: the HTML file.
        paths: the folders or result files that it was made from.
        keys: project, entity and mode.
        announce: takes a line on where the W&B run is, and on a lineage that W&B does not know.

    Raises: ConfigError as `training.loggers.wandb_mode` does, and for variables of W&B that contradict the settings.
    """
    from diffprobe.training.loggers import open_run, place_of, refuse_contradictions, wandb_mode
    from diffprobe.training.wandb_media import Media, log_media
    from diffprobe.training.wandb_run import environment, log_page

    page, results = Path(page), read_results(result_paths(paths))
    mode = wandb_mode(keys)
    if mode == "disabled":
        announce("W&B: disabled (WANDB_MODE); the page is not sent.")
        return
    refuse_contradictions(keys)
    experiments = sorted({result.experiment for result in results if result.experiment})
    run = open_run(
        keys,
        mode=mode,
        dir=os.environ.get("WANDB_DIR") or str(page.parent),
        name=os.environ.get("WANDB_NAME") or page.stem,
        group=keys.group or os.environ.get("WANDB_RUN_GROUP") or (experiments[0] if len(experiments) == 1 else None),
        job_type=os.environ.get("WANDB_JOB_TYPE") or "report",
        config={"runs": [result.run for result in results], "experiments": experiments, **environment()},
    )
    log_media(run, Media(pages={page.stem: page.read_text(encoding="utf-8")}))
    try:
        log_page(run, page, results)
    except Exception as error:  # of any class of W&B's; the page itself is sent
        announce(f"W&B: the page of run {run.id} could not be linked to its probes: {one_line(str(error))}")
    run.finish()
    announce(place_of(run, done=True))
