"""Settings of `diffprobe eval latents`."""

from dataclasses import dataclass, fields
from typing import Literal

from diffprobe.config.validators import a_device, at_least
from diffprobe.core.errors import ConfigError

_OF_GENERATION = ("reader", "n_prompts", "window", "guidance", "sampling_steps")


@dataclass(frozen=True, kw_only=True)
class LatentUseEvaluation:
    """Settings of `diffprobe eval latents` (experiment files of kind `evaluate_latents`)."""

    experiment: str
    """Name of the experiment; the folder of results below `output`."""
    run: str = ""
    """Folder of a trained sae run, or of one member of a grid."""
    sae: str | None = None
    """Name of the autoencoder, of a run with several: its folder below that of the run."""
    timestep: int | None = None
    """Timestep at which latents are ablated; None for the only one that the autoencoder was trained on."""
    split: str | None = None
    """Split that is denoised; None for the test split of the run."""
    latents: tuple[int, ...] = ()
    """Latents that are ablated; empty for all."""
    n_latents: int | None = None
    """Number of latents that are ablated, those with the largest held-out AUROC; None for all."""
    limit: int = 128
    """Held-out samples that are denoised with latents ablated, the first ones in shard order."""
    read_limit: int = 2000
    """Samples of the training split and of the held-out one, on which readings are chosen and measured."""
    controls: tuple[Literal["random_direction", "random_latent"], ...] = ("random_direction",)
    """What is taken out in place of a latent, at the same places and with the same norm: a random direction, or what
    another latent of the dictionary adds. A latent is used if its ablation costs more than each of them."""
    generate: tuple[int, ...] = ()
    """Latents that are ablated while images are generated; the attribute value that each reads best is then counted."""
    n_generate: int = 0
    """Where `generate` is empty: how many latents, those of the largest held-out AUROC."""
    reader: str | None = None
    """Reader of generated images of `scenes`: `scenes-reader`, or the folder of a finished run of kind `train_reader`;
    None for a linear classifier of clean latents, fitted to the training samples."""
    n_prompts: int = 64
    """Prompts, captions of the first held-out samples; an image of each."""
    window: tuple[int, int] | None = None
    """Smallest and largest timestep at which a latent is ablated in generation; None for all sampling steps."""
    guidance: float = 0.0
    """Added to the scale of classifier-free guidance: 0 is none. Latents are ablated on both passes."""
    sampling_steps: int = 20
    """Steps of the sampler (deterministic, evenly spaced)."""
    n_resamples: int = 1000
    """Bootstrap resamples of intervals."""
    n_permutations: int = 9999
    """Sign flips of tests."""
    group_attribute: str | None = None
    """Attribute whose values are the groups of intervals and tests; None for the group that the data set names. Samples
    without a value, and all samples if it is "sample" or the data set names none, are groups of their own."""
    backbone_path: str | None = None
    """Path of the backbone; None for the path of the run."""
    data_path: str | None = None
    """Folder of the shards; None for the path of the run."""
    device: str = "auto"
    """Torch device; "auto" for the accelerator if there is one."""
    seed: int = 0
    """Seed of controls, intervals, tests and generated images. The seed of the noise is that of the run."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        a_device(self.device)
        at_least(2, limit=self.limit, read_limit=self.read_limit)
        at_least(1, n_latents=self.n_latents, n_prompts=self.n_prompts, sampling_steps=self.sampling_steps)
        at_least(1, n_resamples=self.n_resamples, n_permutations=self.n_permutations)
        at_least(0, n_generate=self.n_generate, guidance=self.guidance, seed=self.seed)
        for name in ("latents", "generate", "controls"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"{name} has duplicates: {', '.join(map(str, values))}.")
        if not self.controls:
            raise ConfigError(
                "controls is empty: a rise of the error shows use beside a control only.",
                "allowed: random_direction, random_latent",
            )
        if self.latents and self.n_latents is not None:
            raise ConfigError("latents and n_latents are both set; either names the latents.")
        if self.window is not None and self.window[0] > self.window[1]:
            raise ConfigError(f"window={list(self.window)}: the smallest timestep comes first.")
        default = {field.name: field.default for field in fields(self)}
        idle = [name for name in _OF_GENERATION if getattr(self, name) != default[name]]
        if idle and not self.generates:
            raise ConfigError(
                f"{', '.join(idle)} has no effect: no images are generated.", fix="generate=[LATENT], or n_generate=N"
            )

    @property
    def generates(self) -> bool:
        """Whether images are generated."""
        return bool(self.generate or self.n_generate)
