"""The saved clusters of a self-guided denoiser: which cluster an image has, by the network and its prototypes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.config.parse import parse
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, SchemaError, WeightsMismatch, WeightsMissing
from diffprobe.core.safetensors_file import load_safetensors
from diffprobe.generative.image_table import ImageTable
from diffprobe.generative.sinkhorn_prototypes import Prototypes, PrototypeSettings

FOLDER = "prototypes"
"""Folder of the prototypes inside that of the weights."""
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_ROWS = 64


def save_prototypes(folder: Path, prototypes: Prototypes, facts: Mapping[str, Any]) -> None:
    """Write prototypes, their settings and the facts of their training next to the parts of a pipeline.

    Args:
        facts: `tap`, `timestep`, `collapsed`, `effective_prototypes`, `entropy_curve`; of `SelfGuided`.
    """
    folder = folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / WEIGHTS_FILE) as temporary:
        save_file({name: value.contiguous() for name, value in _kept(prototypes).items()}, temporary)
    tree = {"settings": asdict(prototypes.settings), "d_in": prototypes.d_in, **facts}
    with atomic_file(folder / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", "utf-8")


def _kept(prototypes: Prototypes) -> dict[str, Tensor]:
    """Return what an assignment needs: all but the queue and the use in training."""
    return {
        name: value
        for name, value in prototypes.state_dict().items()
        if name not in ("stored", "n_stored", "usage") and not name.endswith("num_batches_tracked")
    }


def describe_collapse(facts: Mapping[str, Any]) -> str:
    """Return the line that names collapsed clusters, with the entropy curve."""
    curve = facts["entropy_curve"]
    shown = [curve[round(place * (len(curve) - 1) / 4)] for place in range(5)] if len(curve) > 5 else curve
    points = ", ".join(f"{nats:.2f} at step {step}" for step, nats in shown)
    return (
        f"the clusters collapsed: {facts['effective_prototypes']:.2f} effective prototypes of {facts['n_prototypes']} "
        f"on the validation images; entropy of their use in training, in nats: {points}."
    )


def find_weights(folder: Path | str) -> Path:
    """Return the folder of weights with prototypes of a finished run, or that folder itself. Raises: WeightsMissing."""
    for place in (Path(folder), Path(folder) / "weights"):
        if (place / FOLDER / CONFIG_FILE).is_file() and (place / FOLDER / WEIGHTS_FILE).is_file():
            return place
    raise WeightsMissing(
        f"there are no prototypes in '{folder}'.",
        f"looked for: {FOLDER}/{CONFIG_FILE} and {FOLDER}/{WEIGHTS_FILE}",
        fix="name a finished run of experiment=scenes/train_self_guided",
    )


def clusters_digest(folder: Path | str) -> str:
    """Return the digest of all that decides a cluster: denoiser, autoencoder, text encoder, prototypes.

    Raises: WeightsMissing.
    """
    weights = find_weights(folder)
    files = [path for path in sorted(weights.rglob("*")) if path.is_file()]
    return digest_json({str(path.relative_to(weights)): digest_file(path) for path in files})


class Clusters:
    """A trained denoiser and its prototypes, which turn images into clusters.

    Images get noise that their keys fix, at the middle of the window of timesteps of the training.

    Args:
        folder: finished run of kind `train_self_guided`, or its folder of weights.
        random_network: read the features of random weights in place of the trained ones, as a control; then there are
            no clusters.
        device: of the network.
    Raises: WeightsMissing, WeightsMismatch; SchemaError for a damaged file.
    """

    def __init__(self, folder: Path | str, *, random_network: bool = False, device: str = "cpu") -> None:
        self.weights = find_weights(folder)
        path = self.weights / FOLDER / CONFIG_FILE
        try:
            self.facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
            tap, timestep = str(self.facts["tap"]), int(self.facts["timestep"])
            self.settings = parse(PrototypeSettings, self.facts["settings"], at="settings")
            self.prototypes = Prototypes(int(self.facts["d_in"]), self.settings, seed=0).eval()
            self.collapsed = bool(self.facts["collapsed"])
        except (ValueError, KeyError, TypeError) as error:
            raise SchemaError(f"'{path}' does not describe prototypes: {error}.") from error
        state = load_safetensors(self.weights / FOLDER / WEIGHTS_FILE)
        wanted = _kept(self.prototypes)
        if {name: value.shape for name, value in state.items()} != {name: v.shape for name, v in wanted.items()}:
            raise WeightsMismatch(f"the prototypes in '{self.weights / FOLDER}' do not fit their settings.")
        self.prototypes.load_state_dict(state, strict=False)
        self._read = DiffusionFeatures.from_pretrained(
            str(self.weights), taps=[tap], timesteps=[timestep], pool="mean", random_weights=random_network,
            device=device,
        )  # fmt: skip

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return self._read.resolution

    def require_clusters(self) -> None:
        """Refuse clusters that collapsed in training. Raises: ConfigError, with the entropy curve."""
        if self.collapsed:
            raise ConfigError(
                describe_collapse(self.facts),
                "conditions on one cluster are none",
                fix="train again with a smaller trainer.learning_rate, a larger prototypes.queue, or form=released",
            )

    def features(
        self, images: Float[Tensor, "image 3 height width"], keys: Sequence[str]
    ) -> Float[Tensor, "image d_in"]:
        """Return the mid-block features of images in [0, 1], on the CPU."""
        parts = [
            next(iter(self._read(part, keys=keys[start : start + _ROWS]).values())).cpu()
            for start, part in zip(range(0, len(images), _ROWS), images.split(_ROWS), strict=True)
        ]
        return torch.cat(parts)

    def assign(self, features: Float[Tensor, "image d_in"]) -> Int[Tensor, " image"]:
        """Return the cluster of each image by its features."""
        return self.prototypes.assign(features)


@lru_cache(maxsize=2)
def _open(folder: str, digest: str) -> Clusters:
    return Clusters(folder)


_assigned: dict[str, list[str]] = {}


def label_by_cluster(table: ImageTable, attribute: str, folder: str) -> ImageTable:
    """Return the table with the cluster of each image as an attribute; a split is assigned once per process.

    Raises: ConfigError for collapsed clusters, and if a sample has the attribute already; the errors of `Clusters`.
    """
    taken = next((key for key, values in zip(table.keys, table.attributes, strict=True) if attribute in values), None)
    if taken is not None:
        raise ConfigError(
            f"classes.clusters: sample '{taken}' has an attribute '{attribute}' already.",
            fix="classes.attribute=cluster",
        )
    digest = clusters_digest(folder)
    place = digest_json([digest, table.keys, list(table.images.shape)])
    if place not in _assigned:
        clusters = _open(folder, digest)
        clusters.require_clusters()
        if table.images.shape[-1] != clusters.resolution:
            raise WeightsMismatch(
                f"'{folder}' clusters images of {clusters.resolution} pixels; these have {table.images.shape[-1]}.",
                fix="the same autoencoder in both stages",
            )
        found = [
            clusters.assign(clusters.features(table.to_float(rows), [table.keys[row] for row in rows.tolist()]))
            for rows in torch.arange(len(table)).split(512)
        ]
        _assigned[place] = [str(number) for number in torch.cat(found).tolist()]
    named = zip(table.attributes, _assigned[place], strict=True)
    return replace(table, attributes=[{**values, attribute: number} for values, number in named])
