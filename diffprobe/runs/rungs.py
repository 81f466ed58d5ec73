"""Which rungs of `control=ladder` apply to a run. One that does not is named with the reason."""

from collections.abc import Callable, Sequence

from diffprobe.config.controls import EXPOSED_PART, has_one_cell
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError
from diffprobe.runs.extract import backbone_and_features
from diffprobe.runs.ladder import RUN_ITSELF, rung_name


def those_that_apply(runs: Sequence[RunConfig], announce: Callable[[str], None]) -> list[RunConfig]:
    """Return the runs whose rung applies, in their order.

    Args:
        runs: the rungs, for each seed; seeds make no difference to whether a rung applies.
        announce: takes a line for each rung that does not, with the reason.

    Raises: see `why_not`.
    """
    reasons: dict[str, str | None] = {}
    for run in runs:
        if run.control not in reasons:
            reasons[run.control] = why_not(run)
            if reasons[run.control] is not None:
                announce(f"{rung_name(run.control)}: left out, {reasons[run.control]}")
    return [run for run in runs if reasons[run.control] is None]


def why_not(run: RunConfig) -> str | None:
    """Return why the control of a run does not apply to it; None if it does.

    Reads configurations of the checkpoint and, for the text encoder, the index of the data; no weights, no images.

    Raises: WeightsMissing, WeightsMismatch and ShardError for a checkpoint or data that cannot be read: that is a fault
        of the run, not of a rung.
    """
    control, backbone = run.control, run.backbone
    if control == RUN_ITSELF:
        return None
    if has_one_cell(control) and run.probe.kind == "sae":
        return "an autoencoder's error on other features cannot be compared with its error on these"
    if control == "text_encoder" and run.probe.kind == "caption":
        return "a caption regressor starts from the vectors of the captions"
    if backbone.path == "pixels":
        return "the run itself reads the pixels"
    if control in EXPOSED_PART:
        if backbone.part != "denoiser":
            return f"the run itself reads one part of the checkpoint (backbone.part={backbone.part})"
        return _why_without_part(run)
    if control == "random_weights":
        given = ("random_weights", "denoiser_weights", "lora", "part")
        changed = [name for name in given if getattr(backbone, name) != getattr(type(backbone), name)]
        if changed:
            shown = f"backbone.{changed[0]}={str(getattr(backbone, changed[0])).lower()}"
            return f"random weights replace those of the checkpoint's own denoiser, and the run has {shown}"
    return None


def _why_without_part(run: RunConfig) -> str | None:
    from diffprobe.backbones.locate import locate
    from diffprobe.backbones.parts import why_without

    if run.control == "text_encoder" and run.backbone.lora is not None:
        return "the text encoder alone is read without a LoRA, and the run has backbone.lora"
    backbone, features = backbone_and_features(run)
    checkpoint = locate(
        backbone.path,
        revision=backbone.revision,
        configs_only=True,
        single_file_config=backbone.single_file_config,
    )
    reason = why_without(backbone.part, checkpoint)
    if reason is not None or run.control != "text_encoder" or features.condition != "caption":
        return reason
    return _why_without_captions(run, features.missing)


def _why_without_captions(run: RunConfig, missing: str) -> str | None:
    """Return which samples have no caption, where the run does not say what becomes of them."""
    from diffprobe.features.missing_values import check_values
    from diffprobe.shards.index import ShardSet
    from diffprobe.shards.scan import CAPTION

    if missing != "refuse":
        return None
    shards, data = ShardSet.load(run.data.path), run.data
    named = (data.train_split, data.val_split, data.test_split)
    splits = tuple(split for split in dict.fromkeys(map(data.source_of, named)) if split in shards.splits())
    try:
        check_values(shards, splits, (CAPTION,), data=data, fields=shards.fields_for(data.fields))
    except ConfigError as error:
        return error.what.replace("the condition needs", "it needs").rstrip(".")
    return None
