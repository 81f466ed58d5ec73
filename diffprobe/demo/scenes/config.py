"""The configuration of the demo of `scenes`, and what is checked before anything is sampled."""

from dataclasses import dataclass

from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.rates import RENDERER, RatesEvaluation
from diffprobe.shards.scenes.captions import parse
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.world import load_world


@dataclass(frozen=True, kw_only=True)
class Twin:
    """One of the two models."""

    model: str
    """Name of a shipped model, or the folder of a StableDiffusionPipeline."""
    world: str
    """The world whose rates it was trained on: planted or permuted."""


@dataclass(frozen=True, kw_only=True)
class ScenesDemo:
    """The demo of `scenes` (experiment files of kind `scenes_demo`)."""

    experiment: str = ""
    """Experiment file of the demo; set when it is read."""
    title: str
    """Heading of the page."""
    lead: str
    """One or two sentences under it."""
    twins: tuple[Twin, ...]
    """Two models of one recipe, trained on different worlds."""
    reader: str = "scenes-reader"
    """`scenes-reader`, which ships with diffprobe, or the folder of a finished run of kind `train_reader`."""
    prompts: tuple[str, ...]
    """Captions of the world whose samples are on the page."""
    images_per_prompt: int = 6
    """Samples of each prompt and model."""
    n_per_role: int = 24
    """Images per role and model behind the rates."""
    validated_per_role: int = 2
    """Images per role, the first ones, that are labelled by re-rendering: the confusion of the reader."""
    guidance: float = 0.0
    """Added to the scale of classifier-free guidance: 0 is none (scale 1 in diffusers), 2 is scale 3."""
    sampling_steps: int = 20
    """DDIM steps."""
    n_resamples: int = 2000
    """Draws of intervals, and permutations of the roles for the controls."""
    seed: int = 0
    """Seed of prompts, noise and draws."""
    output: str = "runs/demo-scenes"
    """Folder of the images, the results and report.html."""
    limits: tuple[str, ...] = ()
    """Limits of this demo, in addition to those that follow from its numbers."""
    next_steps: tuple[str, ...] = ()
    """Commands to run next; printed at the end and on the page."""

    def __post_init__(self) -> None:
        at_least(1, images_per_prompt=self.images_per_prompt)
        if len(self.twins) != 2:
            raise ConfigError(f"twins names {len(self.twins)} model(s); the demo compares 2.")
        for key in ("model", "world"):
            values = [getattr(twin, key) for twin in self.twins]
            if values[0] == values[1]:
                raise ConfigError(f"both twins have {key}={values[0]}.", fix=f"name another {key} for the second one")
        if any(twin.model == RENDERER for twin in self.twins):
            raise ConfigError(
                f"twins: '{RENDERER}' is not a model that can be sampled by prompts.",
                fix=f"diffprobe eval rates {RENDERER} reads the rates of the world itself",
            )
        if not self.prompts:
            raise ConfigError("prompts is empty; the demo needs at least one.")
        if len(set(self.prompts)) < len(self.prompts):
            raise ConfigError("prompts: one of them occurs twice.")
        for twin in self.twins:
            self.rates_of(twin)  # checks the numbers

    def rates_of(self, twin: Twin) -> RatesEvaluation:
        """Return the settings by which the rates of one model are measured. Raises: ConfigError."""
        return RatesEvaluation(
            experiment=self.experiment, model=twin.model, reader=self.reader, world=twin.world,
            n_per_role=self.n_per_role, validated_per_role=self.validated_per_role, guidance=self.guidance,
            sampling_steps=self.sampling_steps, n_resamples=self.n_resamples, seed=self.seed, output=self.output,
        )  # fmt: skip


def check_scenes(config: ScenesDemo) -> WorldSpec:
    """Check prompts, worlds, reader and models. Reads the reader and the configurations of the models, no weights.

    Returns: the world.
    Raises: ConfigError for a prompt that is not a caption of the world; UnknownName for a world that it lacks;
        WeightsMissing for a missing reader or model; WeightsMismatch for a reader of another world, a model that is not
        a StableDiffusionPipeline, or one of another resolution than the reader's.
    """
    from diffprobe.generative.scene_reader import load_reader

    spec = load_world()
    for twin in config.twins:
        spec.world(twin.world)
    for number, prompt in enumerate(config.prompts, start=1):
        try:
            stated = parse(spec, prompt)
        except ConfigError as error:
            raise ConfigError(
                f"prompts, number {number}: '{prompt}' is not a caption of the world.", error.what, *error.details
            ) from error
        if "role" not in stated:
            raise ConfigError(
                f"prompts, number {number}: '{prompt}' names no role, so no rate belongs to it.",
                f"roles: {', '.join(spec.names('role'))}",
            )
    resolution = load_reader(config.reader, spec).resolution
    for twin in config.twins:
        _check_model(twin.model, resolution)
    return spec


def _check_model(model: str, resolution: int) -> None:
    from diffprobe.backbones.families import describe, sd_unet
    from diffprobe.backbones.locate import locate
    from diffprobe.core.errors import WeightsMismatch

    checkpoint = locate(model)
    if checkpoint.folder is None or not sd_unet.matches(checkpoint.index):
        raise WeightsMismatch(
            f"'{model}' is a {checkpoint.index.get('_class_name')}, not a StableDiffusionPipeline.",
            fix="name the folder of a StableDiffusionPipeline that was trained on this world",
        )
    found = describe(checkpoint, None)[1].resolution
    if found != resolution:
        raise WeightsMismatch(
            f"'{model}' draws images of {found} pixels, the reader reads {resolution}.",
            fix="train a reader with data.resolution of the model, and name its folder: reader=FOLDER",
        )
