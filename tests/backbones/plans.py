"""Plans from keyword options, as `DiffusionFeatures.from_pretrained` makes them."""

from pathlib import Path

from diffprobe.backbones.plan import ReadPlan, make_configs, make_plan


def plan_for(path: Path | str, **options: object) -> ReadPlan:
    """Plan a read of the checkpoint at `path`; no weights are read."""
    return make_plan(*make_configs(str(path), options))
