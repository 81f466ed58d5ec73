"""Certify a dictionary: whether single latents equal the factors of rendered scenes, or attributes of a shard set.

In a cell with places (pool none or tokensN) each place of the map is encoded; a sample's code is the largest activation
of each latent, and the place where it is has to be on the part that shows the factor.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.check import Certificate, Check, Subject
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.evaluation.certificates.dictionary_samples import (
    PARTS_OF,
    DictionarySamples,
    Reading,
    scene_samples,
    shard_samples,
)
from diffprobe.evaluation.certificates.method import Method, call, load_callable
from diffprobe.evaluation.certificates.settings import WorldSettings, in_unit_range

if TYPE_CHECKING:
    from diffprobe.analysis.certification.dictionary import Codes, DictionaryRules
    from diffprobe.analysis.certification.pointing import SpatialCodes
    from diffprobe.analysis.latents.baselines import LinearCodes
    from diffprobe.probes.sae.base import KSAE

Encode = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Takes features (n, d) and returns activations (n, latents)."""

HELP = "a sparse autoencoder: a folder of `KSAE.save_pretrained`, of SAELens or dictionary_learning, or an encoder"
SIGNATURE = "(features: float32 array (n, d)) -> array (n, latents), positive where a latent fires"
SCENE_FACTORS = ("texture", "colour", "build", "size", "pose", "place", "background", "side")
"""Factors of rendered scenes."""
_AT_ONCE = 512
"""Rows that are encoded at once."""
_PLACES = 2048
"""Places of maps that are encoded before the largest of each sample is taken."""
_OF_SCENES = ("world", "spec", "pointing", "tolerance", "least_pointing")
"""Keys without effect on a shard set."""


class DictionaryMethod(Protocol):
    """A callable that encodes features."""

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the activation of each latent, shape (n, latents); positive where it fires.

        Args:
            features: of rendered scenes, or in a cell with places of single places of them, shape (n, d). Each row is
                encoded by itself.
        """


@dataclass(frozen=True, kw_only=True)
class Config(WorldSettings):
    """Settings and thresholds of certificates of dictionaries."""

    backbone: str = ""
    """Folder or name of the backbone whose features are encoded."""
    cell: str | None = None
    """Cell of the features; None for that of a saved autoencoder."""
    data: str = ""
    """A shard set in place of rendered scenes: its folder or shipped name. Its attributes are the factors."""
    factors: tuple[str, ...] = SCENE_FACTORS
    """Factors whose values single latents have to equal; each has to pass. Of a shard set attributes, and "label" for
    the class."""
    most_values: int = 10
    """Of a shard set: values of a factor, the most frequent ones; samples with others count as without a value."""
    runs: tuple[str, ...] = ()
    """Folders of autoencoders of other seeds, for the recurrence of the latents."""
    n_train: int = 1000
    """Samples of train on which the latent of each value is chosen; of a shard set, at most."""
    n_test: int = 500
    """Samples of test on which it is scored; of a shard set, at most."""
    n_permutations: int = 200
    """Permutations of each null distribution."""
    resolution: int = 64
    """Side of the images in pixels, 64 or 32."""
    noise_seed: int = 0
    """Seed of the noise of the features."""
    least_auroc: float = 0.9
    """Least mean AUROC of the best latents of a factor's values."""
    most_absorption: float = 0.2
    """Largest share of samples whose value's latent does not fire, while another latent of the value does."""
    least_precision: float = 0.9
    """Least share of a value among the samples on which a latent fires, for the latent to be one of the value."""
    least_recurrence: float = 0.7
    """Least mean cosine of the latents with their matches in another run."""
    pointing: tuple[str, ...] = ("hat", "tool", "object", "texture", "colour")
    """In a cell with places: factors whose latents have to be largest on the part that shows them."""
    tolerance: int = 0
    """Places around those of the part that count as on it."""
    least_pointing: float = 0.5
    """Least share of images in which they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(20, n_train=self.n_train, n_test=self.n_test)
        at_least(19, n_permutations=self.n_permutations)
        in_unit_range(
            least_auroc=self.least_auroc, most_absorption=self.most_absorption, least_precision=self.least_precision,
            least_recurrence=self.least_recurrence, least_pointing=self.least_pointing,
        )  # fmt: skip
        at_least(0, tolerance=self.tolerance)
        for factor in self.pointing:
            if factor not in PARTS_OF:
                raise unknown("factor with a part:", factor, PARTS_OF)
        if not self.factors or len(set(self.factors)) < len(self.factors):
            raise ConfigError(f"factors=[{', '.join(self.factors)}]: at least one, each once.")
        at_least(2, most_values=self.most_values)
        self._check_data()
        if not self.backbone:
            raise ConfigError("a dictionary is certified in a backbone's features.", fix="backbone=FOLDER, or pixels")

    def _check_data(self) -> None:
        """Check that no key is set that the kind of samples leaves without effect. Raises: ConfigError."""
        changed = changed_keys(self, _OF_SCENES if self.data else ("most_values",))
        if changed and self.data:
            raise ConfigError(f"{', '.join(changed)} would have no effect: data={self.data} has no scenes.")
        if changed:
            raise ConfigError("most_values would have no effect: rendered scenes have all values.", fix="data=FOLDER")
        if self.data and self.factors == SCENE_FACTORS:
            raise ConfigError(f"the factors of data={self.data} have to be named.", fix="factors=[ATTRIBUTE,...]")


def accepts(path: Path) -> bool:
    """Return whether a folder is a saved autoencoder, of this or of another library."""
    from diffprobe.probes.sae.open_folder import is_autoencoder

    return is_autoencoder(path)


def certify(method: Method, config: Config) -> Certificate:
    """Measure a dictionary, and a random one of the same size and sparsity.

    Raises: UnknownName for an unknown factor; ConfigError without a cell, for settings of the pointing game in a cell
        without places, or codes of a wrong shape; EmptyClass for a factor of which fewer than two values are drawn; the
        errors of opening the backbone and the autoencoders.
    """
    from diffprobe.analysis.certification.dictionary import DictionaryRules
    from diffprobe.evaluation.decode import run_of
    from diffprobe.probes.sae.base import KSAE
    from diffprobe.probes.sae.open_folder import open_autoencoder
    from diffprobe.report.query import parse_cell
    from diffprobe.runs.massive_notes import refuse_treated_run

    for saved in [*config.runs, *([] if method.path is None else [str(method.path)])]:
        refuse_treated_run(run_of(saved), "a certificate")
    if not config.data:
        spec = config.load_world()
        for factor in config.factors:
            spec.names(factor)
    sae, others, cell = None, [KSAE.from_pretrained(run) for run in config.runs], config.cell
    if method.path is not None:
        sae, own_cell = open_autoencoder(method.path)
        cell = cell or own_cell
    elif config.runs:
        raise ConfigError("runs have no effect on a callable, which has no decoder rows.", fix="leave runs out")
    if not cell:
        raise ConfigError(f"'{method.name}' does not name its cell.", fix="cell=CELL")
    encode = saved_encoder(sae.at(parse_cell(cell).timestep)) if sae is not None else _called(method)
    samples = read_samples(config, cell)
    if sae is not None and samples.train.shape[1] != sae.d_in:
        raise ConfigError(
            f"'{method.name}' encodes {sae.d_in} numbers; the features of '{cell}' have {samples.train.shape[1]}.",
            fix="the backbone and cell that it was trained on",
        )
    rules = DictionaryRules(
        least_auroc=config.least_auroc, most_absorption=config.most_absorption, alpha=config.alpha, level=config.level,
        least_precision=config.least_precision, least_recurrence=config.least_recurrence, seed=config.seed,
        n_permutations=config.n_permutations, n_resamples=config.n_resamples,
    )  # fmt: skip
    own = encoded(encode, samples)
    random = random_encoder(samples.train, own.codes.train.shape[1], own.n_active, seed=config.seed)
    found = {}
    for name, codes in {"method": own, "random": encoded(random, samples)}.items():
        found[name] = _checks(codes, samples, rules) + _pointing(codes, samples, config)
    if sae is not None:
        found["method"] += _recurrence(sae, others, config, rules)
    not_measured = dict(samples.not_measured)
    if not others:
        not_measured["recurrence"] = "no autoencoder of another seed is given (runs)"
    why = "random rows in the place of the encoder's, with the same number of latents and of active ones"
    return Certificate(
        kind="dictionary", method=Subject(name="method", checks=tuple(found["method"])),
        baselines=(Subject(name="random dictionary", why=why, checks=tuple(found["random"])),),
        not_measured=not_measured,
        facts={
            **samples.facts, "backbone": config.backbone, "cell": samples.cell,
            "latents": f"{own.codes.train.shape[1]:,}",
        },
        seeds={"scenes": config.seed, "noise": config.noise_seed, "bootstrap": config.seed},
    )  # fmt: skip


def read_samples(config: Config, cell: str) -> DictionarySamples:
    """Read the samples of a configuration in a cell.

    Raises: UnknownName for an unknown factor; ConfigError for settings of the pointing game in a pooled cell; the
        errors of opening the backbone and the shard set.
    """
    from diffprobe.evaluation.certificates.scene_features import keeps_places
    from diffprobe.report.query import parse_cell

    reading = Reading(
        backbone=config.backbone, cell=cell, resolution=config.resolution, noise_seed=config.noise_seed
    )  # fmt: skip
    if config.data:
        found, _ = shard_samples(
            config.data, reading, n_train=config.n_train, n_test=config.n_test, factors=config.factors,
            most_values=config.most_values,
        )  # fmt: skip
        return found
    if not keeps_places(parse_cell(cell)):
        _refuse_pointing(config, cell)
    return scene_samples(
        config.load_world(), reading, world=config.world, seed=config.seed, n_train=config.n_train,
        n_test=config.n_test, factors=config.factors, pointing=config.pointing, tolerance=config.tolerance,
    )  # fmt: skip


def changed_keys(config: Config, names: tuple[str, ...]) -> list[str]:
    """Return which of some keys do not have their default."""
    default = {one.name: one.default for one in fields(Config)}
    return [name for name in names if getattr(config, name) != default[name]]


def _refuse_pointing(config: Config, cell: str) -> None:
    changed = changed_keys(config, ("pointing", "tolerance", "least_pointing"))
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} would have no effect: cell '{cell}' is pooled, so it has no places.",
            fix="a cell with pool none, for example up_blocks.1@t200:empty:none",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """What a dictionary finds in samples."""

    codes: "Codes"
    """Activations of train and test; in a cell with places the largest of each latent."""
    places: "tuple[SpatialCodes, SpatialCodes] | None"
    """In a cell with places: where they are, for train and test."""
    n_active: float
    """Mean number of active latents of a vector of train."""


def encoded(encode: Encode, samples: DictionarySamples) -> Encoded:
    """Encode the features of samples."""
    from diffprobe.analysis.certification.dictionary import Codes

    if samples.train.ndim == 2:
        codes = Codes(train=encode(samples.train), test=encode(samples.test))
        return Encoded(codes=codes, places=None, n_active=float((codes.train > 0).sum(1).mean()))
    (train, n_active), (test, _) = (_at_places(encode, maps) for maps in (samples.train, samples.test))
    return Encoded(codes=Codes(train=train.largest, test=test.largest), places=(train, test), n_active=n_active)


def _at_places(encode: Encode, maps: NDArray[np.float32]) -> "tuple[SpatialCodes, float]":
    """Encode all places of maps (samples, channels, height, width); return also the mean number of active latents."""
    from diffprobe.analysis.certification.pointing import SpatialCodes

    n, channels, height, width = maps.shape
    at_once = max(1, _PLACES // (height * width))
    largest, place, active = [], [], 0
    for start in range(0, n, at_once):
        part = maps[start : start + at_once]
        rows = np.ascontiguousarray(part.transpose(0, 2, 3, 1).reshape(-1, channels))
        codes = encode(rows).reshape(len(part), height * width, -1)
        largest.append(codes.max(1))
        place.append(codes.argmax(1).astype(np.int64))
        active += int((codes > 0).sum())
    found = SpatialCodes(largest=np.concatenate(largest), place=np.concatenate(place))
    return found, active / (n * height * width)


def _checks(found: Encoded, samples: DictionarySamples, rules: "DictionaryRules") -> list[Check]:
    from diffprobe.analysis.certification.dictionary import factor_checks

    return [
        check
        for factor, (train, test) in samples.labels.items()
        for check in factor_checks(found.codes, train, test, rules, factor=factor, groups=samples.groups)
    ]


def _pointing(found: Encoded, samples: DictionarySamples, config: Config) -> list[Check]:
    from diffprobe.analysis.certification.pointing import PointingRules, pointing_check

    rules = PointingRules(
        least_pointing=config.least_pointing, alpha=config.alpha, level=config.level, seed=config.seed,
        n_permutations=config.n_permutations, n_resamples=config.n_resamples,
    )  # fmt: skip
    if found.places is None:
        return []
    return [
        pointing_check(*found.places, *shown.labels, shown.covered, rules, factor=factor, part=shown.part)
        for factor, shown in samples.shown.items()
    ]


def _recurrence(sae: "KSAE", others: "list[KSAE]", config: Config, rules: "DictionaryRules") -> list[Check]:
    from diffprobe.analysis.certification.dictionary import recurrence_check

    rows = sae.W_dec.detach().double().numpy()
    return [
        recurrence_check(rows, other.W_dec.detach().double().numpy(), rules, of=run)
        for run, other in zip(config.runs, others, strict=True)
    ]


def saved_encoder(sae: "KSAE") -> Encode:
    """Return the dense encoder of an autoencoder."""
    import torch

    def encode(features: NDArray[np.float32]) -> NDArray[np.float64]:
        found = np.zeros((len(features), sae.n_latents))
        for start in range(0, len(features), _AT_ONCE):
            code = sae.encode(torch.from_numpy(features[start : start + _AT_ONCE]))
            rows = np.arange(start, start + len(code.values))[:, None]
            np.add.at(found, (rows, code.indices.numpy()), code.values.double().numpy())
        return found

    return encode


def _called(method: Method) -> Encode:
    encoder = load_callable(method.name, SIGNATURE, 1)

    def encode(features: NDArray[np.float32]) -> NDArray[np.float64]:
        found = np.asarray(call(encoder, method.name, SIGNATURE, features), dtype=np.float64)
        if found.ndim != 2 or len(found) != len(features):
            raise ConfigError(
                f"'{method.name}' returned the shape {found.shape} for {len(features)} samples.", f"needed: {SIGNATURE}"
            )
        return found

    return encode


def random_encoder(train: NDArray[np.float32], n_latents: int, n_active: float, *, seed: int) -> Encode:
    """Return the encoder of a random dictionary with as many latents, of which as many are active in the mean."""
    import torch

    from diffprobe.analysis.latents.baselines import LinearCodes

    k = int(np.clip(round(n_active), 1, n_latents))
    rows = np.random.default_rng(seed).standard_normal((train.shape[1], n_latents))
    return linear_encoder(LinearCodes(torch.from_numpy(rows.T), torch.from_numpy(_centre(train)), k))


def linear_encoder(codes: "LinearCodes") -> Encode:
    """Return the dense encoder of directions."""
    import torch

    def encode(features: NDArray[np.float32]) -> NDArray[np.float64]:
        found = np.zeros((len(features), codes.n_latents))
        values, indices = codes.encode(torch.from_numpy(features))
        np.put_along_axis(found, indices.numpy(), values.numpy(), axis=1)
        return found

    return encode


def _centre(train: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of each channel, over samples and places."""
    found: NDArray[np.float32] = train.mean(axis=(0, *range(2, train.ndim)))
    return found
