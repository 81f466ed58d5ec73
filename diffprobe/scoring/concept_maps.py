"""ConceptAttention: zero-shot maps of concepts, from what attentions output for an image and for words.

A map is the softmax over concepts of the scores of `backbones/concepts.py`, averaged over attentions and timesteps. At
least two concepts are needed: shares of one alone are 1 everywhere.

Which token is a concept:

- FLUX: the first T5 token of the concept's text, as in the published code.
- SD3: the first T5 token too. Its first CLIP token is the start token, which is the same for all texts.
- U-Nets: the mean over the tokens of the concept's text, start and padding left out. This is ours, as is the reading of
  cross-attention.

Source: Helbling et al., 2502.04320.
"""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from diffprobe.backbones.concepts import ConceptOutputs, Space, concept_attentions, watch_concepts
from diffprobe.backbones.latent_backbone import TextBackbone
from diffprobe.backbones.text_encoders import TextEncoder
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.shapes import Images
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.noise_sets import stack_noise

ConceptCell = tuple[str, int]
"""An attention and a timestep."""


class ConceptMaps:
    """Maps of concepts in images, of a frozen text-to-image backbone.

    Args:
        model: the backbone, loaded whole.
        concepts: at least two different texts.
        prompt: text of the pass; None takes the concepts, separated by commas. The image attends to it.
        space: `output`, or `attention` for raw attention maps, the usual comparison.
    Raises: ConfigError for concepts that cannot be compared, or a backbone without a text or without such attentions.
    """

    def __init__(
        self, model: DenoisingError, concepts: Sequence[str], *, prompt: str | None = None, space: Space = "output"
    ) -> None:
        _check_concepts(concepts)
        self.model, self.concepts, self.space = model, tuple(concepts), space
        self.prompt = ", ".join(concepts) if prompt is None else prompt
        self.attentions = concept_attentions(model.backbone.denoiser, model.spec.layout)
        if not self.attentions:
            raise ConfigError(
                f"backbone '{model.spec.name}' has no attention in which concepts can be followed.",
                "allowed: U-Nets with cross-attention to a text, SD3 and FLUX",
            )
        self._tokens = _concept_tokens(model, self.concepts)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        concepts: Sequence[str],
        *,
        prompt: str | None = None,
        space: Space = "output",
        seed: int = 0,
        resolution: int | None = None,
        device: torch.device | str = "auto",
        random_seed: int | None = None,
    ) -> Self:
        """Load a checkpoint whole; arguments as in the class and in `DenoisingError.from_pretrained`."""
        _check_concepts(concepts)
        model = DenoisingError.from_pretrained(
            path, seed=seed, resolution=resolution, device=device, random_seed=random_seed
        )
        return cls(model, concepts, prompt=prompt, space=space)

    @torch.no_grad()
    def cells(
        self,
        images: Images,
        keys: Sequence[str],
        timesteps: Sequence[int],
        *,
        attentions: Sequence[str] = (),
        size: tuple[int, int] | None = None,
    ) -> dict[ConceptCell, Float[Tensor, "batch concepts rows columns"]]:
        """Return the maps of each attention at each timestep: shares of the concepts, which sum to 1 in each place.

        Args:
            images: in [0, 1].
            keys: of the samples; with the seed and the timestep they fix the noise.
            timesteps: positions on the training grid.
            attentions: some of `self.attentions`; empty for all.
            size: maps are brought to it bilinearly; None takes the size of the latent.
        Returns: float32 on the CPU.
        Raises: BadTimestep; ConfigError for an attention that the backbone does not have.
        """
        model, spec = self.model, self.model.spec
        chosen = self._choose(attentions)
        spec.schedule.check(timesteps, spec.name)
        clean = model.encode_images(images)
        side = size or (clean.shape[2], clean.shape[3])
        found: dict[ConceptCell, Tensor] = {}
        device, denoiser = self._tokens.device, model.backbone.denoiser
        for t in timesteps:
            noise = stack_noise(model.seed, keys, t, clean.shape[1:])
            parts: dict[str, list[Tensor]] = {path: [] for path in chosen}

            def keep(path: str, outputs: ConceptOutputs, parts: dict[str, list[Tensor]] = parts) -> None:
                parts[path].append(self._map(path, outputs, side))

            handles = watch_concepts(
                denoiser, spec.layout, self._tokens, keep, only=chosen, without_pooled=spec.family == "flux"
            )
            try:
                with model.exactly():
                    for rows in torch.arange(len(clean)).split(model.rows):
                        steps = torch.full((len(rows),), t, device=device)
                        x_t = spec.schedule.add(clean[rows].to(device), noise[rows].to(device), steps)
                        condition = model.encode_conditions([self.prompt] * len(rows))
                        model.backbone.denoise(x_t.to(self._tokens.dtype), steps, condition)
            finally:
                for handle in handles:
                    handle.remove()
            found.update({(path, t): torch.cat(maps) for path, maps in parts.items()})
        return found

    def __call__(
        self,
        images: Images,
        keys: Sequence[str],
        timesteps: Sequence[int],
        *,
        attentions: Sequence[str] = (),
        size: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch concepts rows columns"]:
        """Return the maps averaged over attentions and timesteps; arguments and errors as in `cells`."""
        if not timesteps:
            raise ConfigError("concept maps need at least one timestep.")
        cells = self.cells(images, keys, timesteps, attentions=attentions, size=size)
        return torch.stack(list(cells.values())).mean(0)

    def _choose(self, attentions: Sequence[str]) -> tuple[str, ...]:
        missing = [path for path in attentions if path not in self.attentions]
        if missing:
            raise ConfigError(
                f"'{missing[0]}' is not an attention of '{self.model.spec.name}' in which concepts can be followed.",
                f"allowed: {', '.join(self.attentions)}",
            )
        return tuple(attentions) or self.attentions

    def _map(self, path: str, outputs: ConceptOutputs, size: tuple[int, int]) -> Tensor:
        shares = outputs.scores(self.space).softmax(1)
        grid = self.model.spec.layout.on_grid(shares.transpose(1, 2))
        if grid is None:
            raise RunFailed(f"the places of '{path}' have no grid.", "this is a bug in diffprobe")
        return interpolate(grid, size=size, mode="bilinear", align_corners=False).cpu()


def _check_concepts(concepts: Sequence[str]) -> None:
    if isinstance(concepts, str) or len(concepts) < 2:
        raise ConfigError(f"concepts={concepts!r}: at least two texts are needed.", "their shares are compared")
    for i, concept in enumerate(concepts):
        if not concept.strip() or concept in concepts[:i]:
            raise ConfigError(f"concept {i} ({concept!r}) is empty or given twice.")


@torch.no_grad()
def _concept_tokens(model: DenoisingError, concepts: Sequence[str]) -> Float[Tensor, "concepts width"]:
    """Return one text token per concept, as the denoiser takes texts; see the module. Raises: ConfigError."""
    backbone, spec = model.backbone, model.spec
    texts: dict[str, TextEncoder] = dict(backbone.texts) if isinstance(backbone, TextBackbone) else {}
    if not texts:
        raise ConfigError(f"backbone '{spec.name}' ({spec.family}) has no text encoder; concepts are texts.")
    if spec.conditioning.get("t5") == "zeros":
        raise ConfigError(
            f"backbone '{spec.name}' has no T5 text encoder; the token of a concept is its first T5 token.",
            "allowed: a checkpoint with its text_encoder_3",
        )
    rows = model.encode_conditions(concepts)["encoder_hidden_states"]
    if "t5_tokens" in spec.conditioning:
        return rows[:, spec.conditioning.get("clip_tokens", 0)]
    mask = next(iter(texts.values())).tokens(list(concepts)).attention_mask.clone()
    mask[:, 0] = 0
    weights = (mask / mask.sum(1, keepdim=True)).to(rows)
    return (rows * weights[..., None]).sum(1)
