"""ConceptAttention: zero-shot maps of concepts, from what attentions output for an image and for words.

A map is the softmax over concepts of the scores of `backbones/concepts.py`, averaged over attentions and timesteps. At
least two concepts are needed: shares of one alone are 1 everywhere.

Which token is a concept:

- FLUX: the first T5 token of the concept's text, as in the published code.
- SD3: the first T5 token too. Its first CLIP token is the start token, which is the same for all texts.
- U-Nets: the mean over the tokens of the concept's text, start and padding left out. This is ours, as is the reading of
  cross-attention.

The space `probs` is the comparison from before: how much the pass itself attends to the concept's tokens in its prompt
(DAAM), divided by the sum over concepts. It is read in U-Nets only.

Sources: Helbling et al., 2502.04320; Tang et al., 2210.04885, section 3 (DAAM).
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.hooks import RemovableHandle

from diffprobe.backbones.attended import Attended
from diffprobe.backbones.concepts import ConceptOutputs, Space, concept_attentions, watch_concepts
from diffprobe.backbones.latent_backbone import TextBackbone
from diffprobe.backbones.readouts import watch_attention
from diffprobe.backbones.text_encoders import TextEncoder
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.shapes import Images
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.noise_sets import stack_noise

ConceptCell = tuple[str, int]
"""An attention and a timestep."""
MapSpace = Literal[Space, "probs"]
"""`output` and `attention` as in `backbones/concepts.py`; `probs`: attention of the pass to the words of its prompt."""
_Keep = Callable[[str, Float[Tensor, "batch places concepts"]], None]


class ConceptMaps:
    """Maps of concepts in images, of a frozen text-to-image backbone.

    Args:
        model: the backbone, loaded whole.
        concepts: at least two different texts.
        prompt: text of the pass; None takes the concepts, separated by commas. The image attends to it.
        space: `output`, `attention` for raw attention maps, or `probs` for attention to the words of the prompt.
    Raises: ConfigError for concepts that cannot be compared, a backbone without a text or without such attentions, and
        in the space `probs` for joint attention or a concept that is not among the tokens of the prompt.
    """

    def __init__(
        self, model: DenoisingError, concepts: Sequence[str], *, prompt: str | None = None, space: MapSpace = "output"
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
        joint = [path for path in self.attentions if model.spec.layout.is_joint_attention(path)]
        if joint and space == "probs":
            raise ConfigError(
                f"space=probs is not read in '{model.spec.name}': '{joint[0]}' attends to image and text together.",
                fix="space=attention",
            )
        self._in_prompt = _prompt_tokens(model, self.concepts, prompt) if space == "probs" else None

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        concepts: Sequence[str],
        *,
        prompt: str | None = None,
        space: MapSpace = "output",
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
        chosen = self.check(attentions)
        spec.schedule.check(timesteps, spec.name)
        clean = model.encode_images(images)
        side = size or (clean.shape[2], clean.shape[3])
        found: dict[ConceptCell, Tensor] = {}
        device = self._tokens.device
        for t in timesteps:
            noise = stack_noise(model.seed, keys, t, clean.shape[1:])
            parts: dict[str, list[Tensor]] = {path: [] for path in chosen}

            def keep(path: str, shares: Tensor, parts: dict[str, list[Tensor]] = parts) -> None:
                parts[path].append(self._map(path, shares, side))

            handles = self._watch(chosen, keep)
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

    def check(self, attentions: Sequence[str]) -> tuple[str, ...]:
        """Return the attentions that are read; empty for all. Raises: ConfigError for another one."""
        missing = [path for path in attentions if path not in self.attentions]
        if missing:
            raise ConfigError(
                f"'{missing[0]}' is not an attention of '{self.model.spec.name}' in which concepts can be followed.",
                f"allowed: {', '.join(self.attentions)}",
            )
        return tuple(attentions) or self.attentions

    def _watch(self, chosen: Sequence[str], keep: _Keep) -> list[RemovableHandle]:
        """Hook attentions; `keep` gets the path of one and the shares of the concepts in each place."""
        denoiser, spec, space = self.model.backbone.denoiser, self.model.spec, self.space
        if space != "probs":

            def compare(path: str, outputs: ConceptOutputs) -> None:
                keep(path, outputs.scores(space).softmax(1).transpose(1, 2))

            flux = spec.family == "flux"
            return watch_concepts(denoiser, spec.layout, self._tokens, compare, only=chosen, without_pooled=flux)
        weights = self._in_prompt
        assert weights is not None, "made with the space"

        def attends(path: str) -> list[RemovableHandle]:
            module = denoiser.get_submodule(path)

            def ready(found: Attended) -> None:
                probs = found.mean_over_heads(int(module.heads), probs=True) @ weights  # type: ignore[arg-type]
                keep(path, probs / probs.sum(-1, keepdim=True))

            return watch_attention(module, path, spec.layout, ready)

        return [handle for path in chosen for handle in attends(path)]

    def _map(self, path: str, shares: Float[Tensor, "batch places concepts"], size: tuple[int, int]) -> Tensor:
        grid = self.model.spec.layout.on_grid(shares)
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


def _prompt_tokens(
    model: DenoisingError, concepts: Sequence[str], prompt: str | None
) -> Float[Tensor, "tokens concepts"]:
    """Return weights that average over the tokens of each concept in the prompt. Raises: ConfigError."""
    assert isinstance(model.backbone, TextBackbone), "checked before"
    text = next(iter(model.backbone.texts.values()))
    whole = ", ".join(concepts) if prompt is None else prompt
    if not getattr(text.tokenizer, "is_fast", False):
        raise ConfigError(f"space=probs: the tokenizer of '{model.spec.name}' does not give the places of its tokens.")
    given = text.tokenizer(whole, return_offsets_mapping=True, truncation=True, max_length=text.length)
    offsets = given["offset_mapping"]
    weights, start = torch.zeros(text.length, len(concepts)), 0
    for i, concept in enumerate(concepts):
        if prompt is not None:
            found = re.search(rf"(?<!\w){re.escape(concept)}(?!\w)", prompt)
            if found is None:
                raise ConfigError(f"space=probs: '{concept}' is not in the prompt '{prompt}'.", fix="another prompt")
            start = found.start()
        end = start + len(concept)
        own = [n for n, (low, high) in enumerate(offsets) if low < end and high > start]
        if not own or offsets[own[-1]][1] < end:
            raise ConfigError(
                f"space=probs: '{concept}' is behind the {text.length} tokens that the text encoder reads.",
                fix="fewer concepts, or a shorter prompt",
            )
        weights[own, i] = 1 / len(own)
        start = end + 2  # the comma
    return weights.to(next(model.backbone.denoiser.parameters()).device)
