"""What `diffprobe steer` steers: a saved direction, or latents or neurons of the tap of a trained autoencoder.

Each is opened as edits of one tap (`diffprobe.scoring.edits`): its own, and controls of the same kind, along with the
unit vector in the space in which finished images are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffprobe.analysis.dose_response import DataCloud
from diffprobe.backbones.cell import Cell
from diffprobe.backbones.intervention import Splice
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, EmptyClass, SplitLeak, StoreMismatch, unknown
from diffprobe.core.result import BACKBONE, INPUT, RESULT_FILE, SHARDS, read_result
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.decode import require_match, run_of
from diffprobe.evaluation.factor_edits import TrainingRows, equal_density
from diffprobe.evaluation.load_sae_run import TrainedRun, open_runs
from diffprobe.features.reader import FeatureStore
from diffprobe.features.row_layout import by_place
from diffprobe.probes.direction import Direction, random_directions
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.serialization import SETTINGS, TENSORS
from diffprobe.runs.massive_notes import refuse_treated_run
from diffprobe.runs.provenance import backbone_digest
from diffprobe.scoring.edits.base import Edit
from diffprobe.scoring.edits.detect_and_replace import AboveThreshold, DetectAndReplace, Detector, LatentActive
from diffprobe.scoring.edits.direction import AblateDirection, AddVector
from diffprobe.scoring.edits.latent import EditLatents, check_latents
from diffprobe.scoring.edits.neuron import EditNeurons

Mode = Literal["add", "ablate", "replace"]
OWN = "steered"
"""Name of the edit that is asked for; its controls are "random 1" and so on."""
SHARE = 0.1
"""Share of training rows on which the detector of a neuron, or of a random direction, finds its concept."""
_BANK, _MOST_ROWS = 4000, 1 << 19
"""Rows among which a replacement is sought, and rows that give units."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What is steered."""

    cell: Cell
    """Whose tap is edited, with its pooling."""
    target: str
    """Name: the target of a direction, or "latent 17"."""
    along: Float64[np.ndarray, " d"]
    """Unit vector along which finished images are measured, in the space of `reading`."""
    reading: Cell
    """Cell in which finished images are read; of a cell with places, the mean over them."""
    edits: Mapping[str, Edit]
    """`OWN`, "random 1", ... -> what is done."""
    inputs: Mapping[str, str]
    """Digests, for the record."""
    notes: tuple[str, ...] = ()
    """What could not be compared."""


def cell_of_reading(cell: Cell) -> Cell:
    """Return the cell in which finished images are read. Raises: ConfigError for a maximum."""
    return cell if Splice(cell.pool).is_pooled else replace(cell, pool="mean")


def read_cloud(store: FeatureStore, split: str, cell: Cell, neighbours: int) -> DataCloud:
    """Return the samples of a split in the space in which finished images are read. Raises: EmptyClass, NonFinite."""
    rows = _rows(store, split, cell)
    pooled = rows.double().mean(1) if rows.shape[1] > 1 else rows[:, 0].double()
    return DataCloud(features=pooled.numpy(), neighbours=neighbours)


def open_direction(
    folder: Path | str, store: FeatureStore, *, split: str, mode: Mode, n_random: int, neighbours: int, seed: int
) -> Subject:
    """Open a saved direction.

    Args:
        folder: what `Direction.save` wrote.
        store: with features of real images in its cell.
        split: of the store: samples that give the unit, and for `replace` those that are put in.
        mode: `add` the direction, `ablate` what varies along it, or `replace` the features on the wrong side of its
            midpoint.

    Raises: as `require_match`; ConfigError for a run on treated channels; EmptyClass for samples that do not vary, or
        are all on one side.
    """
    direction, run = Direction.load(folder), run_of(folder)
    refuse_treated_run(run, "steering")
    notes, cell = require_match(direction, store, run, split), Cell.parse(direction.cell)
    cloud = read_cloud(store, split, cell, neighbours)
    own, spread = _unit(direction.vector), cloud.spread(_unit(direction.vector))
    units = [own, *map(_unit, random_directions(len(direction.vector), n_random, seed=seed).T)]
    rows = torch.from_numpy(cloud.features).float()

    def edit(unit: Float64[np.ndarray, " d"], number: int) -> Edit:
        vector = torch.from_numpy(unit)
        if mode == "add":
            return AddVector(spread * vector)
        if mode == "ablate":
            return AblateDirection(vector, float((cloud.features @ unit).mean()))
        detector = (
            AboveThreshold.at_quantile(vector, rows, SHARE) if number
            else AboveThreshold(vector=vector, threshold=direction.midpoint)
        )  # fmt: skip
        return DetectAndReplace(detector=detector, bank=_bank(rows, seed))

    return Subject(
        cell=cell, target=direction.target, along=own, reading=cell_of_reading(cell),
        edits=_named([edit(unit, number) for number, unit in enumerate(units)]),
        inputs={f"{INPUT}direction": digest_file(Path(folder) / SETTINGS)}, notes=notes,
    )  # fmt: skip


def open_latents(
    run: Path | str, store: FeatureStore, latents: Sequence[int], *, split: str, mode: Mode, n_random: int, seed: int
) -> Subject:
    """Open latents of the autoencoder of a run: all are edited at once, with the reconstruction error kept.

    Args:
        run: folder of a finished run with one autoencoder.
        store: with features of real images in its cell; its training split gives mean activations and densities.
        latents: which.
        split: of the store, with samples that the autoencoder was not trained on.
        mode: `add` to their activations, `ablate` them, or `replace` the features on which one is active, or is not.

    Raises: ConfigError for another number of autoencoders or cells than one, a latent that it lacks, or several with
        `replace`; StoreMismatch, SplitLeak; EmptyClass for a latent that is not active.
    """
    trained, folder, cell = _one(run)
    _require_store(trained, cell, store, split)
    sae = KSAE.from_pretrained(folder).eval().requires_grad_(False)
    check_latents(sae, latents)
    _require_single(latents, mode, "latent")
    training = TrainingRows.of(sae, _training_rows(trained, store, cell))
    silent = [latent for latent in latents if not training.density[latent] > 0]
    if silent:
        raise EmptyClass(
            f"latent {', '.join(map(str, silent))} is active on no training row, so its strength has no unit.",
            fix="a latent that is active: diffprobe explore RUN_FOLDER",
        )
    bank = _bank(training.flat, seed) if mode == "replace" else None

    def edit(chosen: Sequence[int]) -> Edit:
        if mode == "replace":
            assert bank is not None
            return DetectAndReplace(detector=LatentActive(dictionary=sae, latent=chosen[0]), bank=bank)
        means = tuple(float(training.means[one]) for one in chosen)
        return EditLatents(dictionary=sae, latents=tuple(chosen), means=means, mode=mode)

    others = [equal_density(training.density, latent, n_random, seed=seed, without=latents) for latent in latents]
    controls = [list(dict.fromkeys(drawn[number] for drawn in others)) for number in range(n_random)]
    rows = sae.W_dec[list(latents)].double()
    weights = torch.tensor([float(training.means[one]) for one in latents], dtype=torch.float64)
    return Subject(
        cell=cell, target=_name("latent", latents), along=_unit(weights @ rows), reading=cell_of_reading(cell),
        edits=_named([edit(list(latents)), *map(edit, controls)]), inputs=_inputs(folder),
    )  # fmt: skip


def open_neurons(
    run: Path | str, store: FeatureStore, neurons: Sequence[int], *, split: str, mode: Mode, n_random: int, seed: int
) -> Subject:
    """Open raw neurons of the tap of a run: numbers of a feature that no autoencoder chose.

    Args:
        run: folder of a finished run with one autoencoder, which names the cell.
        store, split: as `open_latents`.
        neurons: positions in a feature.
        mode: `add` standard deviations, `ablate` towards the mean, or `replace` the features below or above the value
            that a share `SHARE` of training rows exceeds.

    Raises: as `open_latents`, of neurons.
    """
    trained, folder, cell = _one(run)
    _require_store(trained, cell, store, split)
    _require_single(neurons, mode, "neuron")
    rows = _training_rows(trained, store, cell).flatten(0, 1)
    EditNeurons.of(neurons, rows)  # neurons that the cell lacks
    bank, width = _bank(rows, seed), rows.shape[1]
    if n_random * len(neurons) > width - len(neurons):
        raise ConfigError(
            f"n_random={n_random}: the {width} numbers of a feature do not hold as many other neurons.",
            fix="n_random=0",
        )

    def edit(chosen: Sequence[int]) -> Edit:
        if mode == "replace":
            unit = torch.nn.functional.one_hot(torch.tensor(chosen[0]), width).float()
            detector: Detector = AboveThreshold.at_quantile(unit, rows, SHARE)
            return DetectAndReplace(detector=detector, bank=bank)
        return EditNeurons.of(chosen, rows, mode)

    left = [one for one in range(width) if one not in neurons]
    drawn = [left[place] for place in np.random.default_rng(derive_seed("random neurons", seed)).permutation(len(left))]
    size = len(neurons)
    controls = [drawn[number * size : (number + 1) * size] for number in range(n_random)]
    along = np.zeros(width)
    along[list(neurons)] = EditNeurons.of(neurons, rows).units
    return Subject(
        cell=cell, target=_name("neuron", neurons), along=along / np.linalg.norm(along),
        reading=cell_of_reading(cell), edits=_named([edit(list(neurons)), *map(edit, controls)]),
        inputs=_inputs(folder),
    )  # fmt: skip


def is_sae_run(folder: Path | str) -> bool:
    """Return whether a folder is that of a finished sae run. Raises: SchemaError for a damaged result."""
    path = Path(folder) / RESULT_FILE
    return path.is_file() and read_result(path).kind == "sae"


def _one(run: Path | str) -> tuple[TrainedRun, Path, Cell]:
    found = [(trained, folder) for trained in open_runs(str(run)) for folder in trained.saes().values()]
    if len(found) != 1:
        raise ConfigError(f"'{run}' has {len(found)} autoencoders; one is steered.", fix="the folder of one member")
    ((trained, folder),) = found
    refuse_treated_run(trained.result, "steering")
    cells = trained.cells(folder)
    if len(cells) != 1:
        raise ConfigError(
            f"the autoencoder of '{run}' was trained in {len(cells)} cells: {', '.join(cell.name for cell in cells)}.",
            fix="one that was trained in one cell",
        )
    return trained, folder, cells[0]


def _require_store(trained: TrainedRun, cell: Cell, store: FeatureStore, split: str) -> None:
    """Check that a store is of the model and cell of a run, and a split held out. Raises: StoreMismatch, SplitLeak."""
    manifest, data = store.manifest, trained.config.data
    if cell.name not in manifest.cells:
        raise StoreMismatch(
            f"the autoencoder is for the cell '{cell.name}', which store '{store.path}' does not have.",
            f"it has: {', '.join(store.cells)}",
        )
    if trained.result.artifacts.get(BACKBONE) != backbone_digest(manifest.backbone):
        raise StoreMismatch(f"the autoencoder is of another backbone than store '{store.path}'.")
    for name in (split, data.train_split):
        if name not in store.splits:
            raise unknown("split of this store", name, store.splits)
    if split == data.train_split and trained.result.artifacts.get(SHARDS) == manifest.data.get("shard_set"):
        raise SplitLeak(f"split '{split}': the autoencoder was trained on it.", fix="split=test")


def _require_single(chosen: Sequence[int], mode: Mode, what: str) -> None:
    if mode == "replace" and len(chosen) != 1:
        raise ConfigError(f"mode=replace has one detector, but {len(chosen)} {what}s are given.", fix=f"{what}=NUMBER")


def _rows(store: FeatureStore, split: str, cell: Cell) -> Float[Tensor, "sample place d_in"]:
    rows = by_place(store.load(split, [cell.name]).features[cell.name], cell.name)
    return rows.reshape(len(rows), -1, rows.shape[-1])


def _training_rows(trained: TrainedRun, store: FeatureStore, cell: Cell) -> Float[Tensor, "sample place d_in"]:
    rows = _rows(store, trained.config.data.train_split, cell)
    return rows[: max(1, _MOST_ROWS // rows.shape[1])].float()


def _bank(rows: Float[Tensor, "rows d_in"], seed: int) -> Float[Tensor, "rows d_in"]:
    chosen = np.random.default_rng(derive_seed("bank", seed)).permutation(len(rows))[:_BANK]
    return rows[torch.from_numpy(np.sort(chosen))]


def _unit(vector: Tensor) -> Float64[np.ndarray, " d"]:
    found: Float64[np.ndarray, " d"] = vector.detach().double().numpy()
    return found / np.linalg.norm(found)


def _named(edits: Sequence[Edit]) -> dict[str, Edit]:
    own, *controls = edits
    return {OWN: own, **{f"random {number}": one for number, one in enumerate(controls, 1)}}


def _name(kind: str, chosen: Sequence[int]) -> str:
    return f"{kind} {', '.join(map(str, chosen))}"


def _inputs(folder: Path) -> dict[str, str]:
    return {f"{INPUT}sae": digest_file(folder / TENSORS)}
