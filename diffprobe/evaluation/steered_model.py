"""Open a text-to-image model whose images are generated with an edit at the tap of one cell.

Finished images can be noised again and read in that cell, so that neither prompt nor edit is in the features.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from diffprobe.backbones.base import Checkpoint
from diffprobe.backbones.cell import Cell
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import describe
from diffprobe.backbones.flow_sampler import flow_grid
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.locate import locate
from diffprobe.backbones.plan import ReadPlan, make_configs, make_plan
from diffprobe.backbones.prompt_plan import CONDITIONAL, distilled_guidance
from diffprobe.backbones.vae import VaeDecoder
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.evaluation.kept_draws import KeptDraws
from diffprobe.runs.provenance import checkpoint_digest
from diffprobe.scoring.edits.base import Edit
from diffprobe.scoring.edits.text import EditedText
from diffprobe.scoring.intervention_network import InterventionNetwork, require_replaceable
from diffprobe.scoring.sampling import PromptSampler, sampling_timesteps
from diffprobe.scoring.steering import Steering, steered_latents

if TYPE_CHECKING:
    from PIL.Image import Image

_AT_ONCE = 64
"""Latents that are decoded, or read, at once."""


class SteeredPlan(NamedTuple):
    """A model that was found and checked; its weights are not loaded."""

    checkpoint: Checkpoint
    """Where its files are."""
    plan: ReadPlan
    """What is read, with the resolution of its images."""


def plan_steered(generator: str, cell: Cell, *, fix: str) -> SteeredPlan:
    """Check that a model can be steered at the tap of a cell.

    Args:
        generator: folder, or the name of a shipped model.
        fix: what a user does about a model of another class.

    Raises: WeightsMismatch for a model that takes no prompts; UnknownTap; ConfigError for a tap or pooling that cannot
        be replaced.
    """
    checkpoint = locate(generator)
    _, spec = describe(checkpoint, None)
    if checkpoint.folder is None or CONDITIONAL not in spec.conditions:
        raise WeightsMismatch(f"generator='{generator}' (family {spec.family}) takes no prompts.", fix=fix)
    options = {"taps": [cell.tap], "timesteps": [cell.timestep], "pool": cell.pool, "condition": CONDITIONAL}
    plan = make_plan(*make_configs(generator, options))
    require_replaceable(plan)
    return SteeredPlan(checkpoint, plan)


class SteeredModel:
    """The loaded model: the same prompts and noise for every edit and strength.

    Args:
        planned: what `plan_steered` returned.
        cell: cell of the edits.
        prompts: prompt of each image.
        keys: with `seed`, they fix the noise that each image starts from.
        sampling_steps: sampling steps: DDIM, or Euler at the noise levels of its pipeline for a flow model.
        guidance: added to the scale of classifier-free guidance: 0 is none.
        window: smallest and largest timestep at which an edit acts; None for all.
        edits_unconditional: whether it acts on both passes of guidance.

    Raises: ConfigError for guidance of a model that has it distilled into one pass.
    """

    def __init__(
        self, planned: SteeredPlan, cell: Cell, prompts: Sequence[str], keys: Sequence[str], *, sampling_steps: int,
        guidance: float, seed: int, window: tuple[int, int] | None, edits_unconditional: bool,
    ) -> None:  # fmt: skip
        plan = planned.plan
        self._cell, self._window = cell, window
        if guidance and distilled_guidance(plan.spec) is not None:
            raise ConfigError(
                f"guidance={guidance:g}: '{plan.checkpoint.name}' has guidance distilled into one pass.",
                fix="guidance=0",
            )
        if plan.spec.prediction == "flow":
            steps = flow_grid(plan, sampling_steps)
        else:
            steps = sampling_timesteps(sampling_steps, plan.schedule.n_timesteps)
        with quiet_libraries():
            network = InterventionNetwork(plan)
            self._decode = VaeDecoder.from_folder(planned.checkpoint.part("vae"))
        self._sampler = PromptSampler(
            network, prompts, keys, steps, 1.0 + guidance, seed, edits_unconditional=edits_unconditional
        )

    def latents(self, edit: Edit, strengths: Sequence[float]) -> list[Float[Tensor, "image channels height width"]]:
        """Return the finished latents of each strength. Raises: as `steered_latents`."""
        steering = Steering(tap=self._cell.tap, pool=self._cell.pool, edit=edit, window=self._window)
        return [steered_latents(self._sampler, steering, strength) for strength in strengths]

    def of_texts(self, texts: "Sequence[str | EditedText]") -> Float[Tensor, "image channels height width"]:
        """Return the finished latents of other texts, one per image, from the same noise and without an edit inside.

        Raises: NonFinite; ConfigError for an edited text of a backbone without an embedding.
        """
        return replace(self._sampler, inputs=list(texts)).untouched[-1]

    def images(self, latents: Float[Tensor, "image channels height width"]) -> UInt8[Tensor, "image h w 3"]:
        """Return the images of finished latents."""
        found = torch.cat([self._decode(part) for part in latents.split(_AT_ONCE)])
        return (found * 255).round().byte().permute(0, 2, 3, 1).cpu()


class SteeredReader:
    """A model that is steered at the tap of a cell, and that reads its own images in this cell.

    Args:
        generator: text-to-image model: a folder, or the name of a shipped one.
        cell: of the edits.
        prompts: prompt of each image.
        keys: of each image; with `seed`, they fix the noise that it starts from, and that of the reading.
        sampling_steps, guidance, window, edits_unconditional: as of `SteeredModel`.
        keep: folder in which finished latents are kept, and looked for first.
        reading: cell in which finished images are read; None for `cell`.

    Attributes:
        digest: of the model's files.
        width: of a feature in the cell of the edits.

    Raises: ConfigError for a reading with places or of another condition, or a tap that cannot be replaced; as
        `plan_steered`.
    """

    def __init__(
        self, generator: str, cell: Cell, prompts: Sequence[str], keys: Sequence[str], *, sampling_steps: int,
        guidance: float, seed: int, window: tuple[int, int] | None, edits_unconditional: bool, keep: Path,
        reading: Cell | None = None,
    ) -> None:  # fmt: skip
        read = reading or cell
        self._reading, self._prompts, self._keys = read, list(prompts), list(keys)
        if read.pool == "none" or read.pool.startswith("tokens"):
            raise ConfigError(
                f"cell '{read.name}' has more than one vector per sample.", fix="a reading of pool mean or gridK"
            )
        if read.condition not in ("empty", "caption"):
            raise ConfigError(
                f"cell '{read.name}' is read under the condition '{read.condition}'.", "allowed: empty, caption"
            )
        planned = plan_steered(generator, cell, fix="generator=FOLDER of a text-to-image model")
        self.digest, (self.width,) = checkpoint_digest(generator), set(planned.plan.widths.values())
        self._model = SteeredModel(
            planned, cell, self._prompts, self._keys, sampling_steps=sampling_steps, guidance=guidance, seed=seed,
            window=window, edits_unconditional=edits_unconditional,
        )  # fmt: skip
        identity = {
            "backbone": self.digest, "cell": cell.name, "prompts": self._prompts, "keys": self._keys, "seed": seed,
            "guidance": guidance, "steps": sampling_steps, "window": window, "both": edits_unconditional,
        }  # fmt: skip
        self._kept = KeptDraws(keep, identity)
        with quiet_libraries():
            self._reader = DiffusionFeatures.from_pretrained(
                generator, taps=[read.tap], timesteps=[read.timestep], condition=read.condition, pool=read.pool,
                seed=seed,
            )  # fmt: skip

    def draw(self, edit: Edit, strengths: Sequence[float]) -> dict[float, Tensor]:
        """Return the finished latents of each strength. Raises: as `SteeredModel.latents` and `KeptDraws.get`."""
        return self._kept.get(
            edit.identity, strengths, lambda: dict(zip(strengths, self._model.latents(edit, strengths), strict=True))
        )

    def reread(self, latents: Float[Tensor, "image channels height width"]) -> Float64[np.ndarray, "image d"]:
        """Noise finished latents again, and return their features; equal noise for equal keys."""
        found = []
        for start in range(0, len(latents), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            captions = self._prompts[rows] if self._reading.condition == "caption" else None
            features = self._reader.from_latents(latents[rows], keys=self._keys[rows], captions=captions)
            found.append(next(iter(features.values())).cpu().double().numpy())
        return np.concatenate(found)

    def pixels(self, latents: Float[Tensor, "image channels height width"]) -> UInt8[np.ndarray, "image h w 3"]:
        """Return the images of finished latents."""
        return self._model.images(latents).numpy()

    def decode(self, latents: Float[Tensor, "image channels height width"]) -> "list[Image]":
        """Return the images of finished latents, for drawing."""
        from PIL import Image

        return [Image.fromarray(one) for one in self.pixels(latents)]
