"""Self-guided training, first stage: an unconditional denoiser whose own mid-block features are clustered online.

The clusters are the conditions of a second, class-conditional training (`classes.clusters`).

Source: SGFM (2312.08825), with the features of a U-Net or of a transformer averaged over positions in place of a class
token. In the released form the prototypes read detached features: they change nothing in the denoiser.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed, noise_for
from diffprobe.generative.augmentation import AugmentationConfig
from diffprobe.generative.caption_dropout import CaptionDropoutConfig
from diffprobe.generative.cluster_assignment import describe_collapse, save_prototypes
from diffprobe.generative.denoiser import DenoiserModule
from diffprobe.generative.denoiser_settings import DenoiserSettings
from diffprobe.generative.flow_denoiser import FlowDenoiserModule
from diffprobe.generative.image_table import ImageTableData
from diffprobe.generative.lr_schedule import require_finite_loss, total_steps
from diffprobe.generative.sinkhorn_prototypes import Prototypes, PrototypeSettings, entropy

CURVE_POINTS = 50
"""Points of the entropy curve in the record of a run."""
STATISTICS_BATCHES = 32
"""Training batches whose features give the statistics of BatchNorm for averaged weights."""
_log = logging.getLogger(__name__)


class SelfGuided(DenoiserModule):
    """Adds prototypes to the training of a denoiser, and takes its captions away.

    The network sees the empty caption alone, in training and validation.
    """

    config: "SelfGuidedTraining"

    def __init__(self, config: "SelfGuidedTraining") -> None:
        super().__init__(config)
        settings = config.prototypes
        if settings.timesteps[0] >= self.process.n_timesteps:
            raise ConfigError(
                f"prototypes.timesteps={list(settings.timesteps)} has no timestep of the training grid, 0 to "
                f"{self.process.n_timesteps - 1}."
            )
        width = config.model.channels[-1] if config.transformer is None else config.transformer.width
        self.prototypes = Prototypes(width, settings, seed=derive_seed("prototypes", config.seed))
        self.entropy_curve: list[tuple[int, float]] = []
        """Steps, and the entropy of the use of prototypes in nats."""
        self._mid: tuple[Tensor, Tensor] | None = None
        self._shares = torch.zeros(settings.n, dtype=torch.long)
        self._statistics: dict[str, Tensor] = {}
        if settings.random_network:
            denoiser, texts = super().trained_parts()
            for part in (denoiser, *texts):
                part.requires_grad_(False)

    @property
    def tap(self) -> str:
        """Name of the module whose output is clustered, as of a tap of `diffprobe extract`."""
        shape = self.config.transformer
        return "mid_block" if shape is None else f"transformer_blocks.{(shape.layers - 1) // 2}"

    def predict(
        self,
        noised: Float[Tensor, "batch c h w"],
        timesteps: Int[Tensor, " batch"],
        captions: list[str],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch c h w"]:
        """Return the prediction under the empty caption, and keep the features of the mid block."""
        found: list[Any] = []
        module = super().trained_parts()[0].get_submodule(self.tap)
        handle = module.register_forward_hook(lambda _module, _inputs, output: found.append(output))
        try:
            prediction = super().predict(noised, timesteps, [""] * len(captions), generator)
        finally:
            handle.remove()
        self._mid = (pooled(found[0]), timesteps)
        return prediction

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of the objective plus the weighted loss of the prototypes."""
        self.prototypes.normalise()
        loss = super().training_step(rows, batch_idx)
        features, timesteps = self._mid_features()
        total = total_steps(self.config.trainer, self.config.data, len(self._table("train")))
        with torch.autocast(self.device.type, enabled=False):
            term = self.prototypes.loss(features, timesteps)
        require_finite_loss(term.detach(), self.global_step)
        used = entropy(self.prototypes.usage)
        if self.global_step % max(1, total // CURVE_POINTS) == 0:
            self.entropy_curve.append((self.global_step, used))
        self.log_dict({"train/prototypes": term.detach(), "train/prototype_entropy": used})
        return loss + self.config.prototypes.weight_at(self.global_step, total) * term

    def _mid_features(self) -> tuple[Float[Tensor, "batch d_in"], Int[Tensor, " batch"]]:
        assert self._mid is not None
        found, self._mid = self._mid, None
        return found

    def on_validation_epoch_start(self) -> None:
        """Count assignments anew, with statistics of BatchNorm of the weights that are validated."""
        self._shares.zero_()
        self.prototypes.measure_statistics(self._training_features())
        self._statistics = {name: value.clone() for name, value in self.prototypes.head.named_buffers()}

    @torch.no_grad()
    def _training_features(self) -> Iterator[Float[Tensor, "_ d_in"]]:
        """Yield the features of training batches, whose images, noise and timesteps the seed fixes."""
        generator = torch.Generator().manual_seed(derive_seed("prototype statistics", self.config.seed))
        size = self.config.data.batch_size
        rows = torch.randperm(len(self._table("train")), generator=generator)[: STATISTICS_BATCHES * size]
        for batch in rows.split(size):
            if len(batch) > 1:
                clean = self._encoded("train", self.config.augmentation)[batch, 0].to(self.device)
                noise = torch.randn(clean.shape, generator=generator).to(clean)
                timesteps = self.process.draw(len(batch), generator).to(self.device)
                self.predict(self.process.add_noise(clean, noise, timesteps), timesteps, [""] * len(batch))
                yield self._mid_features()[0]

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        """Log the error of the validation images, and assign them to clusters."""
        super().validation_step(rows, batch_idx)
        self._shares += self.clusters_of("val", rows.cpu()).bincount(minlength=len(self._shares)).cpu()

    @torch.no_grad()
    def clusters_of(self, split: str, rows: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Return the cluster of images of a split, at one timestep and with noise that their keys fix."""
        clean = self._encoded(split, AugmentationConfig(n_views=1))[rows, 0].to(self.device)
        keys = [self._table(split).keys[row] for row in rows.tolist()]
        noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in keys]).to(clean)
        timesteps = torch.full((len(rows),), self.config.prototypes.timestep, device=self.device)
        self.predict(self.process.add_noise(clean, noise, timesteps), timesteps, [""] * len(rows))
        return self.prototypes.assign(self._mid_features()[0])

    def on_validation_epoch_end(self) -> None:
        """Log how many prototypes the validation images use, and note it for the record of the run."""
        shares = self._shares / self._shares.sum().clamp(min=1)
        nats = entropy(shares)
        effective = float(torch.tensor(nats).exp())
        used = int((self._shares > 0).sum())
        self.log_dict({"val/prototype_entropy": nats, "val/prototypes_used": float(used)})
        self.facts = {
            "tap": self.tap, "timestep": self.config.prototypes.timestep, "n_prototypes": len(shares),
            "effective_prototypes": effective, "shares": shares.tolist(),
            "entropy_curve": [list(point) for point in self.entropy_curve],
            "collapsed": effective < self.config.prototypes.least_effective,
        }  # fmt: skip

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the vocabulary and the entropy curve."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["entropy_curve"] = [list(point) for point in self.entropy_curve]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the entropy curve. Raises: WeightsMismatch for another vocabulary."""
        super().on_load_checkpoint(checkpoint)
        self.entropy_curve = [(int(step), float(nats)) for step, nats in checkpoint["entropy_curve"]]

    def trained_parts(self) -> tuple[Any, list[Any]]:
        """Return the denoiser with the prototypes, and the text encoders."""
        denoiser, texts = super().trained_parts()
        return nn.ModuleList([denoiser, self.prototypes]), texts

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of the prototypes apart, so that the released form leaves the denoiser as it is."""
        if not gradient_clip_val:
            return
        denoiser, texts = super().trained_parts()
        network = [parameter for part in (denoiser, *texts) for parameter in part.parameters()]
        for parameters in (network, list(self.prototypes.parameters())):
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def save(self, folder: Path) -> None:
        """Write the pipeline and, next to its parts, the prototypes; collapsed clusters are logged as a warning.

        Prototypes get the statistics of the last validation: the callback that averages weights restores those of the
        training.
        """
        super().save(folder)
        self.prototypes.head.load_state_dict(self._statistics, strict=False)
        save_prototypes(folder, self.prototypes, self.facts)
        if self.facts["collapsed"]:
            _log.warning("%s", describe_collapse(self.facts))


class SelfGuidedFlow(SelfGuided, FlowDenoiserModule):
    """The same for the transformer of a flow."""


def pooled(output: Any) -> Float[Tensor, "batch d_in"]:
    """Return the mean over positions of the output of a block of a U-Net, or over the image tokens of a joint block."""
    if isinstance(output, tuple):
        tokens: Tensor = output[1]
        return tokens.float().mean(1)
    positions: Tensor = output
    return positions.float().mean((2, 3))


@dataclass(frozen=True, kw_only=True)
class SelfGuidedTraining(DenoiserSettings):
    """The first stage of self-guided training (experiment files of kind `train_self_guided`)."""

    prototypes: PrototypeSettings = field(default_factory=PrototypeSettings)
    """The clusters that are learned."""
    drop_captions: float = 1.0
    """Always 1: the denoiser is unconditional."""
    drop_captions_clean: float = 1.0
    """Always 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unused = [name for name in ("drop_captions", "drop_captions_clean") if getattr(self, name) != 1]
        unused += [name for name in ("classes", "regularizer") if getattr(self, name) is not None]
        unused += ["captions"] if self.captions != CaptionDropoutConfig() else []
        unused += ["text_noise"] if self.text_noise else []
        if unused:
            raise ConfigError(
                f"{', '.join(unused)}: no effect with prototypes, whose denoiser is unconditional.",
                fix="remove it; the second stage has classes.clusters: experiment=scenes/train_cluster_conditioned",
            )

    def make(self) -> tuple[DenoiserModule, ImageTableData]:
        """Build the module and its images. Raises: what reading weights and shards raises."""
        module = SelfGuided(self) if self.transformer is None else SelfGuidedFlow(self)
        return module, module.image_data()
