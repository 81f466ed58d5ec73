"""The configuration of a probe run: frozen dataclasses, each field with its help text below it.

Validated by `parse.py`. A probe's own keys (`probe.params`) are validated by the ``Config`` in the probe's file.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from diffprobe.config.massive import MassiveConfig
from diffprobe.config.parse import UNRECORDED
from diffprobe.config.validators import a_device, at_least
from diffprobe.config.views import ViewsConfig
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The frozen model that features are read from."""

    path: str
    """Folder in diffusers format, hub id, single safetensors file (with `single_file_config`), a shipped model
    ("emoji-sd", "scenes-sd", "scenes-sd-permuted", "scenes-flow"), or "pixels" (no model: the raw pixels)."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; None takes the main branch."""
    random_weights: bool = False
    """Replace the denoiser's weights by random ones (the random-weights control); VAE and text encoder stay trained."""
    random_seed: int = 0
    """Seed of the random weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward pass; features are always float32."""
    device: str = "auto"
    """Torch device; "auto" uses the accelerator if there is one, and one per process if there are several."""
    denoiser_weights: str | None = None
    """Weights that replace the denoiser's: a safetensors file or folder, or OWNER/NAME:FILE (OWNER/NAME@REVISION:FILE)
    on the hub."""
    single_file_config: str | None = None
    """Folder in diffusers format or hub id with the configurations and tokenizers for a `path` that is a single
    safetensors file; its weights are not needed."""
    lora: str | None = None
    """LoRA that is added to the weights when they are loaded: a safetensors file, FILE or FILE@WEIGHT (weight 1)."""
    part: Literal["denoiser", "vae", "text_encoder"] = "denoiser"
    """What is read of the checkpoint: the denoiser, or a control: its VAE alone (tap latents, the latents without
    noise), or its text encoders alone (tap text, the sample's caption). Both have timestep 0 only."""
    clean_input: bool = False
    """Give the denoiser the image without noise; the timestep is only its conditioning (CleanDIFT)."""
    max_rows_per_pass: int | None = None
    """Largest batch of one denoiser pass, where each draw, timestep and condition is a row; None: limited by memory."""
    max_modules: int = 20_000
    """Largest number of modules that a checkpoint's configs may describe; FLUX.1 has 3,000."""
    channels_last: bool = True
    """Use the channels-last memory layout in convolutions; changes features by rounding only."""
    compile: bool = False
    """Compile the denoiser's blocks with torch.compile at the first pass; changes features by rounding only."""
    cpu_kernels: Literal["mkl", "onednn", "auto"] = "mkl"
    """Library of the denoiser's float32 linear layers on a CPU: "auto" measures both and takes oneDNN where it is
    clearly faster (AMD). Changes features by rounding only; a store keeps what it was begun with."""
    offload: Literal["none", "blocks"] = "none"
    """blocks: leave the denoiser's blocks in files and read them one by one in each pass, at most two at a time."""
    quantize: Literal["none", "int8", "fp8"] = "none"
    """int8, fp8: hold the weights of the linear layers in the denoiser's blocks in 8 bits (weight-only, by torchao);
    the pass stays in `dtype`. Changes features by more than rounding; `diffprobe bench quantize` measures the error."""

    def __post_init__(self) -> None:
        at_least(1, max_rows_per_pass=self.max_rows_per_pass, max_modules=self.max_modules)
        a_device(self.device)
        names = ("random_weights", "denoiser_weights", "lora", "clean_input", "offload", "cpu_kernels", "quantize")
        idle = [name for name in names if getattr(self, name) != getattr(type(self), name)]
        if self.part != "denoiser" and idle:
            raise ConfigError(
                f"{', '.join(idle)} with part={self.part}: they change the denoiser, which is not read.",
                fix=f"remove {'it' if len(idle) == 1 else 'them'}, or part=denoiser",
            )
        if self.offload != "none" and (self.lora is not None or self.compile):
            other = "compile" if self.compile else "lora"
            raise ConfigError(
                f"offload={self.offload} with {other}: it needs blocks that stay in memory.", fix=f"remove {other}"
            )
        kernels = self.cpu_kernels != "mkl"
        clash = {
            "lora": self.lora is not None,
            "compile": self.compile,
            "offload": self.offload != "none",
            "cpu_kernels": kernels,
        }
        if self.quantize != "none" and any(clash.values()):
            other = next(name for name, given in clash.items() if given)
            why = {
                "lora": "a LoRA is added to weights in full precision",
                "compile": "blocks with quantised weights are not compiled",
                "offload": "blocks are read from files in full precision",
                "cpu_kernels": "quantised layers bring their own kernels",
            }[other]
            raise ConfigError(f"quantize={self.quantize} with {other}: {why}.", fix=f"remove {other} or quantize")
        if kernels and (self.compile or self.dtype != "float32"):
            other = "compile=true, which brings its own kernels" if self.compile else f"dtype={self.dtype}"
            raise ConfigError(
                f"cpu_kernels={self.cpu_kernels} with {other}: it is for float32 layers that are not compiled.",
                fix="remove cpu_kernels",
            )


@dataclass(frozen=True, kw_only=True)
class FieldsConfig:
    """Names of the files and JSON keys of a shard's samples."""

    image: tuple[str, ...] = ("jpg", "png", "webp")
    """Extensions of the image file; a sample must have exactly one."""
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
    """JSON key of the attributes, a flat object name -> value."""

    def __post_init__(self) -> None:
        for name in (*self.image, self.json):
            if not name or name != name.lower().lstrip("."):
                raise ConfigError(
                    f"'{name}' is not an extension of samples, which are read in lower case and without the first dot.",
                    fix=f"'{name.lower().lstrip('.')}'",
                )
        taken = [name for name in self.image if name in (self.json, "cls", "txt")]
        if taken or self.json in ("cls", "txt"):
            raise ConfigError(
                f"field '{taken[0] if taken else self.json}' has two meanings.",
                "the image, the json, cls (the label) and txt (the caption) are different files of a sample",
            )


@dataclass(frozen=True, kw_only=True)
class CapsConfig:
    """Largest parts of a sample that are read; a larger one is refused before memory is reserved for it."""

    sample_bytes: int = 256 * 2**20
    """Bytes of all files of one sample together, uncompressed."""
    annotation_bytes: int = 8 * 2**20
    """Bytes of one annotation file: json, cls or txt."""
    image_pixels: int = 2**26
    """Pixels of one image, width times height; decoding needs up to 16 bytes of memory per pixel."""
    label: int = 4_000_000
    """Largest class id; the index lists all classes from 0 to it."""

    def __post_init__(self) -> None:
        at_least(1, sample_bytes=self.sample_bytes, annotation_bytes=self.annotation_bytes)
        at_least(1, image_pixels=self.image_pixels, label=self.label)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The shards that are read, and how."""

    path: str
    """Name of a shipped data set ("emoji"), or a folder of WebDataset shards with an index.json."""
    train_split: str = "train"
    """Split that probes are fitted on."""
    val_split: str = "val"
    """Split for the selection between probes."""
    test_split: str = "test"
    """Split that results are reported on."""
    val_fraction: float | None = None
    """Share of the training split that is cut out as validation split, by hash, for a set that has none."""
    val_group: str | None = None
    """With val_fraction: attribute whose values stay in one split, or "key"; None: the group that the set names, else
    the key of each sample."""
    batch_size: int = 64
    """Samples per batch and process."""
    num_workers: int = 0
    """Loader processes. They change the order of a live training stream, but never a feature."""
    shuffle_buffer: int = 1000
    """Samples in the shuffle buffer of a training stream; 0 keeps the shard order."""
    on_error: Literal["raise", "skip"] = "raise"
    """Stop the run at a faulty sample, or skip, count and list it."""
    limit: int | None = None
    """Samples per split, the first ones in shard order; None: all."""
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    """Names of the parts of a sample; the index's names where they are left at their defaults."""
    caps: CapsConfig = field(default_factory=CapsConfig)
    """Largest parts of a sample that are read."""
    verify: bool = True
    """Compare the checksum of each shard with the index before it is read, once per process."""
    storage_patience: float = field(default=300.0, metadata=UNRECORDED)
    """Seconds for which a shard or a store's file that vanishes with its storage (a remount of NFS or Lustre) is tried
    again, with growing waits; 0 stops at once. Not part of a run's record."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size, limit=self.limit)
        if not 0 <= self.storage_patience <= 86_400:
            raise ConfigError(f"storage_patience={self.storage_patience} is out of range: 0 to 86400 seconds.")
        at_least(0, num_workers=self.num_workers, shuffle_buffer=self.shuffle_buffer)
        if self.val_fraction is None:
            if self.val_group is not None:
                raise ConfigError(f"val_group={self.val_group} has no effect without val_fraction.", fix="remove it")
            return
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"val_fraction={self.val_fraction} is out of range: between 0 and 1.")
        if self.val_split in (self.train_split, self.test_split):
            raise ConfigError(
                f"val_fraction={self.val_fraction} cuts out a split of its own, but val_split={self.val_split} is also "
                "another split's name."
            )

    def source_of(self, split: str) -> str:
        """Return the split of the shards that has the samples of `split`: train_split for one that is cut out of it."""
        return self.train_split if self.val_fraction is not None and split == self.val_split else split


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """The cells that are read from the backbone: taps x timesteps under one condition and pooling."""

    source: Literal["stored", "live"] = "stored"
    """stored: read a feature store (written by `diffprobe extract`); live: run the backbone on every batch."""
    taps: tuple[str, ...]
    """Module paths or aliases: mid_block, up_blocks.1, up_blocks.*, bottleneck, up_ft1."""
    timesteps: tuple[int, ...] = ()
    """Timesteps on the training grid; larger is noisier."""
    snr: tuple[float, ...] = ()
    """Further timesteps, each given by its signal-to-noise ratio (of variances); the nearest on the grid is used."""
    condition: Literal["empty", "caption", "prompt", "template", "label"] = "empty"
    """Conditioning input: the empty prompt, the sample's caption, `prompt`, `prompt` as a template, or the class."""
    prompt: str | None = None
    """Prompt of condition=prompt, or template of condition=template: "a photo of a {class_name}"."""
    columns: str | None = None
    """Table (.csv, .tsv, .jsonl) with further columns of condition=template by the key of the sample, for example the
    predicted classes that `diffprobe data predict` writes. Its content is part of a store's identity."""
    unconditional: bool = False
    """Read every cell under the empty condition as well (the unconditional branch of guidance)."""
    negative_prompt: str | None = None
    """Prompt of the unconditional branch, in place of the empty prompt."""
    missing: Literal["refuse", "empty", "leave_out"] = "refuse"
    """Samples without the caption, label or column of the condition: refuse the run before it starts, give them the
    empty prompt, or leave them out of the features."""
    pool: str = "mean"
    """Pooling of a feature map: mean, max, none (keep the map), gridK (K x K means), tokensN (N positions)."""
    draws: int = 1
    """Noise samples per image; features are averaged over them."""
    keep_draws: bool = False
    """Keep the features of each draw instead of their average."""
    seed: int = 0
    """Seed of the noise, which depends on this seed, the sample's key and the draw alone; and of the views."""
    resolution: int | None = None
    """Height and width of the images in pixels; None: the backbone's own."""
    store: str = "runs/stores"
    """Folder of the feature stores, one subfolder per digest."""
    latent_cache: str | None = None
    """Folder in which `diffprobe extract` caches the VAE's latents for later extractions from the same images."""
    placement: Literal["auto", "memory", "mapped", "device"] = "auto"
    """Place of a stored split: in memory, mapped from files, on the probe's device; auto: in memory up to 2 GiB."""
    shuffle: Literal["samples", "rows"] = "samples"
    """Unit of shuffling: whole samples, or (sae with a store) single rows: positions, tokens and draws."""
    verify: bool = True
    """Compare the checksum of each file of a store when a split is opened, once per process."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Random views of the training images."""
    massive: MassiveConfig = field(default_factory=MassiveConfig)
    """Massive channels: kept, set to 0 or clipped."""

    def __post_init__(self) -> None:
        if self.source == "live" and self.views.use == "all":
            raise ConfigError("views.use=all needs source=stored: live features have one view per epoch.")
        if self.source == "stored" and self.views.active and self.views.n is None:
            raise ConfigError(
                "views without views.n need source=live: a store has a number of views.", fix="features.views.n=4"
            )
        if self.source == "live" and self.placement != "auto":
            raise ConfigError(f"placement={self.placement} needs source=stored: live features are not stored.")
        if self.source == "live" and self.shuffle == "rows":
            raise ConfigError("shuffle=rows needs source=stored; with source=live, use probe.params.row_buffer=N.")
        if self.source == "live" and not self.verify:
            raise ConfigError("verify=false needs source=stored: live features have no store.", fix="data.verify=false")
        if self.latent_cache is not None and self.source == "live":
            raise ConfigError("latent_cache belongs to source=stored: source=live reads images.")
        if not self.taps or not (self.timesteps or self.snr):
            raise ConfigError(f"{'timesteps' if self.taps else 'taps'} is empty; at least one is needed.")
        for name in ("taps", "timesteps", "snr"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ConfigError(f"{name} has duplicates: {', '.join(map(str, values))}.")
        if (self.prompt is not None) != (self.condition in ("prompt", "template")):
            raise ConfigError("prompt belongs to condition=prompt and condition=template: give both or neither.")
        if self.columns is not None and self.condition != "template":
            raise ConfigError(
                f"columns has no effect with condition={self.condition}: it adds columns of condition=template.",
                fix="remove features.columns",
            )
        if self.negative_prompt is not None and not self.unconditional:
            raise ConfigError("negative_prompt belongs to unconditional=true.")
        if self.missing != "refuse" and self.condition not in ("caption", "template", "label"):
            raise ConfigError(
                f"missing={self.missing} has no effect with condition={self.condition}.",
                "it belongs to condition=caption, template and label",
                fix="remove it",
            )
        at_least(1, draws=self.draws, resolution=self.resolution)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """The probe that is fitted on the features."""

    kind: str
    """Kind of the probe: sae, classifier, direction or caption; a folder of diffprobe/probes."""
    name: str
    """Name of the probe: a file of its kind's folder (topk, linear, mean_difference, ridge, logistic, ...)."""
    cell: str | None = None
    """Cell to fit on: mid_block@t100; or mid_block@t* (in short mid_block) for all timesteps of the tap, with one
    classifier per cell, or one sae for all of them. None: every cell (classifier), or the only one (sae, direction)."""
    targets: tuple[str, ...] = ("label",)
    """Targets of the prediction: label, or names of attributes. An sae has none."""
    params: dict[str, Any] = field(default_factory=dict)
    """Keys of the probe itself; see the `Config` in its file."""
    balance: str | None = None
    """Target whose classes come equally often in the training batches of a classifier (label, or an attribute): rare
    ones are repeated, samples without a value are left out. None: each sample once per epoch."""
    metrics: tuple[str, ...] = ()
    """Metrics that a classifier records, files of diffprobe/metrics; () for accuracy and balanced_accuracy."""
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Grid of an sae or a classifier: key (cell, seed, or one of params) -> values. One run trains all combinations,
    which override `cell`, `seed` and `params`; the order of the samples follows the run's seed."""
    batched: bool = False
    """Train the probes of a grid that have equal shapes as one batch, or all classifiers of a run; equal to single runs
    up to rounding."""

    def __post_init__(self) -> None:
        if self.balance is not None and self.kind != "classifier":
            raise ConfigError(
                f"balance={self.balance} belongs to classifiers that are trained in steps, not to kind '{self.kind}'.",
                fix="remove probe.balance",
            )
        if self.batched and not self.grid and self.kind != "classifier":
            raise ConfigError("batched needs a grid: a single probe cannot be batched.")


LATENTS = "latents"
"""The strategy in which processes share the latents of an autoencoder."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Duration, precision and hardware of training (most keys are Lightning's)."""

    max_epochs: int = 10
    """Passes over the training split."""
    max_steps: int = -1
    """Maximum number of optimiser steps; -1: no limit."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"] = "32-true"
    """Lightning's precision; never lowered automatically, since it changes results."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Hardware that the probe is trained on."""
    devices: int = 1
    """Processes (CPU) or GPUs per node."""
    strategy: str = "auto"
    """Lightning's strategy: auto, ddp, fsdp, ...; strategies that spawn or fork are refused, as they lose results.
    latents: all devices share the latents of one TopK autoencoder, and every process gets the whole batch."""
    num_nodes: int = 1
    """Number of nodes."""
    learning_rate: float | None = None
    """Learning rate; None: the probe's default."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    gradient_clip: float | None = None
    """Maximum norm of the gradient; None: no clipping."""
    log_every_steps: int = 50
    """Optimiser steps between logged values."""
    checkpoint_every_steps: int = 0
    """Optimiser steps between checkpoints; 0: one checkpoint at the end of each epoch."""
    enable_progress_bar: bool = True
    """Show progress bars."""
    resume: bool = True
    """Resume from the run's last checkpoint if there is one."""

    def __post_init__(self) -> None:
        if self.max_steps < -1:
            raise ConfigError(f"max_steps={self.max_steps} is out of range: at least -1 (no limit).")
        if any(word in self.strategy for word in ("spawn", "fork", "notebook")):
            what = f"strategy={self.strategy} is not supported: the results of its processes are lost when they end."
            raise ConfigError(what, fix="trainer.strategy=ddp, from a shell")
        if self.strategy == LATENTS and self.precision == "16-mixed":
            raise ConfigError(
                f"precision=16-mixed with strategy={LATENTS}: each process would scale its gradients differently.",
                "allowed: 32-true, 64-true, bf16-mixed",
                fix="trainer.precision=bf16-mixed",
            )
        at_least(1, max_epochs=self.max_epochs, devices=self.devices, num_nodes=self.num_nodes)
        at_least(1, log_every_steps=self.log_every_steps)
        at_least(0, checkpoint_every_steps=self.checkpoint_every_steps, weight_decay=self.weight_decay)
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value} is out of range: more than 0.")


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    """Logging of training curves. `result.json` is always written."""

    kind: Literal["wandb", "csv", "none"] = "csv"
    """Weights & Biases, a CSV file in the run's folder, or no logging."""
    project: str = "diffprobe"
    """W&B project."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """W&B mode; auto: online if logged in, else offline. There is never a prompt."""
    entity: str | None = None
    """W&B team or user; None: the account's default."""
    group: str | None = None
    """W&B group; None: the experiment's name."""
    tags: tuple[str, ...] = ()
    """W&B tags in addition to those of the run."""

    def __post_init__(self) -> None:
        names = ("project", "mode", "entity", "group", "tags")
        idle = [name for name in names if self.kind != "wandb" and getattr(self, name) != getattr(type(self), name)]
        if idle:
            raise ConfigError(
                f"{', '.join(idle)} without kind=wandb: kind={self.kind} logs nothing to W&B.", fix="logger=wandb"
            )


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """A published number that the run is compared with."""

    metric: str
    """Name of the measured metric that it is compared with."""
    value: float
    """The published number, in the unit of the metric."""
    tolerance: float
    """Largest difference of a successful reproduction."""
    source: str
    """Paper, table or figure, and row."""
    provenance: str
    """How the number was obtained: from a table, from a figure, from released code."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: a probe on features of a backbone over a data set."""

    experiment: str = ""
    """Experiment file without suffix; set by `load_run`."""
    backbone: BackboneConfig
    """The frozen model."""
    data: DataConfig
    """The images."""
    features: FeaturesConfig
    """The cells."""
    probe: ProbeConfig
    """The probe."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Training."""
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    """Logging."""
    seed: int = 0
    """Seed of the probe: initial weights that are random, order of the samples, shuffled labels, random directions.
    The noise of the features has its own, features.seed."""
    control: Literal["none", "shuffled_labels", "random_weights", "raw_pixels", "vae_latents", "text_encoder"] = "none"
    """Control of this run, if it is one: labels permuted, or the same probe on other features (random denoiser, pixels,
    clean latents of the VAE, text encoder alone). On the command line, control=ladder runs them one after the other."""
    output: str = "runs"
    """Folder of the runs' outputs."""
    paper: str | None = None
    """Paper that is reproduced."""
    table: str | None = None
    """Table of the paper."""
    row: str | None = None
    """Row of the table."""
    published: PublishedConfig | None = None
    """The published number."""

    def __post_init__(self) -> None:
        buffer = self.data.shuffle_buffer
        if self.features.source == "stored" and buffer != DataConfig.shuffle_buffer:
            raise ConfigError(
                f"data.shuffle_buffer={buffer} has no effect on stored features: an epoch shuffles the whole split.",
                fix="leave it unset; or features.source=live",
            )
