"""Hyperfeatures of `diffprobe eval correspondence`: mixtures of cells trained on pairs of the training split.

Four of them: `hyperfeatures` over all cells, and its controls. `hyperfeatures_equal` does not learn the weights of the
cells, `hyperfeatures_single` has the best cell alone, and `hyperfeatures_random` reads a denoiser of random weights.
Every state of a training (each `mixture.every` steps) is matched, and val chooses among them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import SchemaError
from diffprobe.evaluation.correspondence_settings import MixtureTraining

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.probes.dense.mixture import PairMixture, TrainingPair
    from diffprobe.shards.dense_truth import PointSample

MIXTURE, EQUAL, SINGLE, RANDOM_MIXTURE = (
    "hyperfeatures", "hyperfeatures_equal", "hyperfeatures_single", "hyperfeatures_random"
)  # fmt: skip
MIXTURES = (MIXTURE, EQUAL, SINGLE, RANDOM_MIXTURE)
"""The trained rungs."""
FOLDER = "mixtures"
"""Folder of a run with the states of each mixture."""
Maps = Callable[[Sequence["PointSample"]], "dict[str, Tensor]"]


def trained_states(
    rung: str,
    settings: MixtureTraining,
    pairs: "Callable[[], list[TrainingPair]]",
    cells: Sequence[str],
    run_dir: Path,
    *,
    resolution: int,
    digest: str,
) -> "dict[str, PairMixture]":
    """Train a mixture, or read what an earlier call trained; return its states by name ("step100"), on the CPU.

    Args:
        rung: one of `MIXTURES`.
        pairs: reads the training pairs; called only if there is something to train.
        cells: the cells that are mixed.
        digest: of the training pairs; files of others are refused.
    Raises: SchemaError for a file of other pairs; NonFinite.
    """
    from safetensors.torch import load_file, save_file

    from diffprobe.core.safetensors_file import open_safetensors
    from diffprobe.probes.dense.mixture import PairMixture, make_mixture, train_mixture

    path = run_dir / FOLDER / f"{rung}.safetensors"
    if not path.exists():
        data = pairs()
        mixture = make_mixture(
            data, cells, width=settings.width, groups=settings.groups, learn_weights=rung != EQUAL, seed=settings.seed
        )
        kept: dict[str, Tensor] = {}
        curve: dict[str, float] = {}
        for step, loss in train_mixture(
            mixture, data, resolution=resolution, steps=settings.steps, batch=settings.batch,
            learning_rate=settings.learning_rate, seed=settings.seed, every=settings.every,
        ):  # fmt: skip
            kept |= {f"step{step}/{name}": value.clone() for name, value in mixture.state_dict().items()}
            curve[f"step{step}"] = loss
        shapes = {cell: list(data[0].maps[cell].shape[1:]) for cell in cells}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            meta = {"pairs": digest, "shapes": json.dumps(shapes), "losses": json.dumps(curve)}
            save_file(kept, temporary, metadata=meta)
    fix = f"remove the folder '{path.parent}' and repeat the command"
    with open_safetensors(path, fix=fix) as stored:
        header = stored.metadata() or {}
    if header.get("pairs") != digest:
        raise SchemaError(f"'{path}' is not trained on these pairs.", fix=fix)
    shapes_of = {cell: tuple(shape) for cell, shape in json.loads(header["shapes"]).items()}
    values = load_file(path)
    states: dict[str, PairMixture] = {}
    for state in json.loads(header["losses"]):
        one = PairMixture(
            shapes_of, dict.fromkeys(shapes_of, 1.0), width=settings.width, groups=settings.groups,
            learn_weights=rung != EQUAL,
        )  # fmt: skip
        start = f"{state}/"
        one.load_state_dict({name.removeprefix(start): v for name, v in values.items() if name.startswith(start)})
        states[state] = one.eval().requires_grad_(False)
    return states


def mixed_maps(read: Maps, states: "Mapping[str, PairMixture]") -> Maps:
    """Return what reads the mixtures of each state."""

    def maps(samples: "Sequence[PointSample]") -> "dict[str, Tensor]":
        found = {cell: values.cpu() for cell, values in read(samples).items()}
        return {name: state(found) for name, state in states.items()}

    return maps
