"""`control=ladder`: the rungs below the denoiser that apply to a run, and the run itself, one after the other.

Each rung is the run that `control=NAME` would be alone, so that it is found, skipped when finished and put into tables
as that is. Free of torch; `rungs.py` has which rungs apply.
"""

from dataclasses import replace

from diffprobe.config.compose import Composed
from diffprobe.config.controls import ALL_RUNGS, LADDER
from diffprobe.config.kinds import PROBE
from diffprobe.core.errors import ConfigError

RUN_ITSELF = "none"
"""The last rung: the run without a control."""


def rung_name(control: str | None) -> str:
    """Return how a rung is called in what a command prints.

    >>> rung_name("vae_latents"), rung_name(None)
    ('ladder vae_latents', 'ladder none (the run itself)')
    """
    return f"ladder {RUN_ITSELF} (the run itself)" if control in (None, RUN_ITSELF) else f"ladder {control}"


def is_ladder(composed: Composed) -> bool:
    """Return whether a configuration asks for the ladder."""
    return composed.kind == PROBE and composed.tree.get("control") == ALL_RUNGS


def each_rung(composed: Composed, *, apart: bool = False) -> list[Composed]:
    """Return a configuration for each rung where `control` is "ladder", the run itself last; else the configuration.

    Args:
        apart: whether the rungs are commands of their own, each of which may have several processes.
    Raises: ConfigError for several processes, which cannot train one run after the other.
    """
    if not is_ladder(composed):
        return [composed]
    trainer = composed.tree.get("trainer") or {}
    if not apart and (trainer.get("devices", 1), trainer.get("num_nodes", 1)) != (1, 1):
        raise ConfigError(
            f"control={ALL_RUNGS} with several processes (trainer.devices, trainer.num_nodes).",
            "the rungs train one after the other, in one process",
            fix=f"a command for each rung: control={', '.join((*LADDER, RUN_ITSELF))}",
        )
    return [replace(composed, tree={**composed.tree, "control": name}) for name in (*LADDER, RUN_ITSELF)]
