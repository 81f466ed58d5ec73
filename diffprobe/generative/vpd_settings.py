"""Settings of `diffprobe train` for VPD (experiment files of kind `train_vpd`)."""

from dataclasses import dataclass, field
from typing import Literal

from diffprobe.backbones.base import Checkpoint
from diffprobe.config.schema import DataConfig, LoggerConfig, PublishedConfig, TrainerConfig
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError
from diffprobe.generative.dense_table import Task
from diffprobe.generative.pipeline_input import pipeline_checkpoint, pipeline_digest
from diffprobe.generative.run_settings import validate_settings

Switch = Literal["frozen", "adapter", "finetune"]
"""What is trained besides the head: nothing, the text adapter, or adapter and denoiser."""
Control = Literal["frozen", "random_weights"]
VPD = "vpd"
"""The recipe whose choices are those of the released code."""
METRICS = {
    "segmentation": ("miou_pooled", "miou_per_image"),
    "referring": ("oiou", "miou_per_image"),
    "depth": ("rmse", "abs_rel", "delta1"),
}  # fmt: skip
"""Metrics of the test images, by task."""
PUBLISHED = {
    "timestep": 1, "add_noise": False, "scale_latents": False, "gamma": 1e-4, "attention_maps": True,
    "denoiser_rate": 0.1,
}  # fmt: skip
"""Choices of the recipe `vpd`; depth has no attention maps. The rate is that of the segmentation code."""


@dataclass(frozen=True, kw_only=True)
class VpdSettings:
    """A dense head, trained through a diffusion model; `generative.vpd.VpdTraining` builds it."""

    experiment: str
    """Name of the experiment."""
    model: str
    """Pipeline folder in diffusers' format, hub id, or the name of a shipped model."""
    data: DataConfig
    """Images with mask.png, or depth.png for depth."""
    trainer: TrainerConfig
    """Length, precision, step size; without one it is 8e-5, that of the released code for segmentation."""
    logger: LoggerConfig
    """Where curves go."""
    task: Task = "segmentation"
    """The class of each pixel, the pixels that a text means, or the depth of each pixel."""
    recipe: str = VPD
    """Name of the choices below in all records. `vpd` stands for the published ones alone: timestep 1, no noise,
    latents without the factor of the VAE, gamma 1e-4, attention maps (none for depth), the denoiser at 0.1 of the step
    size."""
    switch: Switch = "finetune"
    """What is trained besides the head: `frozen` nothing, `adapter` the text adapter, `finetune` adapter and denoiser
    (as published). The records of the first two are named RECIPE-frozen and RECIPE-adapter."""
    controls: tuple[Control, ...] = ("frozen", "random_weights")
    """Heads that are trained beside it in the same pass: on the frozen denoiser without adapter, and on a denoiser of
    random weights, of which `switch` trains the same parts."""
    timestep: int = 1
    """Timestep that the denoiser is given."""
    add_noise: bool = False
    """Noise the image to the timestep; without it the timestep is conditioning alone."""
    scale_latents: bool = False
    """Multiply the latents by the factor of the VAE, as the denoiser was trained; the released code does not."""
    gamma: float = 1e-4
    """First value of the adapter's scale."""
    attention_maps: bool = True
    """Append cross-attention maps of the text to the pyramid."""
    taps: tuple[str, ...] = ()
    """Levels of the pyramid, other than those of the released code; () for those."""
    classes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Class -> the values of mask.png that it has; the names are the texts of segmentation."""
    ignore: tuple[int, ...] = ()
    """Values of mask.png of no class: pixels that neither loss nor score counts."""
    prompts: tuple[str, ...] = ("a photo of a {}",)
    """Patterns of the texts of a class; their embeddings are averaged."""
    expressions: dict[str, str] = field(default_factory=dict)
    """Of referring: text with attributes in braces -> the class that it means."""
    max_depth: float = 10.0
    """Largest depth, in units of depth.png."""
    head_width: int = 256
    """Channels of the pyramid in the head."""
    denoiser_rate: float = 0.1
    """Step size of the denoiser in that of the other parts, of switch=finetune."""
    checkpointing: bool = False
    """Compute the denoiser's activations again in the backward pass, to save memory."""
    n_train: int = 4000
    """Training images, the first ones of the split."""
    n_val: int = 200
    """Validation images, the first ones."""
    n_test: int = 400
    """Test images, the first ones."""
    warmup_steps: int = 50
    """Steps over which the step size rises; a linear decay to 0 follows."""
    seed: int = 0
    """Seed of heads, order, noise, and the random denoiser."""
    output: str = "runs"
    """Folder of runs."""
    paper: str | None = None
    """Paper that is reproduced."""
    published: PublishedConfig | None = None
    """The published number, of a metric of the test images; of recipe=vpd with switch=finetune alone."""
    ema_decay: float = 0.0
    """Not available: the weights of the last step are scored."""

    def __post_init__(self) -> None:
        validate_settings(self)
        at_least(2, n_train=self.n_train, n_val=self.n_val, n_test=self.n_test)
        at_least(1, head_width=self.head_width)
        at_least(0, timestep=self.timestep)
        if self.ema_decay:
            raise ConfigError("ema_decay has no effect: the weights of the last step are scored.", fix="ema_decay=0")
        if self.data.limit is not None:
            raise ConfigError("data.limit has no effect.", fix="n_train, n_val and n_test")
        if not self.gamma > 0:
            raise ConfigError(f"gamma={self.gamma:g}: above 0; without an adapter use switch=frozen.")
        if not 0 < self.denoiser_rate:
            raise ConfigError(f"denoiser_rate={self.denoiser_rate:g} is out of range: above 0.", fix="switch=adapter")
        if not self.max_depth > 0:
            raise ConfigError(f"max_depth={self.max_depth:g} is out of range: above 0.")
        if len(set(self.controls)) != len(self.controls) or self.switch in self.controls:
            raise ConfigError(f"controls={list(self.controls)} with switch={self.switch}: each once, and not itself.")
        self._check_recipe()
        self._check_task()

    def _check_recipe(self) -> None:
        published = {**PUBLISHED, "attention_maps": self.task != "depth"}
        other = [f"{name}={getattr(self, name)}" for name, value in published.items() if getattr(self, name) != value]
        other += ["taps"] if self.taps else []
        if self.recipe == VPD and other:
            raise ConfigError(
                f"recipe=vpd has the choices of the released code; here {', '.join(other)}.",
                f"published for {self.task}: {', '.join(f'{name}={value}' for name, value in published.items())}",
                fix="name it otherwise: recipe=NAME",
            )
        if not self.recipe or self.recipe.startswith(f"{VPD}-"):
            raise ConfigError(f"recipe='{self.recipe}': a name; those that begin with vpd- are taken.")
        if self.add_noise and not self.scale_latents:
            raise ConfigError("add_noise=true: noise has the unit of scaled latents.", fix="scale_latents=true")

    def _check_task(self) -> None:
        if self.task == "depth" and (self.classes or self.expressions):
            raise ConfigError("classes and expressions have no effect with task=depth.", fix="remove them")
        if self.task != "depth" and len(self.classes) < 2:
            raise ConfigError(f"task={self.task} needs at least 2 classes.", fix="classes: {NAME: [VALUE, ...]}")
        if self.task != "segmentation" and self.ignore:
            raise ConfigError(f"ignore has no effect with task={self.task}.", fix="remove it")
        shared = sorted({value for own in self.classes.values() for value in own} & set(self.ignore))
        if shared:
            raise ConfigError(f"ignore: the value {shared[0]} has a class.")
        if (self.task == "referring") != bool(self.expressions):
            raise ConfigError("expressions belong to task=referring: give both or neither.")
        if self.task != "depth" and self.max_depth != type(self).max_depth:
            raise ConfigError(f"max_depth has no effect with task={self.task}.", fix="remove it")
        if self.published is not None and self.name != VPD:
            raise ConfigError(f"published: the number is of 'vpd'; this head is '{self.name}'.", fix="published=null")
        if self.published is not None and self.published.metric not in METRICS[self.task]:
            raise ConfigError(
                f"published.metric={self.published.metric} is not measured with task={self.task}.",
                f"allowed: {', '.join(METRICS[self.task])}",
            )
        if self.switch != "finetune" and self.denoiser_rate != type(self).denoiser_rate:
            raise ConfigError(f"denoiser_rate has no effect with switch={self.switch}.", fix="remove it")
        if any(pattern.count("{}") != 1 for pattern in self.prompts) or not self.prompts:
            raise ConfigError(f"prompts={list(self.prompts)}: each has one {{}}, for the name of a class.")

    @property
    def cost_lines(self) -> list[str]:
        """Lines on the denoiser passes of a run and on images in memory, from the settings alone: at most so many."""
        trainer, batch = self.trainer, self.data.batch_size
        per_epoch = self.n_train // batch
        steps = trainer.max_epochs * per_epoch
        steps = min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
        followed = 0 if self.switch == "frozen" else 1 + ("random_weights" in self.controls)
        branches = 1 + len(self.controls)
        scored = (self.n_val * (1 + steps // max(1, per_epoch)) + self.n_test) * branches
        images = self.n_train + self.n_val + self.n_test
        return [
            f"training: {steps:,} steps of {batch} images",
            f"denoiser passes of an image: {followed * steps * batch:,} with a backward pass, "
            f"{(branches - followed) * steps * batch + scored:,} without",
            f"images held in memory: {images:,}, at 512 x 512 pixels {images * 3 * 512**2 / 2**30:.1f} GiB",
        ]

    @property
    def name(self) -> str:
        """Name of the trained probe in records."""
        return self.recipe if self.switch == "finetune" else f"{self.recipe}-{self.switch}"

    def checkpoint(self) -> Checkpoint:
        """Locate the model. Raises: WeightsMissing; WeightsMismatch for anything but a pipeline."""
        return pipeline_checkpoint(self.model, key="model")

    def require_weights(self) -> None:
        """Check the files of the model. Raises: WeightsMissing, WeightsMismatch."""
        self.input_digests()

    def input_digests(self) -> dict[str, str]:
        """Return the digest of the model. Raises: WeightsMissing, WeightsMismatch."""
        return {"model": pipeline_digest(self.checkpoint())}
