"""Keep finished trainings and evaluations of the same configuration, for the scripts of this folder that run many.

A script that is called again trains and measures only what is missing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffprobe.config.parse import record_tree
from diffprobe.core.result import RESULT_FILE, read_result


def trained(config: Any) -> Path:
    """Return the folder of the run of a part of a diffusion model, trained now unless it is finished with these inputs.

    Raises: what training raises; ConfigError for an interrupted run with other inputs.
    """
    from diffprobe.runs.train_generative import inputs_of, run_dir_of, train_generative

    folder = run_dir_of(config)
    if (folder / RESULT_FILE).is_file():
        read = read_result(folder / RESULT_FILE).artifacts
        if all(read.get(name) == digest for name, digest in inputs_of(config).items()):
            return folder
    return train_generative(config).parent


def probed(config: Any) -> Path:
    """Return the result of a probe experiment, trained now unless it is finished; its inputs are not compared."""
    from diffprobe.runs.plan import plan
    from diffprobe.runs.train import train

    result = plan(config).run_dir / RESULT_FILE
    return result if result.is_file() else train(config)


def evaluated(config: Any, evaluate: Callable[[Any], Path]) -> Path:
    """Return the result of an evaluation, measured now unless one of the same configuration is finished.

    Args:
        config: an experiment of an evaluation, with the keys `experiment` and `output`.
        evaluate: measures it and returns the path of `result.json`.
    """
    wanted = {key: value for key, value in record_tree(config).items() if key != "output"}
    for path in sorted((Path(config.output) / config.experiment).glob(f"*/{RESULT_FILE}")):
        if read_result(path).config == wanted:
            return path
    return evaluate(config)
