"""The model that `diffprobe score` asks, and those that are its controls."""

from typing import Any

from diffprobe.backbones.lora_adapters import LoraAdapters
from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.dsd import method_facts, with_method
from diffprobe.evaluation.score_records import RANDOM_DENOISER, TEXT_FREE
from diffprobe.evaluation.score_settings import ScoreConfig
from diffprobe.runs.provenance import checkpoint_digest
from diffprobe.scoring.denoising_error import DenoisingError


class ScoreModels:
    """The scored model and its controls, each loaded once, with the score of `config.method`.

    Args:
        config: the settings.
        digest: of the scored model's files.

    Attributes:
        own: the score of the model, with the first set of noise.
        controls: name -> score, digest of its files, seed of random weights.
        lora: trained on few images and attached to the model; None without.

    Raises: ConfigError for a control that does not fit the model, or a method that a model does not have.
    """

    def __init__(self, config: ScoreConfig, digest: str) -> None:
        self.config = config
        self.lora: LoraAdapters | None = None
        self.own = self._open(config.backbone.path, None)
        self.controls: dict[str, tuple[DenoisingError, str, int | None]] = {}
        if config.random_denoiser:
            self.controls[RANDOM_DENOISER] = (self._open(config.backbone.path, config.seed), digest, config.seed)
        if config.text_free_model is not None:
            blind = self._open(config.text_free_model, None)
            for what in ("latent_shape", "resolution", "prediction"):
                ours, theirs = getattr(self.own.spec, what), getattr(blind.spec, what)
                if ours != theirs:
                    raise ConfigError(
                        f"text_free_model={config.text_free_model}: its {what} is {theirs}, that of the model {ours}."
                    )
            self.controls[TEXT_FREE] = (blind, checkpoint_digest(config.text_free_model), None)

    def with_noise(self, noise_set: int) -> DenoisingError:
        """Return the score of the model with the noise of a set."""
        own = self.own
        return with_method(
            DenoisingError(own.backbone, own.spec, seed=self._noise_seed(noise_set), rows=own.rows), self.config
        )

    def facts(self, error: DenoisingError) -> dict[str, Any]:
        """Return what the method adds to the identity of a score: its settings, and the LoRA of the model."""
        return method_facts(self.config, self.lora if error.backbone is self.own.backbone else None)

    def _noise_seed(self, noise_set: int) -> int:
        return derive_seed("noise set", self.config.seed, noise_set)

    def _open(self, path: str, random_seed: int | None) -> DenoisingError:
        model = self.config.backbone
        found = DenoisingError.from_pretrained(
            path, seed=self._noise_seed(0), dtype=model.dtype, device=model.device, rows=model.max_rows_per_pass,
            random_seed=random_seed,
        )  # fmt: skip
        return with_method(found, self.config)
