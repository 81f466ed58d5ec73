"""Readers of one attribute of images, by name, with their confusion: what gives rates of generated images.

A scene reader reads images of the world of `scenes`. For other data, a classifier of clean latents is fitted to
labelled images of a data set, and its confusion is counted on their test split, which it was not fitted to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Int64, UInt8

from diffprobe.analysis.audit.causal import NEGATIVE_CODE, POSITIVE_CODE, require_informative
from diffprobe.analysis.audit.spec import Axis
from diffprobe.analysis.statistics import confusion_counts
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, EmptyClass, SchemaError, WeightsMismatch, unknown
from diffprobe.core.result import INPUT, RESULT_FILE, read_result

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.analysis.latent_classifier import LatentClassifier
    from diffprobe.backbones.cell import Cell
    from diffprobe.generative.scene_reader import SceneReader

RENDERED_PER_ROLE = 20
"""Rendered images per role behind the confusion of a scene reader."""
_NONE = -1


class AxisReader(Protocol):
    """Reads which end of an axis an image is perceived as."""

    @property
    def name(self) -> str:
        """What reads, and what it was made from."""

    @property
    def validated_on(self) -> str:
        """What its confusion was counted on."""

    @property
    def confusion(self) -> Int64[np.ndarray, "2 2"]:
        """Counts by true (rows) and read end (columns); the negative end first."""

    @property
    def needs_images(self) -> bool:
        """Whether it reads images; otherwise latents are enough."""

    def read(self, latents: "Tensor", images: UInt8[np.ndarray, "image h w 3"] | None) -> Int64[np.ndarray, " image"]:
        """Return `NEGATIVE_CODE` or `POSITIVE_CODE` of each image."""


@dataclass(frozen=True, kw_only=True)
class OpenedReaders:
    """The readers of all steered axes."""

    of_axis: Mapping[str, AxisReader]
    """Axis -> its reader."""
    inputs: Mapping[str, str]
    """Name of what was read -> its digest, for the artifacts of a result."""


def open_scene_readers(
    reader: str, axes: Mapping[str, tuple[Axis, str]], *, confusion: str | None, resolution: int, seed: int
) -> OpenedReaders:
    """Open a scene reader for some axes.

    Args:
        reader: see `scene_reader.find_reader`.
        axes: name -> the axis, and the factor that is read.
        confusion: result of `diffprobe eval rates` with this reader (the file or its folder); None for rendered images.
        resolution: side length of the generated images.
        seed: of the rendered images.

    Raises: errors of `load_reader`; WeightsMismatch for another resolution; UnknownName for a factor that the world
        lacks; ConfigError for words that are not its values, or a confusion of another reader or factor;
        UninformativeReader.
    """
    from diffprobe.evaluation.rate_images import rendered_images
    from diffprobe.generative.scene_reader import WEIGHTS_FILE, find_reader, load_reader
    from diffprobe.shards.scenes.spec import FACTORS
    from diffprobe.shards.scenes.world import SHIPPED, load_world

    spec = load_world(SHIPPED)
    opened = load_reader(reader, spec)
    if opened.resolution != resolution:
        raise WeightsMismatch(
            f"the generator draws images of {resolution} pixels, reader '{reader}' reads {opened.resolution}."
        )
    digest = digest_file(find_reader(reader) / WEIGHTS_FILE)
    inputs = {f"{INPUT}reader": digest}
    if confusion is not None:
        inputs[f"{INPUT}confusion"] = digest_file(_result_file(confusion))
    found: dict[str, AxisReader] = {}
    rendered: list[Any] = []
    for name, (axis, factor) in axes.items():
        if factor not in FACTORS:
            raise unknown(f"factor of axis '{name}'", factor, FACTORS)
        codes = _codes_of(axis, spec.names(factor), factor)
        if confusion is not None:
            counts, source = _stated_confusion(confusion, factor, digest, codes), f"labels of {confusion}"
        else:
            rendered = rendered or rendered_images(
                spec, seed, RENDERED_PER_ROLE, world=next(iter(spec.worlds)), resolution=resolution
            )
            counts = _rendered_confusion(opened, rendered, factor, codes)
            source = f"{counts.sum():,} rendered images of the world"
        require_informative(counts, f"reader '{reader}' of {factor}")
        found[name] = _SceneAxisReader(
            name=f"{reader}, factor {factor}", validated_on=source, confusion=counts, reader=opened, factor=factor,
            codes=codes,
        )  # fmt: skip
    return OpenedReaders(of_axis=found, inputs=inputs)


def open_latent_readers(
    data: str, axes: Mapping[str, tuple[Axis, str]], *, generator: str, cell: "Cell"
) -> OpenedReaders:
    """Fit a classifier of clean latents per axis to the training images of a data set.

    Args:
        data: name of a shipped data set, or folder of shards.
        axes: name -> the axis, and the attribute that is read; images with other values are left out.
        generator: the model whose VAE encodes the images.
        cell: any cell of the model.

    Raises: UnknownName for an attribute that the data lack; ConfigError for words that are not its values, or too few
        groups; EmptyClass for an end without images; UninformativeReader.
    """
    from diffprobe.analysis.latent_classifier import fit_latent_classifier
    from diffprobe.backbones.library_logging import quiet_libraries
    from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
    from diffprobe.evaluation.held_out import encode_split, group_of
    from diffprobe.features.request import Request
    from diffprobe.scoring.intervention_network import InterventionNetwork

    config = DataConfig(path=data)
    features = FeaturesConfig(taps=(cell.tap,), timesteps=(cell.timestep,))
    request = Request(BackboneConfig(path=generator), config, features, splits=(config.train_split, config.test_split))
    known = request.shard_set.attributes
    codes = {}
    for name, (axis, attribute) in axes.items():
        if attribute not in known:
            raise unknown(f"attribute of axis '{name}'", attribute, known)
        codes[name] = _codes_of(axis, known[attribute], attribute)
    with quiet_libraries():
        network = InterventionNetwork(request.plan)
    group = group_of(request.shard_set, None)
    train, test = (
        encode_split(request, network, split, group, limit=None) for split in (config.train_split, config.test_split)
    )
    of_train, of_test = (next(iter(split.of_condition.values())).latents for split in (train, test))
    found: dict[str, AxisReader] = {}
    for name, (_, attribute) in axes.items():
        ends = [codes[name][split.attributes[attribute].numpy()] for split in (train, test)]
        classifier = fit_latent_classifier(of_train, ends[0], train.groups, n_classes=2, what=attribute)
        held = np.flatnonzero(ends[1] != _NONE)
        if not len(held):
            raise EmptyClass(f"axis '{name}': no test image of '{data}' has a value of its words.")
        counts = confusion_counts(ends[1][held], classifier.predict(of_test[held]), 2)
        require_informative(counts, f"classifier of {attribute}, fitted to '{data}'")
        found[name] = _LatentAxisReader(
            name=f"a linear classifier of {attribute} on latents, fitted to {classifier.n_train:,} images of {data}",
            validated_on=f"{counts.sum():,} test images of {data}, real ones", confusion=counts, classifier=classifier,
        )  # fmt: skip
    return OpenedReaders(of_axis=found, inputs={f"{INPUT}labelled": request.shard_set.digest})


@dataclass(frozen=True, kw_only=True)
class _SceneAxisReader:
    name: str
    validated_on: str
    confusion: Int64[np.ndarray, "2 2"]
    reader: "SceneReader"
    factor: str
    codes: Int64[np.ndarray, " values_and_none"]
    needs_images: bool = True

    def read(self, latents: "Tensor", images: UInt8[np.ndarray, "image h w 3"] | None) -> Int64[np.ndarray, " image"]:
        assert images is not None
        return _ends(self.reader.read(images)[self.factor], self.codes)


@dataclass(frozen=True, kw_only=True)
class _LatentAxisReader:
    name: str
    validated_on: str
    confusion: Int64[np.ndarray, "2 2"]
    classifier: "LatentClassifier"
    needs_images: bool = False

    def read(self, latents: "Tensor", images: UInt8[np.ndarray, "image h w 3"] | None) -> Int64[np.ndarray, " image"]:
        return self.classifier.predict(latents)


def _codes_of(axis: Axis, values: Sequence[str], attribute: str) -> Int64[np.ndarray, " values_and_none"]:
    """Return the end of each value, -1 for one that is not a word of the axis; the last entry: no value.

    Raises: ConfigError for a word that is not a value.
    """
    if missing := [word for word in (*axis.positive, *axis.negative) if word not in values]:
        raise ConfigError(
            f"axis '{axis.name}': {', '.join(missing)}: not a value of '{attribute}', which the reader perceives.",
            f"values: {', '.join(values)}",
            fix="steering.attributes={AXIS: ATTRIBUTE}, for the axes whose words are values",
        )
    ends = [POSITIVE_CODE if v in axis.positive else NEGATIVE_CODE if v in axis.negative else _NONE for v in values]
    return np.array([*ends, _NONE], dtype=np.int64)


def _ends(probabilities: np.ndarray, codes: Int64[np.ndarray, " values_and_none"]) -> Int64[np.ndarray, " image"]:
    """Return the likelier end of each image: probabilities of the words of an end are added up."""
    positive, negative = (probabilities[:, codes[:-1] == end].sum(1) for end in (POSITIVE_CODE, NEGATIVE_CODE))
    return np.where(positive > negative, POSITIVE_CODE, NEGATIVE_CODE).astype(np.int64)


def _rendered_confusion(
    reader: "SceneReader", rendered: Sequence[Any], factor: str, codes: Int64[np.ndarray, " values_and_none"]
) -> Int64[np.ndarray, "2 2"]:
    true = np.concatenate([codes[one.truth.factors[factor]] for one in rendered])
    read = np.concatenate([_ends(reader.read(one.images)[factor], codes) for one in rendered])
    kept = true != _NONE
    return confusion_counts(true[kept], read[kept], 2)


def _result_file(path: str) -> Path:
    return Path(path) / RESULT_FILE if Path(path).is_dir() else Path(path)


def _stated_confusion(
    path: str, factor: str, digest: str, codes: Int64[np.ndarray, " values_and_none"]
) -> Int64[np.ndarray, "2 2"]:
    """Return the confusion in a result of `diffprobe eval rates`. Raises: ConfigError, SchemaError."""
    result = read_result(_result_file(path))
    record = next((one for one in result.metrics if one.name == "sensitivity" and one.target == factor), None)
    if record is None or "confusion" not in record.detail:
        raise ConfigError(f"'{path}' has no confusion of '{factor}'.", "needed: a result of `diffprobe eval rates`",
                          fix="remove steering.confusion, for that on rendered images")  # fmt: skip
    if result.artifacts.get(f"{INPUT}reader") != digest:
        raise ConfigError(f"'{path}' is of another reader.", fix="diffprobe eval rates MODEL with this reader")
    counts = np.array(record.detail["confusion"], dtype=np.int64)
    n = len(codes) - 1
    if counts.shape != (n, n):
        raise SchemaError(f"'{path}': the confusion of '{factor}' is {counts.shape}, expected ({n}, {n}).")
    found = np.zeros((2, 2), dtype=np.int64)
    for true in range(n):
        for read in range(n):
            if _NONE not in (codes[true], codes[read]):
                found[codes[true], codes[read]] += counts[true, read]
    return found
