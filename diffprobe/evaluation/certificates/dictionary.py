"""Certify a dictionary: whether single latents of an autoencoder equal the factors of rendered scenes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.check import Certificate, Check, Subject
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError, DiffprobeError
from diffprobe.evaluation.certificates.method import Method, call, load_callable
from diffprobe.evaluation.certificates.settings import WorldSettings, in_unit_range

if TYPE_CHECKING:
    from diffprobe.analysis.certification.dictionary import Codes, DictionaryRules
    from diffprobe.probes.sae.base import KSAE

HELP = "a sparse autoencoder: a folder of `KSAE.save_pretrained`, or an encoder"
SIGNATURE = "(features: float32 array (n, d)) -> array (n, latents), positive where a latent fires"
_AT_ONCE = 512
"""Samples that are encoded at once."""


class DictionaryMethod(Protocol):
    """A callable that encodes features."""

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the activation of each latent, shape (n, latents); positive where it fires.

        Args:
            features: of rendered scenes, shape (n, d).
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

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(20, n_train=self.n_train, n_test=self.n_test)
        at_least(19, n_permutations=self.n_permutations)
        in_unit_range(
            least_auroc=self.least_auroc, most_absorption=self.most_absorption, least_precision=self.least_precision,
            least_recurrence=self.least_recurrence,
        )  # fmt: skip
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

    Raises: UnknownName for an unknown factor; ConfigError without a cell, for one with several vectors per sample, or
        codes of a wrong shape; EmptyClass for a factor of which fewer than two values are drawn; the errors of opening
        the backbone and the autoencoders.
    """
    from diffprobe.analysis.certification.dictionary import Codes, DictionaryRules
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
    encode = _saved(sae) if sae is not None else _called(method)
    reader = SceneReader(spec, config.backbone, cell, resolution=config.resolution, noise_seed=config.noise_seed)
    if reader.cell.pool == "none" or reader.cell.pool.startswith("tokens"):
        raise ConfigError(f"cell '{cell}' has more than one vector per sample; a certificate needs one.")
    parts = [
        sample(spec, config.seed, split_indices(spec, config.seed, split, n, world=config.world), world=config.world)
        for split, n in (("train", config.n_train), ("test", config.n_test))
    ]
    features = [reader.read(part) for part in parts]
    codes = Codes(train=encode(features[0]), test=encode(features[1]))
    labels = {factor: (parts[0].factors[factor], parts[1].factors[factor]) for factor in config.factors}
    rules = DictionaryRules(
        least_auroc=config.least_auroc, most_absorption=config.most_absorption, alpha=config.alpha, level=config.level,
        least_precision=config.least_precision, least_recurrence=config.least_recurrence, seed=config.seed,
        n_permutations=config.n_permutations, n_resamples=config.n_resamples,
    )  # fmt: skip
    checks = _checks(codes, labels, rules)
    if sae is not None:
        checks += _recurrence(sae, others, config, rules)
    not_measured = {"pointing game": "activations on feature maps (pool=none) are not read yet"}
    if not others:
        not_measured["recurrence"] = "no autoencoder of another seed is given (runs)"
    random = _random(features, codes, seed=config.seed)
    why = "random rows in the place of the encoder's, with the same number of latents and of active ones"
    return Certificate(
        kind="dictionary", method=Subject(name="method", checks=tuple(checks)),
        baselines=(Subject(name="random dictionary", why=why, checks=tuple(_checks(random, labels, rules))),),
        not_measured=not_measured,
        facts={
            "world": f"{config.world}, digest {spec.digest[:12]}", "backbone": config.backbone,
            "cell": reader.cell.name, "latents": f"{codes.train.shape[1]:,}",
        },
        seeds={"scenes": config.seed, "noise": config.noise_seed, "bootstrap": config.seed},
    )  # fmt: skip


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


def _saved(sae: "KSAE") -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
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


def _called(method: Method) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    encoder = load_callable(method.name, SIGNATURE, 1)

    def encode(features: NDArray[np.float32]) -> NDArray[np.float64]:
        found = np.asarray(call(encoder, method.name, SIGNATURE, features), dtype=np.float64)
        if found.ndim != 2 or len(found) != len(features):
            raise ConfigError(
                f"'{method.name}' returned the shape {found.shape} for {len(features)} samples.", f"needed: {SIGNATURE}"
            )
        return found

    return encode


def _random(features: list[NDArray[np.float32]], codes: "Codes", *, seed: int) -> "Codes":
    """Return codes of a random dictionary with as many latents, of which as many are active on a sample in the mean."""
    from diffprobe.analysis.certification.dictionary import Codes

    n_latents = codes.train.shape[1]
    k = int(np.clip(round(float((codes.train > 0).sum(1).mean())), 1, n_latents))
    rows = np.random.default_rng(seed).standard_normal((features[0].shape[1], n_latents))
    found = []
    for part in features:
        values = (part - features[0].mean(0)) @ rows
        least = np.partition(values, n_latents - k, axis=1)[:, [n_latents - k]]
        found.append(np.where(values >= least, np.maximum(values, 0), 0.0))
    return Codes(train=found[0], test=found[1])
