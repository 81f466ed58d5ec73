"""`diffprobe extract`: write the features of one run to its store; and what the control of a run replaces."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffprobe.config.controls import EXPOSED_PART, has_one_cell
from diffprobe.config.prompt_schema import PromptExtraction
from diffprobe.config.schema import BackboneConfig, FeaturesConfig, RunConfig
from diffprobe.config.views import ViewsConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.heartbeat import beating, heartbeat_path
from diffprobe.runs.provenance import require_splits

if TYPE_CHECKING:
    from diffprobe.core.progress import Announce, MakeBar


def extract_run(
    run: RunConfig | PromptExtraction,
    *,
    process: tuple[int, int] = (0, 1),
    progress: "bool | MakeBar" = True,
    announce: "Announce" = lambda line: None,
) -> Path:
    """Write the feature store that a run reads, or that of an extraction from prompts, and return its folder.

    What is written already stays as it is.

    Args:
        process: (i, n): write every n-th shard from the i-th on; n such calls together make the store.
        progress: whether to show a bar, or the maker of one.
        announce: takes lines for people: sizes, what is reused, a summary.

    Raises: ConfigError for a run with live features, UnknownName for a split that the data have not got, and what
        `features.extract.extract` raises.
    """
    beat = heartbeat_path()
    if beat is not None:  # in a job nobody sees a bar
        unit = "samples" if isinstance(run, PromptExtraction) else "images"
        progress = partial(beating, what="extract", unit=unit, path=beat)
    if isinstance(run, PromptExtraction):
        from diffprobe.features.extract_prompts import extract_prompts

        return extract_prompts(run, process=process, progress=progress, announce=announce)
    from diffprobe.features.extract import extract

    backbone, features = _stored(run)
    return extract(backbone, run.data, features, process=process, progress=progress, announce=announce)


def check_run(run: RunConfig | PromptExtraction, *, process: tuple[int, int] = (0, 1)) -> list[str]:
    """Validate what `extract_run` would do, without loading weights or writing, and return lines on stores and cost.

    Raises: what `extract_run` raises before it loads weights.
    """
    from diffprobe.features.extract_check import check_images, check_prompts

    if isinstance(run, PromptExtraction):
        return check_prompts(run, process=process)
    backbone, features = _stored(run)
    return check_images(backbone, run.data, features, process=process)


def _stored(run: RunConfig) -> tuple[BackboneConfig, FeaturesConfig]:
    """Return what the store of a run is extracted with. Raises: ConfigError for live features, UnknownName."""
    if run.features.source == "live":
        raise ConfigError("this run reads live features; it needs no store.", fix="to make one: features.source=stored")
    from diffprobe.shards.index import ShardSet

    require_splits(run.data, ShardSet.load(run.data.path))
    return backbone_and_features(run)


def backbone_and_features(run: RunConfig) -> tuple[BackboneConfig, FeaturesConfig]:
    """Return the backbone and cells that a run really reads: its own, or those that its control puts in their place.

    >>> from diffprobe.config.schema import DataConfig, ProbeConfig
    >>> run = RunConfig(
    ...     backbone=BackboneConfig(path="emoji-sd"),
    ...     data=DataConfig(path="emoji"),
    ...     features=FeaturesConfig(taps=("mid_block",), timesteps=(100,)),
    ...     probe=ProbeConfig(kind="classifier", name="linear"),
    ...     control="raw_pixels",
    ... )
    >>> backbone, features = backbone_and_features(run)
    >>> backbone.path, features.taps, features.timesteps
    ('pixels', ('pixels',), (0,))
    >>> backbone, features = backbone_and_features(replace(run, control="text_encoder"))
    >>> backbone.path, backbone.part, features.taps, features.timesteps, features.condition
    ('emoji-sd', 'text_encoder', ('text',), (0,), 'caption')

    Raises: ConfigError for control=text_encoder with a LoRA, which the text encoder alone is read without.
    """
    if run.control == "random_weights":
        return replace(run.backbone, random_weights=True), run.features
    if not has_one_cell(run.control):
        return run.backbone, run.features
    kept = ("source", "seed", "resolution", "store", "placement", "shuffle")
    features = replace(
        FeaturesConfig(taps=(_TAPS[run.control],), timesteps=(0,)),
        **{name: getattr(run.features, name) for name in kept},
        views=_views_of(run),
    )
    if run.control == "raw_pixels":
        return BackboneConfig(path="pixels", device=run.backbone.device), features
    if run.control == "vae_latents":
        features = replace(features, latent_cache=run.features.latent_cache)
    else:
        features = replace(features, **_text_of(run))
    alone = replace(
        run.backbone, part=EXPOSED_PART[run.control], random_weights=False, random_seed=0, denoiser_weights=None,
        lora=None, clean_input=False, compile=False, cpu_kernels="mkl", max_rows_per_pass=None, offload="none",
        quantize="none",
    )  # fmt: skip
    return alone, features


_TAPS = {"raw_pixels": "pixels", "vae_latents": "latents", "text_encoder": "text"}
"""Control with one cell -> its tap."""


def _views_of(run: RunConfig) -> ViewsConfig:
    """Return the views of a control with one cell: those of the images; none of a text encoder, and none of noise."""
    views = run.features.views
    changes = run.control != "text_encoder" and views.changes_images
    return replace(views, redraw_noise=False) if changes else ViewsConfig()


def _text_of(run: RunConfig) -> dict[str, Any]:
    """Return the settings of the text that is encoded: the run's template, or else the sample's caption."""
    if run.backbone.lora is not None:
        raise ConfigError(
            f"control=text_encoder with lora={run.backbone.lora}: the text encoder alone is read without a LoRA.",
            fix="for the control without it: backbone.lora=null",
        )
    own = run.features.condition in ("caption", "template")
    return {
        "condition": run.features.condition if own else "caption",
        "prompt": run.features.prompt if own else None,
        "missing": run.features.missing if own else "refuse",
    }
