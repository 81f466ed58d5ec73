"""Certify a dictionary: whether single latents of an autoencoder equal the factors of rendered scenes.

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
from diffprobe.core.errors import ConfigError, DiffprobeError, unknown
from diffprobe.evaluation.certificates.method import Method, call, load_callable
from diffprobe.evaluation.certificates.settings import WorldSettings, in_unit_range

if TYPE_CHECKING:
    from diffprobe.analysis.certification.dictionary import Codes, DictionaryRules
    from diffprobe.analysis.certification.pointing import SpatialCodes
    from diffprobe.probes.sae.base import KSAE
    from diffprobe.shards.scenes.factors import Scenes
    from diffprobe.shards.scenes.spec import WorldSpec

Encode = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Takes features (n, d) and returns activations (n, latents)."""

HELP = "a sparse autoencoder: a folder of `KSAE.save_pretrained`, or an encoder"
SIGNATURE = "(features: float32 array (n, d)) -> array (n, latents), positive where a latent fires"
_AT_ONCE = 512
"""Rows that are encoded at once."""
_PLACES = 2048
"""Places of maps that are encoded before the largest of each sample is taken."""
PARTS_OF = {"hat": "hat", "tool": "tool", "object": "object", "texture": "body", "colour": "body", "build": "figure"}
"""Factor -> the mask of the part that shows it; hat and tool follow from the role."""


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
    factors: tuple[str, ...] = ("texture", "colour", "build", "size", "pose", "place", "background", "side")
    """Factors whose values single latents have to equal; each has to pass."""
    runs: tuple[str, ...] = ()
    """Folders of autoencoders of other seeds, for the recurrence of the latents."""
    n_train: int = 1000
    """Scenes on which the latent of each value is chosen."""
    n_test: int = 500
    """Scenes on which it is scored."""
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
        if not self.backbone:
            raise ConfigError("a dictionary is certified in a backbone's features.", fix="backbone=FOLDER, or pixels")


def accepts(path: Path) -> bool:
    """Return whether a folder is a saved autoencoder."""
    from diffprobe.probes.serialization import kind_of

    try:
        return path.is_dir() and kind_of(path).startswith("probe/sae/")
    except DiffprobeError:
        return False


def certify(method: Method, config: Config) -> Certificate:
    """Measure a dictionary, and a random one of the same size and sparsity.

    Raises: UnknownName for an unknown factor; ConfigError without a cell, for settings of the pointing game in a cell
        without places, or codes of a wrong shape; EmptyClass for a factor of which fewer than two values are drawn; the
        errors of opening the backbone and the autoencoders.
    """
    from diffprobe.analysis.certification.dictionary import DictionaryRules
    from diffprobe.evaluation.certificates.scene_features import SceneReader
    from diffprobe.probes.sae.base import KSAE
    from diffprobe.probes.serialization import SETTINGS
    from diffprobe.shards.scenes.factors import sample
    from diffprobe.shards.scenes.splits import split_indices

    spec = config.load_world()
    for factor in config.factors:
        spec.names(factor)
    sae, others, cell = None, [KSAE.from_pretrained(run) for run in config.runs], config.cell
    if method.path is not None:
        from diffprobe.core.json_file import read_json_object

        sae = KSAE.from_pretrained(method.path)
        cell = cell or read_json_object(method.path / SETTINGS)["settings"]["cell"]
    elif config.runs:
        raise ConfigError("runs have no effect on a callable, which has no decoder rows.", fix="leave runs out")
    if not cell:
        raise ConfigError(f"'{method.name}' does not name its cell.", fix="cell=CELL")
    reader = SceneReader(spec, config.backbone, cell, resolution=config.resolution, noise_seed=config.noise_seed)
    encode = _saved(sae.at(reader.cell.timestep)) if sae is not None else _called(method)
    if not reader.has_places:
        _refuse_pointing(config, cell)
    parts = [
        sample(spec, config.seed, split_indices(spec, config.seed, split, n, world=config.world), world=config.world)
        for split, n in (("train", config.n_train), ("test", config.n_test))
    ]
    features = [reader.read(part) for part in parts]
    if sae is not None and features[0].shape[1] != sae.d_in:
        raise ConfigError(
            f"'{method.name}' encodes {sae.d_in} numbers; the features of '{cell}' have {features[0].shape[1]}.",
            fix="the backbone and cell that it was trained on",
        )
    labels = {factor: (parts[0].factors[factor], parts[1].factors[factor]) for factor in config.factors}
    rules = DictionaryRules(
        least_auroc=config.least_auroc, most_absorption=config.most_absorption, alpha=config.alpha, level=config.level,
        least_precision=config.least_precision, least_recurrence=config.least_recurrence, seed=config.seed,
        n_permutations=config.n_permutations, n_resamples=config.n_resamples,
    )  # fmt: skip
    codes, spatial, n_active = _encoded(encode, features)
    random = _random(features[0], codes.train.shape[1], n_active, seed=config.seed)
    found = {}
    for name, (of, places) in {"method": (codes, spatial), "random": _encoded(random, features)[:2]}.items():
        found[name] = _checks(of, labels, rules)
        if places is not None:
            found[name] += _pointing(spec, config, parts, places, features[1].shape[2:])
    if sae is not None:
        found["method"] += _recurrence(sae, others, config, rules)
    not_measured = {} if spatial else {"pointing game": f"cell '{cell}' is pooled; a cell with pool none has places"}
    if not others:
        not_measured["recurrence"] = "no autoencoder of another seed is given (runs)"
    why = "random rows in the place of the encoder's, with the same number of latents and of active ones"
    return Certificate(
        kind="dictionary", method=Subject(name="method", checks=tuple(found["method"])),
        baselines=(Subject(name="random dictionary", why=why, checks=tuple(found["random"])),),
        not_measured=not_measured,
        facts={
            "world": f"{config.world}, digest {spec.digest[:12]}", "backbone": config.backbone,
            "cell": reader.cell.name, "latents": f"{codes.train.shape[1]:,}",
        },
        seeds={"scenes": config.seed, "noise": config.noise_seed, "bootstrap": config.seed},
    )  # fmt: skip


def _refuse_pointing(config: Config, cell: str) -> None:
    default = {one.name: one.default for one in fields(Config)}
    changed = [name for name in ("pointing", "tolerance", "least_pointing") if getattr(config, name) != default[name]]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} would have no effect: cell '{cell}' is pooled, so it has no places.",
            fix="a cell with pool none, for example up_blocks.1@t200:empty:none",
        )


def _encoded(encode: Encode, features: list[NDArray[np.float32]]) -> "tuple[Codes, list[SpatialCodes] | None, float]":
    """Return the codes of the train and test features, where they are largest if these are maps, and active latents.

    The last is the mean number of active latents of a train vector.
    """
    from diffprobe.analysis.certification.dictionary import Codes

    if features[0].ndim == 2:
        codes = Codes(train=encode(features[0]), test=encode(features[1]))
        return codes, None, float((codes.train > 0).sum(1).mean())
    found, active = zip(*(_at_places(encode, maps) for maps in features), strict=True)
    return Codes(train=found[0].largest, test=found[1].largest), list(found), active[0]


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


def _pointing(
    spec: "WorldSpec", config: Config, parts: "list[Scenes]", codes: "list[SpatialCodes]", size: tuple[int, ...]
) -> list[Check]:
    from diffprobe.analysis.certification.pointing import PointingRules, covered_places, pointing_check
    from diffprobe.shards.scenes.render import render

    rules = PointingRules(
        least_pointing=config.least_pointing, alpha=config.alpha, level=config.level, seed=config.seed,
        n_permutations=config.n_permutations, n_resamples=config.n_resamples,
    )  # fmt: skip
    drawn = render(spec, parts[1], resolution=config.resolution)
    height, width = size
    return [
        pointing_check(
            codes[0], codes[1], labels_of(spec, parts[0], factor), labels_of(spec, parts[1], factor),
            covered_places(drawn.mask(PARTS_OF[factor]), (height, width), config.tolerance), rules, factor=factor,
            part=PARTS_OF[factor],
        )
        for factor in config.pointing
    ]  # fmt: skip


def labels_of(spec: "WorldSpec", scenes: "Scenes", factor: str) -> NDArray[np.int64]:
    """Return the code of a factor's value in each scene; of `hat` and `tool` by the role."""
    if factor not in ("hat", "tool"):
        return scenes.factors[factor]
    names = list(spec.hats if factor == "hat" else spec.tools)
    codes = np.array([names.index(getattr(role, factor)) for role in spec.roles], dtype=np.int64)
    found: NDArray[np.int64] = codes[scenes.factors["role"]]
    return found


def _checks(
    codes: "Codes", labels: "dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]", rules: "DictionaryRules"
) -> list[Check]:
    from diffprobe.analysis.certification.dictionary import factor_checks

    return [
        check
        for factor, (train, test) in labels.items()
        for check in factor_checks(codes, train, test, rules, factor=factor)
    ]


def _recurrence(sae: "KSAE", others: "list[KSAE]", config: Config, rules: "DictionaryRules") -> list[Check]:
    from diffprobe.analysis.certification.dictionary import recurrence_check

    rows = sae.W_dec.detach().double().numpy()
    return [
        recurrence_check(rows, other.W_dec.detach().double().numpy(), rules, of=run)
        for run, other in zip(config.runs, others, strict=True)
    ]


def _saved(sae: "KSAE") -> Encode:
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


def _random(train: NDArray[np.float32], n_latents: int, n_active: float, *, seed: int) -> Encode:
    """Return the encoder of a random dictionary with as many latents, of which as many are active in the mean."""
    import torch

    from diffprobe.analysis.latents.baselines import LinearCodes

    k = int(np.clip(round(n_active), 1, n_latents))
    rows = np.random.default_rng(seed).standard_normal((train.shape[1], n_latents))
    centre = train.mean(axis=(0, *range(2, train.ndim)))
    codes = LinearCodes(torch.from_numpy(rows.T), torch.from_numpy(centre), k)

    def encode(features: NDArray[np.float32]) -> NDArray[np.float64]:
        found = np.zeros((len(features), n_latents))
        values, indices = codes.encode(torch.from_numpy(features))
        np.put_along_axis(found, indices.numpy(), values.numpy(), axis=1)
        return found

    return encode
