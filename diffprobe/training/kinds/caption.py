"""Kind `caption`: a map between the captions of images and their features in one cell."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import RunResult
from diffprobe.training.kinds.types import (
    ProbePlan,
    Source,
    of_test_split,
    refuse_joint_clipping,
    refuse_latent_shards,
    refuse_metrics,
    refuse_row_shuffle,
    refuse_steps,
    require_one_cell,
)

if TYPE_CHECKING:
    from diffprobe.training.module import ProbeModule

TAKES_GRID = False
WITHOUT_GRID: tuple[str, ...] = ()


def validate(config: RunConfig, params: Sequence[Any]) -> None:
    """Refuse targets, features that have read the captions, a run that is its own control, and steps of a closed form.

    Raises: ConfigError.
    """
    if config.probe.targets not in ((), ("label",)):
        raise ConfigError(
            f"probe.targets={list(config.probe.targets)}: a caption regressor has no targets.", fix="leave it unset"
        )
    if config.features.condition in ("caption", "template"):
        raise ConfigError(
            f"features.condition={config.features.condition}: the denoiser has read the captions, so that they are in "
            "the features.",
            fix="features.condition=empty",
        )
    if config.control == "shuffled_labels":
        raise ConfigError("control=shuffled_labels: every run of kind 'caption' fits shuffled captions too.")
    if config.control == "text_encoder":
        raise ConfigError("control=text_encoder: the vectors of the captions are what a caption regressor starts from.")
    refuse_metrics(config)
    refuse_row_shuffle(config)
    refuse_latent_shards(config)
    from diffprobe.backbones.cell import parse_pool
    from diffprobe.core.registry import probes

    file = probes("caption").load(config.probe.name)
    if hasattr(file, "check_pool"):
        file.check_pool(params[0], *parse_pool(config.features.pool))
    if hasattr(file, "estimate_cv"):
        refuse_steps(config)
    else:
        refuse_joint_clipping(config)


def check_cells(config: RunConfig, cells: Sequence[str]) -> None:
    """Refuse several cells. Raises: ConfigError."""
    require_one_cell(config, cells)


def make_module(plan: ProbePlan, source: Source) -> "ProbeModule":
    """Load the text encoder and make the maps. Raises: ConfigError for a pipeline without one; WeightsMissing."""
    from diffprobe.backbones.caption_encoder import load_caption_encoder
    from diffprobe.training.caption import CaptionModule

    config, own = plan.config, plan.params.text_encoder
    backbone = config.backbone
    encoder = load_caption_encoder(own or backbone.path, revision=None if own else backbone.revision)
    ((cell, width),) = source.widths.items()
    return CaptionModule(
        config.probe.name, plan.params, cell=cell, d_features=width, encoder=encoder, settings=config.trainer,
        seed=config.seed,
    )  # fmt: skip


def summary(result: RunResult) -> str:
    """Return how many captions are found, and the explained variance."""
    found = {record.name: record.value for record in of_test_split(result)}
    parts = [f"{name} {found[name]:.3f}" for name in ("r2", "caption_recall_10", "image_recall_10") if name in found]
    return ", ".join(parts)
