"""Make a direction from two prompts, by a trained map from captions to features (`diffprobe translate`)."""

import json
from dataclasses import dataclass
from pathlib import Path

from diffprobe.backbones.caption_encoder import CaptionEncoder, load_caption_encoder
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, StoreMismatch, WeightsMismatch, WeightsMissing
from diffprobe.core.result import RESULT_FILE
from diffprobe.probes.caption import CaptionRegressor
from diffprobe.probes.direction import Direction
from diffprobe.probes.serialization import SETTINGS, TENSORS

PROMPTS_FILE = "prompts.json"
"""Prompts and contexts of a direction, beside it."""
FOLDER = "directions"
"""Folder of these directions, below `probes` of the run."""
SLOT = "{}"
"""Place of the prompt in a context."""


@dataclass(frozen=True, kw_only=True)
class CaptionDirectionConfig:
    """Settings of `diffprobe translate`."""

    positive: str = ""
    """Prompt at the positive end."""
    negative: str = ""
    """Prompt at the negative end."""
    contexts: tuple[str, ...] = ()
    """Prompts with a place {} for that of either end, over which the direction is averaged; () for both alone."""
    target: str = "caption"
    """Name of what differs between both ends, for example an attribute of the data."""
    name: str | None = None
    """Folder of the direction, below probes/directions of the run; None for a digest."""
    compare: tuple[str, ...] = ()
    """Folders of saved directions in the same cell, whose cosine with this one is shown."""
    text_encoder: str | None = None
    """Name or folder of the pipeline whose text encoder the map was trained with, where it has moved."""

    def __post_init__(self) -> None:
        if not self.positive.strip() or not self.negative.strip():
            raise ConfigError(
                "a direction needs a prompt at both ends.", fix='positive="a red heart" negative="a blue heart"'
            )
        if self.positive == self.negative:
            raise ConfigError(f"both ends are '{self.positive}': they must differ.")
        for context in self.contexts:
            if context.count(SLOT) != 1:
                raise ConfigError(
                    f"context '{context}' has {context.count(SLOT)} places {SLOT}; it needs one.",
                    fix="contexts='[a drawing of {}, a small {}]'",
                )
        if self.name is not None and (not self.name.strip(".") or Path(self.name).name != self.name):
            raise ConfigError(f"name='{self.name}' is not the name of a folder.", fix="name=red-to-blue")

    def prompts(self, end: str) -> list[str]:
        """Return the prompts of one end, one per context."""
        return [context.replace(SLOT, end) for context in self.contexts or (SLOT,)]


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionDirection:
    """A direction between two prompts."""

    direction: Direction
    """The direction."""
    folder: Path
    """Where it was saved."""
    cosines: dict[str, float]
    """Folder of another direction -> its cosine with this one."""

    @property
    def random_cosine(self) -> float:
        """Standard deviation of the cosine with a random direction."""
        return float(len(self.direction.vector)) ** -0.5


def caption_direction(folder: Path | str, config: CaptionDirectionConfig) -> CaptionDirection:
    """Make the direction between two prompts and save it below `probes/directions` of the run.

    Args:
        folder: a run of kind `caption`, or the folder of its probe.

    Raises: WeightsMissing for a folder without a trained map; ConfigError for a map from features to captions;
        WeightsMismatch for a text encoder other than that of the training; StoreMismatch for a direction to compare of
        another cell or width; EmptyClass for prompts with the same expected features; SchemaError.
    """
    probe = _probe_folder(Path(folder))
    regressor = CaptionRegressor.from_pretrained(probe)
    others = {name: _other(name, regressor) for name in config.compare}
    encoder = _encoder(regressor, config)
    found = regressor.direction(
        encoder(config.prompts(config.positive)), encoder(config.prompts(config.negative)), target=config.target,
        names=(config.positive, config.negative),
    )  # fmt: skip
    made_from = {
        "probe": digest_file(probe / TENSORS), "text_encoder": encoder.digest, "positive": config.positive,
        "negative": config.negative, "contexts": list(config.contexts), "target": config.target,
    }  # fmt: skip
    place = _run_of(probe) / FOLDER / (config.name or digest_json(made_from)[:12])
    found.save(place)
    with atomic_file(place / PROMPTS_FILE) as temporary:
        temporary.write_text(json.dumps(made_from, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    cosines = {name: float(found.vector.double() @ other.vector.double()) for name, other in others.items()}
    return CaptionDirection(direction=found, folder=place, cosines=cosines)


def _probe_folder(folder: Path) -> Path:
    if not (folder / RESULT_FILE).is_file() or (folder / SETTINGS).is_file():
        return folder
    found = sorted(path.parent for path in (folder / "probes" / "caption").glob(f"*/{SETTINGS}"))
    if len(found) != 1:
        raise WeightsMissing(
            f"run '{folder}' has {len(found)} caption regressors; one is needed.",
            fix="a run of kind caption: diffprobe train experiment=emoji/caption",
        )
    return found[0]


def _run_of(probe: Path) -> Path:
    """Return the folder `probes` of a probe; outside of a run, the folder beside it."""
    resolved = probe.resolve()
    return next((parent for parent in resolved.parents if parent.name == "probes"), resolved.parent)


def _encoder(regressor: CaptionRegressor, config: CaptionDirectionConfig) -> CaptionEncoder:
    encoder = load_caption_encoder(config.text_encoder or regressor.text_encoder)
    if encoder.digest != regressor.text_digest:
        raise WeightsMismatch(
            f"the text encoder of '{encoder.name}' is not that of the training.",
            f"digest: {encoder.digest[:12]}, of the training: {regressor.text_digest[:12]}",
            fix="text_encoder=FOLDER of the pipeline that the map was trained with",
        )
    return encoder


def _other(name: str, regressor: CaptionRegressor) -> Direction:
    other = Direction.load(name)
    if other.cell != regressor.cell or len(other.vector) != len(regressor.feature_mean):
        raise StoreMismatch(
            f"the direction '{name}' is for cell '{other.cell}' of width {len(other.vector)}; the map for "
            f"'{regressor.cell}' of width {len(regressor.feature_mean)}."
        )
    return other
