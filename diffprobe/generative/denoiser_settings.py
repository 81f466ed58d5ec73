"""Settings of the training of a denoiser: a U-Net, or a transformer by flow matching."""

from dataclasses import dataclass, field, fields

from diffprobe.backbones.weight_files import require_files
from diffprobe.backbones.weights import digest_files, digest_part
from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.config.validators import at_least
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.generative.alignment import AlignmentConfig
from diffprobe.generative.architectures import (
    BetaSchedule,
    DenoiserShape,
    require_autoencoder,
    require_text_encoder,
    weights_folder,
)
from diffprobe.generative.augmentation import AugmentationConfig
from diffprobe.generative.caption_dropout import CaptionDropoutConfig
from diffprobe.generative.flow_transformer import TransformerShape
from diffprobe.generative.long_tail import ClassesConfig
from diffprobe.generative.objectives.base import ObjectiveConfig, complete, declared_process
from diffprobe.generative.probed_training import TrainingProbesConfig
from diffprobe.generative.regularizers.base import RegularizerConfig, complete_regularizer
from diffprobe.generative.run_settings import validate_settings
from diffprobe.generative.self_alignment import SelfAlignmentConfig

TEXT_KEYS = ("text_width", "text_layers", "text_heads", "vocab_size", "max_tokens")
"""Keys of `model` that describe text encoders."""


@dataclass(frozen=True, kw_only=True)
class DenoiserSettings:
    """Keys of experiment files of kind `train_denoiser`."""

    experiment: str
    """Name of the experiment."""
    autoencoder: str
    """Folder of the trained AutoencoderKL in diffusers' format, or the name of a shipped model."""
    data: DataConfig
    """Captioned images."""
    model: DenoiserShape = field(default_factory=DenoiserShape)
    """Shape of the networks."""
    transformer: TransformerShape | None = None
    """Shape of a transformer in place of the U-Net, as in Stable Diffusion 3; its objective has to be a flow; a flow
    needs it. None trains the U-Net."""
    self_alignment: SelfAlignmentConfig | None = None
    """Align an earlier block with a later one of the averaged network (SRA); needs `transformer`. None does not."""
    noise: BetaSchedule | None = None
    """The forward process, `BetaSchedule()` if None; an objective that declares its own takes none."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What the denoiser predicts, and how its errors are weighted."""
    classes: ClassesConfig | None = None
    """Condition on the value of an attribute instead of the captions, on long-tailed classes; None trains on the
    captions of all images."""
    regularizer: RegularizerConfig | None = None
    """Class-contrast term that is added to the loss; needs `classes`. None adds none."""
    alignment: AlignmentConfig | None = None
    """Second task besides generation: denoise the vector of the caption, given the image (DiffDis); None trains for
    generation alone."""
    trainer: TrainerConfig
    """Length, precision, step size."""
    logger: LoggerConfig
    """Where curves go."""
    seed: int = 0
    """Seed of weights, order, captions, timesteps and noise."""
    output: str = "runs"
    """Folder of runs."""
    warmup_steps: int = 300
    """Steps over which the step size rises; a cosine to 0 follows."""
    captions: CaptionDropoutConfig = field(default_factory=CaptionDropoutConfig)
    """Which of its captions a sample is trained with, and how many of its words are dropped."""
    drop_captions: float = 0.1
    """Share of samples that are trained with the empty caption, for classifier-free guidance."""
    drop_captions_clean: float = 0.1
    """The same share at timestep 0; it falls linearly to `drop_captions` at half of the schedule. A larger value keeps
    the model from memorising images by their names where little noise hides them."""
    balance_attribute: str | None = None
    """Sample rare values of this attribute more often; None takes each sample once per epoch."""
    balance_power: float = 0.5
    """0 draws all samples with equal probability, 1 all values."""
    text_encoder: str | None = None
    """Folder of a trained text encoder and its tokenizer (emoji/train_text_encoder), or the name of a shipped
    model; None trains both from scratch."""
    text_learning_rate: float = 1.0
    """Learning rate of the text encoder as a multiple of the U-Net's; 0 freezes it, random weights too."""
    text_noise: float = 0.0
    """Noise on the states of the text encoder during training, see `add_embedding_noise`."""
    init_from: str | None = None
    """Folder of a trained pipeline to start from, with its text encoder and tokenizer unless `text_encoder` names
    others; None starts from random weights."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Shifted and scaled copies of the training images."""
    ema_decay: float = 0.9995
    """Decay per step of the exponential moving average of the weights, which is what is saved."""
    probes: TrainingProbesConfig | None = None
    """Linear classifiers that are fitted to the features during training; None measures nothing."""
    snapshot_every_steps: int | None = None
    """Write the averaged weights as a pipeline to `snapshots/step-N` of the run folder every so many steps; None
    writes none."""

    def __post_init__(self) -> None:
        shares = ("drop_captions", "drop_captions_clean")
        validate_settings(self, shares=shares, not_negative=("text_learning_rate", "text_noise"))
        at_least(1, snapshot_every_steps=self.snapshot_every_steps)
        object.__setattr__(self, "objective", complete(self.objective))  # so that a record names every setting
        if declared_process(self.objective) is None:
            object.__setattr__(self, "noise", self.noise or BetaSchedule())
            if self.transformer is not None:
                raise ConfigError(
                    f"transformer is set, and objective={self.objective.name} is not a flow.",
                    "the saved StableDiffusion3Pipeline samples flows only",
                    fix="objective=flow_matching, or transformer=null",
                )
        else:
            self._validate_flow()
        if self.self_alignment is not None:
            self._validate_self_alignment(self.self_alignment)
        if self.regularizer is not None:
            if self.classes is None:
                raise ConfigError(
                    f"regularizer.name={self.regularizer.name} has no effect without classes.",
                    fix="set classes.attribute, or regularizer=null",
                )
            object.__setattr__(self, "regularizer", complete_regularizer(self.regularizer))
        if self.alignment is not None:
            self.alignment.check(
                batch_size=self.data.batch_size, text_encoder=self.text_encoder or self.init_from,
                text_learning_rate=self.text_learning_rate, transformer=self.transformer is not None,
                regularizer=self.regularizer is not None,
            )  # fmt: skip

    def _validate_self_alignment(self, alignment: SelfAlignmentConfig) -> None:
        """Refuse an alignment without the network or the average that it needs. Raises: ConfigError."""
        if self.transformer is None:
            raise ConfigError(
                "self_alignment has no effect without transformer.", fix="self_alignment=null, or a transformer"
            )
        if self.ema_decay == 0:
            raise ConfigError("self_alignment needs averaged weights, and ema_decay=0.", fix="ema_decay=0.998")
        alignment.require_blocks(self.transformer.layers)

    def _validate_flow(self) -> None:
        """Refuse settings that a flow does not have. Raises: ConfigError."""
        name = f"objective={self.objective.name}"
        if self.noise is not None:
            raise ConfigError(
                f"noise has no effect with {name}: it has a forward process of its own, without betas.",
                fix="noise=null",
            )
        if self.transformer is None:
            raise ConfigError(
                f"{name} needs a transformer: a StableDiffusionPipeline, the form in which U-Nets are saved, does not "
                "sample flows.",
                fix="experiment=scenes/train_flow, or set transformer.layers",
            )
        if self.regularizer is not None:
            raise ConfigError(
                f"regularizer.name={self.regularizer.name} is not defined with {name}: class-contrast terms compare "
                "the reverse kernels of a diffusion.",
                fix="regularizer=null",
            )
        unused = [key for key in ("text_encoder", "init_from") if getattr(self, key) is not None]
        unused += ["text_noise"] if self.text_noise else []
        if unused:
            raise ConfigError(
                f"{', '.join(unused)}: not offered with transformer: both text encoders start from random weights.",
                fix=" ".join(f"{key}={'0' if key == 'text_noise' else 'null'}" for key in unused),
            )
        default = DenoiserShape()
        keys = [field.name for field in fields(DenoiserShape) if field.name not in TEXT_KEYS]
        unused = [f"model.{key}" for key in keys if getattr(self.model, key) != getattr(default, key)]
        if unused:
            raise ConfigError(
                f"{', '.join(unused)}: no effect with transformer, which takes the place of the U-Net.",
                fix="transformer.* has the shape of the transformer",
            )

    def require_weights(self) -> None:
        """Check the folders of the autoencoder, the text encoder and the pipeline to start from.

        Raises: WeightsMissing.
        """
        require_autoencoder(self.autoencoder)
        if self.text_encoder or self.init_from:
            require_text_encoder(weights_folder(self.text_encoder or self.init_from or ""))
        if self.init_from:
            require_files(weights_folder(self.init_from) / "unet")
        if self.classes is not None and self.classes.clusters is not None:
            from diffprobe.generative.cluster_assignment import find_weights

            find_weights(self.classes.clusters)

    def input_digests(self) -> dict[str, str]:
        """Return the digests of the autoencoder, the text encoder and the initial weights. Raises: WeightsMissing."""
        found = {"autoencoder": digest_part(require_autoencoder(self.autoencoder))}
        text_encoder = self.text_encoder or self.init_from
        if text_encoder:
            folder = weights_folder(text_encoder)
            tokenizer = digest_files(sorted((folder / "tokenizer").iterdir()))
            found["text_encoder"] = digest_json({"network": digest_part(folder / "text_encoder"), "words": tokenizer})
        if self.init_from:
            found["init_from"] = digest_part(weights_folder(self.init_from) / "unet")
        if self.classes is not None and self.classes.clusters is not None:
            from diffprobe.generative.cluster_assignment import clusters_digest

            found["clusters"] = clusters_digest(self.classes.clusters)
        return found
