"""`diffprobe steer`: generate images with an edit inside the model, and measure what moves.

Finished images are noised again and read in the cell of the edit, so that neither the prompt nor the edit is in the
features. Real images of a feature store give the unit of strength and the distance from the data.
"""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import numpy as np
from jaxtyping import Float64

from diffprobe.analysis.certification.steering import check_strengths
from diffprobe.analysis.dose_response import Dose, dose_response
from diffprobe.analysis.statistics import Interval
from diffprobe.config.validators import at_least
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, StoreMismatch, unknown
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import (
    BACKBONE,
    RESULT_FILE,
    STORE,
    MetricRecord,
    StartTime,
    make_result,
    write_result,
)
from diffprobe.evaluation.kept_draws import FOLDER
from diffprobe.evaluation.steer_subject import (
    OWN,
    Mode,
    Subject,
    is_sae_run,
    open_direction,
    open_latents,
    open_neurons,
    read_cloud,
)  # fmt: skip
from diffprobe.evaluation.steered_model import SteeredReader
from diffprobe.features.massive_channels import refuse_treated
from diffprobe.features.reader import FeatureStore
from diffprobe.probes.direction import Direction
from diffprobe.report.table import csv_value
from diffprobe.runs.provenance import backbone_digest

if TYPE_CHECKING:
    from PIL.Image import Image

KIND = "steer"
"""Kind of the result."""
GRID_FILE, TABLE_FILE = "grid.png", "steering.csv"
"""Images by strength, and the table, beside the result."""
BRANCHES = ("text", "both")
_GAP, _HEAD = 2, 14  # pixels


@dataclass(frozen=True, kw_only=True)
class SteerConfig:
    """Settings of `diffprobe steer`."""

    generator: str = ""
    """Text-to-image model that draws: a folder, or the name of a shipped model."""
    store: str = ""
    """Folder of a feature store of real images, with the cell of the direction or of the autoencoder."""
    latent: int | tuple[int, ...] | None = None
    """Latents of the autoencoder of a run that are steered, all at once."""
    neuron: int | tuple[int, ...] | None = None
    """Neurons of its tap that are steered, instead: positions in a feature."""
    mode: str = "add"
    """What is done: "add", "ablate", or "replace" by features of real images."""
    prompts: tuple[str, ...] = ()
    """Prompts that are drawn."""
    split: str = "test"
    """Split of the store whose samples are used."""
    strengths: tuple[float, ...] = (-4.0, -2.0, 0.0, 2.0, 4.0)
    """Strengths; 0 is one of them. Of `add`: standard deviations of the split's coordinate along a direction or of a
    neuron, mean activations of a latent. Of `ablate` and `replace`: shares, from -1 to 1."""
    seeds: int = 4
    """Images per prompt; sample s of every prompt starts from the same noise."""
    others: tuple[str, ...] = ()
    """Folders of saved directions in the cell in which images are read, along which they are measured, too."""
    window: tuple[int, int] | None = None
    """Smallest and largest timestep at which the edit acts; None for all."""
    branch: str = "text"
    """Pass of guidance on which it acts: "text", or "both"."""
    guidance: float = 0.0
    """Added to the scale of classifier-free guidance: 0 is none (scale 1 in diffusers)."""
    sampling_steps: int = 20
    """Sampling steps: DDIM, or Euler for a flow model."""
    n_random: int = 3
    """Controls that are steered, too: random directions of equal norm, latents of equal density, or other neurons."""
    neighbours: int = 5
    """Nearest samples of the store whose mean distance is that of an image from them."""
    n_resamples: int = 1000
    """Bootstrap resamples of prompts."""
    level: float = 0.95
    """Coverage of the intervals."""
    seed: int = 0
    """Seed of noise, random directions and resamples."""

    def __post_init__(self) -> None:
        for name, what in (("generator", "FOLDER of a text-to-image model"), ("store", "FOLDER")):
            if not getattr(self, name):
                raise ConfigError(f"steering needs a {name}.", fix=f"{name}={what}")
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ConfigError(
                f"{len(self.prompts)} prompts: at least one, each once.", fix="prompts='[a red heart, a cat]'"
            )
        check_strengths(self.strengths)
        if self.mode not in get_args(Mode):
            raise unknown("mode", self.mode, get_args(Mode))
        if self.mode != "add" and max(map(abs, self.strengths)) > 1:
            raise ConfigError(
                f"mode={self.mode} with strengths={list(self.strengths)}: they are shares, from -1 to 1.",
                fix="strengths=[-1,0,1]",
            )
        if self.latent is not None and self.neuron is not None:
            raise ConfigError("latent and neuron are both given; one is steered at a time.", fix="leave one out")
        at_least(1, seeds=self.seeds, sampling_steps=self.sampling_steps)
        at_least(1, neighbours=self.neighbours, n_resamples=self.n_resamples)
        at_least(0, guidance=self.guidance, n_random=self.n_random)
        if self.branch not in BRANCHES:
            raise unknown("branch", self.branch, BRANCHES)
        if self.branch == "both" and self.guidance == 0:
            raise ConfigError("branch=both has no effect without guidance: there is one pass.", fix="guidance=2")
        if self.window is not None and not 0 <= self.window[0] <= self.window[1]:
            raise ConfigError(f"window={list(self.window)}: needed is [smallest,largest], from 0.")


def unit_of(config: SteerConfig) -> str:
    """Return the unit of strength, in words."""
    if config.mode != "add":
        done = {"ablate": "1 removes what is steered, -1 doubles it", "replace": "1 inserts the concept, -1 removes it"}
        return f"share of {config.mode}: {done[config.mode]}"
    if config.latent is not None:
        return "mean activations of the latent on the training rows on which it is active"
    of = "of the neuron" if config.neuron is not None else "of the store's samples along the direction"
    return f"standard deviations {of}"


@dataclass(frozen=True, kw_only=True)
class Steered:
    """What steering did."""

    doses: dict[str, tuple[Dose, ...]]
    """`OWN`, or "random 1" ... -> what each strength of that edit does."""
    notes: tuple[str, ...]
    """What could not be compared."""


def steer(folder: Path | str, config: SteerConfig, *, output: Path | str = "runs") -> tuple[Steered, Path]:
    """Generate at each strength, and measure; write `result.json`, `steering.csv` and `grid.png`.

    Args:
        folder: what `Direction.save` wrote; or that of a finished sae run, with `latent` or `neuron`.
        output: folder of runs. The result is in <output>/steer/<first 12 digits of a digest>.

    Returns: the numbers and the path of the result.
    Raises: StoreMismatch and SplitLeak as `decode.require_match`, and for a generator with another network than the
        store; WeightsMismatch for one that takes no prompts; ConfigError for latents or neurons of a
        direction, a run without either, or more of them than there are, a tap that cannot be replaced, or another
        direction of another cell; EmptyClass for too few samples or a latent that is never active; NonFinite.
    """
    started_at = StartTime.now()
    store = FeatureStore.open(config.store)
    refuse_treated(store.manifest.data, "steering")
    subject = _subject(folder, config, store)
    directions = {OWN: subject.along, **_others(config, subject)}
    prompts = [prompt for prompt in config.prompts for _ in range(config.seeds)]
    generator = SteeredReader(
        config.generator, subject.cell, prompts,
        [f"seed {number}" for _ in config.prompts for number in range(config.seeds)],
        sampling_steps=config.sampling_steps, guidance=config.guidance, seed=config.seed, window=config.window,
        edits_unconditional=config.branch == "both", keep=Path(output) / "stores" / FOLDER, reading=subject.reading,
    )  # fmt: skip
    if generator.digest != backbone_digest(store.manifest.backbone):
        raise StoreMismatch(
            f"store '{config.store}' is of another model than generator '{config.generator}'.",
            fix="a store of the features of this generator",
        )
    cloud = read_cloud(store, config.split, subject.cell, config.neighbours)
    doses, images = {}, {}
    with (
        ProgressDisplay(transient=True) as progress,
        progress.bar(len(subject.edits), "steering", unit="edits", keep=False) as bar,
    ):
        for name, edit in subject.edits.items():
            found = generator.draw(edit, config.strengths)
            if name == OWN:
                images = {strength: generator.decode(latents) for strength, latents in found.items()}
            features = {strength: generator.reread(latents) for strength, latents in found.items()}
            doses[name] = dose_response(
                features, directions, cloud, prompts, n_resamples=config.n_resamples, level=config.level,
                seed=config.seed,
            )  # fmt: skip
            bar.update(1)
    inputs = {STORE: store.manifest.digest, BACKBONE: generator.digest, **subject.inputs}
    tree = {"subject": str(folder), **dataclasses.asdict(config)}
    place = Path(output) / KIND / digest_json({**tree, "inputs": inputs})[:12]
    place.mkdir(parents=True, exist_ok=True)
    n = len(prompts)
    metrics = [record for name, found in doses.items() for record in _records(name, found, subject, n)]
    result = make_result(
        run=place.name, experiment=KIND, kind=KIND, config=tree, seeds={"noise": config.seed, "draws": config.seed},
        metrics=metrics, started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    with atomic_file(place / GRID_FILE) as temporary:
        image_grid(images, config.seeds).save(temporary, format="PNG")
    _write_csv(result.metrics, place / TABLE_FILE)
    write_result(result, place / RESULT_FILE)
    return Steered(doses=doses, notes=subject.notes), place / RESULT_FILE


def _subject(folder: Path | str, config: SteerConfig, store: FeatureStore) -> Subject:
    """Open what is steered. Raises: ConfigError for settings that do not fit the folder."""
    chosen = {"latent": config.latent, "neuron": config.neuron}
    given = {name: (value,) if isinstance(value, int) else value for name, value in chosen.items() if value is not None}
    mode, shared = cast(Mode, config.mode), {"split": config.split, "n_random": config.n_random, "seed": config.seed}
    if is_sae_run(folder):
        if not given:
            raise ConfigError(f"'{folder}' is an sae run: what of it is steered?", fix="latent=17, or neuron=5")
        (name,) = given
        opener = open_latents if name == "latent" else open_neurons
        return opener(folder, store, given[name], mode=mode, **shared)  # type: ignore[arg-type]
    if given:
        raise ConfigError(
            f"{next(iter(given))} has no effect on '{folder}', which is not the folder of a finished sae run.",
            fix="the folder that `diffprobe train` printed, with result.json",
        )
    return open_direction(folder, store, mode=mode, neighbours=config.neighbours, **shared)  # type: ignore[arg-type]


def _others(config: SteerConfig, own: Subject) -> dict[str, Float64[np.ndarray, " d"]]:
    """Return the other directions, by target. Raises: ConfigError for another cell or a target that is given twice."""
    found: dict[str, Float64[np.ndarray, " d"]] = {}
    for folder in config.others:
        other = Direction.load(folder)
        if other.cell != own.reading.name:
            raise ConfigError(f"others: '{folder}' is of cell '{other.cell}', images are read in '{own.reading.name}'.")
        if other.target in (*found, own.target, OWN):
            raise ConfigError(f"others: '{folder}' is a second direction of '{other.target}'.")
        found[other.target] = other.vector.double().numpy() / float(other.vector.double().norm())
    return found


def _records(name: str, doses: Sequence[Dose], subject: Subject, n: int) -> list[MetricRecord]:
    """Return the records of a steered direction: `moved` along each measured one, and `distance`, by strength."""
    found = []
    for dose in doses:
        values: list[tuple[str, str | None, Interval | float]] = [("distance", None, dose.distance)]
        values += [("moved", subject.target if along == OWN else along, value) for along, value in dose.moved.items()]
        for measure, target, value in values:
            detail: dict[str, object] = {"strength": dose.strength, "steered": name}
            if isinstance(value, Interval):
                detail["interval"] = [value.low, value.high]
            number = value.estimate if isinstance(value, Interval) else value
            found.append(
                MetricRecord(
                    name=measure, value=number, split="generated", n=n, cell=subject.reading.name, target=target,
                    probe=name, detail=detail,
                )
            )  # fmt: skip
    return found


def _write_csv(records: Sequence[MetricRecord], path: Path) -> None:
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["steered", "strength", "measure", "along", "value", "low", "high", "images"])
        for one in records:
            low, high = one.detail.get("interval", ("", ""))
            cells = [one.probe, one.detail["strength"], one.name, one.target or "", one.value, low, high, one.n]
            writer.writerow([csv_value(cell) for cell in cells])


def image_grid(images: "Mapping[float, Sequence[Image]]", seeds: int, *, side: int | None = None) -> "Image":
    """Return images as a grid: a column per strength, which is named above it, and a row per prompt and seed.

    Args:
        images: strength -> images in the order of prompts, then seeds.
        seeds: images per prompt; a wider gap separates prompts.
        side: largest side of an image, pixels; larger ones are made smaller. None: as they are.
    """
    from PIL import Image, ImageDraw

    columns = [images[strength] for strength in sorted(images)]
    width, height = columns[0][0].size
    if side is not None and max(width, height) > side:
        width, height = (max(1, round(length * side / max(width, height))) for length in (width, height))
        columns = [[image.resize((width, height), Image.Resampling.LANCZOS) for image in column] for column in columns]
    rows = len(columns[0])
    prompts = -(-rows // seeds)
    size = (len(columns) * (width + _GAP) + _GAP, _HEAD + rows * (height + _GAP) + prompts * _GAP)
    grid = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(grid)
    for column, (strength, found) in enumerate(zip(sorted(images), columns, strict=True)):
        left = _GAP + column * (width + _GAP)
        pen.text((left + width / 2, _HEAD / 2), f"{strength:+g}" if strength else "0", fill="black", anchor="mm")
        for row, image in enumerate(found):
            grid.paste(image, (left, _HEAD + row * (height + _GAP) + (row // seeds) * _GAP))
    return grid
