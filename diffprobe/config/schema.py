"""What a run may say: frozen dataclasses, each field with its help text below it. No torch, no file access.

Judged by `parse.py`. A probe's own keys (`probe.params`) are judged by the ``Config`` in the probe's file.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from diffprobe.config.validators import a_device, at_least
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which frozen model is read."""

    path: str
    """Folder in diffusers format, hub id, "emoji-sd" (the shipped model), or "pixels" (no model: the raw pixels)."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; None takes the main branch."""
    random_weights: bool = False
    """Keep the denoiser's shape and draw its weights afresh: the random-weights control. VAE and text stay trained."""
    random_seed: int = 0
    """Seed of the random weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward pass; features are float32 in any case."""
    device: str = "auto"
    """Torch device; "auto" takes the accelerator if there is one; of several, each process takes its own."""
    denoiser_weights: str | None = None
    """Safetensors file or folder, or OWNER/NAME:FILE (OWNER/NAME@REVISION:FILE) on the hub, in place of the denoiser's
    own weights."""
    clean_input: bool = False
    """Give the denoiser the image without noise; the timestep is only what it is told (CleanDIFT)."""
    max_rows_per_pass: int | None = None
    """Images a pass of the denoiser, draws, timesteps and conditions counted apart; None bounds them by memory."""
    channels_last: bool = True
    """Memory layout of the convolutions; changes features by rounding only."""
    compile: bool = False
    """Compile the denoiser's blocks with torch.compile at the first pass; changes features by rounding only."""

    def __post_init__(self) -> None:
        at_least(1, max_rows_per_pass=self.max_rows_per_pass)
        a_device(self.device)


@dataclass(frozen=True, kw_only=True)
class FieldsConfig:
    """Under which names a shard's samples keep their parts."""

    image: tuple[str, ...] = ("jpg", "png", "webp")
    """Extensions that hold the image; exactly one must be present in a sample."""
    json: str = "json"
    """Extension of the sample's JSON object."""
    label: str = "label"
    """JSON key of the class id."""
    class_name: str = "class_name"
    """JSON key of the class's name."""
    caption: str = "caption"
    """JSON key of the caption."""
    captions: str = "captions"
    """JSON key of the alternative captions."""
    attributes: str = "attributes"
    """JSON key of the attributes, a flat object of name -> value."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shards are streamed, and how."""

    path: str
    """"emoji" for the shipped set, else a folder of WebDataset shards with its index.json."""
    train_split: str = "train"
    """Split that probes are fitted on."""
    val_split: str = "val"
    """Split that selects between probes."""
    test_split: str = "test"
    """Split that is reported."""
    batch_size: int = 64
    """Samples a batch, per process."""
    num_workers: int = 0
    """Loader processes. Features never depend on it; the order of a live training stream does."""
    shuffle_buffer: int = 1000
    """Samples held to shuffle a training stream; 0 keeps the shard order."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a faulty sample does: stop the run, or be counted, listed and left out."""
    limit: int | None = None
    """Samples a split, the first ones in shard order; None takes all."""
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    """Names of the parts of a sample; those left at their defaults are the index's."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size, limit=self.limit)
        at_least(0, num_workers=self.num_workers, shuffle_buffer=self.shuffle_buffer)


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Which cells are read from the backbone: taps x timesteps under one condition and pooling."""

    source: Literal["stored", "live"] = "stored"
    """Read a feature store (`diffprobe extract` writes it), or run the backbone on every batch."""
    taps: tuple[str, ...]
    """Module paths or aliases: mid_block, up_blocks.1, up_blocks.*, bottleneck, up_ft1."""
    timesteps: tuple[int, ...] = ()
    """Noise positions on the training grid; larger is noisier."""
    snr: tuple[float, ...] = ()
    """Further timesteps, each by its signal-to-noise ratio (of variances); the nearest on the grid is taken."""
    condition: Literal["empty", "caption", "prompt", "template", "label"] = "empty"
    """What the backbone is told: nothing, the sample's caption, `prompt`, `prompt` filled in, or the sample's class."""
    prompt: str | None = None
    """The prompt of condition=prompt, or the pattern of condition=template: "a photo of a {class_name}"."""
    unconditional: bool = False
    """Read every cell under the empty condition too (the unconditional branch of guidance)."""
    negative_prompt: str | None = None
    """What the unconditional branch is told instead of the empty prompt."""
    pool: str = "mean"
    """How a feature map becomes a feature: mean, max, none (the map), gridK (K x K means), tokensN (N places)."""
    draws: int = 1
    """Noise samples an image, averaged."""
    keep_draws: bool = False
    """Keep the draws side by side instead of averaging them."""
    seed: int = 0
    """Seed of the noise; with the sample's key and the draw it fixes the noise."""
    resolution: int | None = None
    """Side of the images in pixels; None takes the backbone's own."""
    store: str = "runs/stores"
    """Folder that holds the feature stores, one a digest."""
    latent_cache: str | None = None
    """Folder in which `diffprobe extract` keeps the VAE's latents, for later extractions from the same images."""
    placement: Literal["auto", "memory", "mapped", "device"] = "auto"
    """Where a stored split is kept: in memory, in its files, or on the probe's device; auto: in memory up to 2 GiB."""
    shuffle: Literal["samples", "rows"] = "samples"
    """What an epoch permutes: whole samples, or (sae, from a store) every row of a cell: vector, place, token, draw."""

    def __post_init__(self) -> None:
        if self.source == "live" and self.placement != "auto":
            raise ConfigError(f"placement={self.placement} with source=live: live features are not kept.")
        if self.source == "live" and self.shuffle == "rows":
            raise ConfigError("shuffle=rows with source=live: probe.params.row_buffer=N mixes N rows while streaming.")
        if self.latent_cache is not None and self.source == "live":
            raise ConfigError("latents are kept by an extraction run; features.source=live reads images.")
        if not self.taps or not (self.timesteps or self.snr):
            raise ConfigError(f"{'timesteps' if self.taps else 'taps'} is empty; at least one is needed.")
        for name in ("taps", "timesteps", "snr"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ConfigError(f"{name} names one twice: {', '.join(map(str, values))}.")
        if (self.prompt is not None) != (self.condition in ("prompt", "template")):
            raise ConfigError("prompt belongs to condition=prompt and condition=template: give both or neither.")
        if self.negative_prompt is not None and not self.unconditional:
            raise ConfigError("negative_prompt belongs to unconditional=true.")
        at_least(1, draws=self.draws, resolution=self.resolution)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What is fitted on the features."""

    kind: str
    """Kind of the probe: sae, classifier or direction; a folder of diffprobe/probes."""
    name: str
    """File of the probe: topk, linear, mean_difference, ridge, logistic."""
    cell: str | None = None
    """Cell to fit on: mid_block@t100; mid_block@t*, or mid_block, for all timesteps of the tap (classifier; sae, one
    for all of them). None: every cell (classifier), or the only one (sae, direction)."""
    targets: tuple[str, ...] = ("label",)
    """What is predicted: label, or names of attributes. An sae ignores it."""
    params: dict[str, Any] = field(default_factory=dict)
    """The probe's own keys; its file's Config says which there are."""
    metrics: tuple[str, ...] = ()
    """Of a classifier: metrics to record, files of diffprobe/metrics; () for accuracy and balanced_accuracy."""
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Of an sae: key (cell, seed, or one of params) -> values. All combinations train in one run, in place of `cell`,
    `seed` and `params`; the order of the samples stays that of the run's seed."""
    batched: bool = False
    """Step the autoencoders of a grid that have equal shape as one; they are then those of single runs to rounding."""

    def __post_init__(self) -> None:
        if self.batched and not self.grid:
            raise ConfigError("batched belongs to grid: one autoencoder has nothing to be stepped with.")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long, how exactly and on what a probe is trained (most keys are Lightning's)."""

    max_epochs: int = 10
    """Passes over the training split."""
    max_steps: int = -1
    """Optimiser steps at most; -1 sets no bound."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"] = "32-true"
    """Lightning's precision; part of the result, so it is never lowered silently."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where the probe is trained."""
    devices: int = 1
    """Processes (CPU) or GPUs a node."""
    strategy: str = "auto"
    """Lightning's strategy: auto, ddp, fsdp, ...; not one that spawns or forks, whose results stay in the children."""
    num_nodes: int = 1
    """Machines."""
    learning_rate: float | None = None
    """Step size; None takes the probe's own default."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    gradient_clip: float | None = None
    """Largest norm of a gradient; None does not clip."""
    log_every_steps: int = 50
    """Optimiser steps between logged values."""
    checkpoint_every_steps: int = 0
    """Optimiser steps between checkpoints; 0 writes one at the end of each epoch."""
    enable_progress_bar: bool = True
    """Show progress bars."""
    resume: bool = True
    """Continue from the run's last checkpoint if there is one."""

    def __post_init__(self) -> None:
        if self.max_steps < -1:
            raise ConfigError(f"max_steps={self.max_steps} is out of range: -1 (no bound) or more.")
        if any(word in self.strategy for word in ("spawn", "fork", "notebook")):
            what = f"strategy={self.strategy} trains in processes that take their results with them when they end."
            raise ConfigError(what, fix="trainer.strategy=ddp, from a shell")
        at_least(1, max_epochs=self.max_epochs, devices=self.devices, num_nodes=self.num_nodes)
        at_least(1, log_every_steps=self.log_every_steps)
        at_least(0, checkpoint_every_steps=self.checkpoint_every_steps, weight_decay=self.weight_decay)
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value} is out of range: more than 0.")


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    """Where curves go. `result.json` is written in any case."""

    kind: Literal["wandb", "csv", "none"] = "csv"
    """Weights & Biases, a CSV file in the run's folder, or nothing."""
    project: str = "diffprobe"
    """W&B project."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """W&B mode; auto is online if logged in, else offline. There is never a prompt."""
    entity: str | None = None
    """W&B team or user; None takes the account's default."""
    group: str | None = None
    """W&B group; None takes the experiment's name."""
    tags: tuple[str, ...] = ()
    """W&B tags besides those of the run."""


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """A number from a paper that the run is set beside."""

    metric: str
    """Name of the measured metric it belongs to."""
    value: float
    """The published number, in the unit of the metric."""
    tolerance: float
    """How far a faithful run may lie from it."""
    source: str
    """Paper, table or figure, and row."""
    provenance: str
    """How the number got here: read from the table, from a figure, from released code."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: a probe on features of a backbone over a data set."""

    experiment: str = ""
    """Experiment file without suffix; filled in by `load_run`."""
    backbone: BackboneConfig
    """The frozen model."""
    data: DataConfig
    """The images."""
    features: FeaturesConfig
    """The cells."""
    probe: ProbeConfig
    """What is fitted."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How it is fitted."""
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    """Where curves go."""
    seed: int = 0
    """Seed of weights, order and splits of the probe."""
    control: Literal["none", "shuffled_labels", "random_weights", "raw_pixels"] = "none"
    """Which control this run is, if it is one."""
    output: str = "runs"
    """Folder for what runs leave behind."""
    paper: str | None = None
    """Paper that the experiment reproduces."""
    table: str | None = None
    """Table of the paper."""
    row: str | None = None
    """Row of the table."""
    published: PublishedConfig | None = None
    """The published number."""
