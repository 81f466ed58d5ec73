"""Concepts beside a pass: what attentions output for the image and for words that are not in the prompt.

In a joint attention (SD3, the blocks of FLUX with two streams) concepts are a stream of their own. In every block they
pass the norms, projections and MLP of the text, and their queries attend to the keys of [concepts, image]. The image
and the text attend to what they always do: the stream is computed beside the pass, from the keys and values that the
network's own attention was called with, and the output of the network stays the same bit for bit.

Source: Helbling et al., 2502.04320, section 4 (joint attention). The reading of a U-Net's cross-attention is ours: a
text never attends to the image there, so that a concept attends to itself alone, and its output is its value.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from diffprobe.backbones.joint_attention import may_attend_jointly
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.readouts import may_cross_attend

Space = Literal["output", "attention"]
"""`output`: dot products of attention outputs. `attention`: raw attention, queries of the image and concept keys."""


@dataclass(frozen=True)
class ConceptOutputs:
    """What one attention has for the places of the image and for the concepts, all heads in one width.

    Attributes:
        image: outputs of the attention for the image, before the output projection.
        concepts: the same for the concepts.
        queries: queries of the image that were compared.
        keys: keys of the concepts.
        heads: number of heads.
    """

    image: Float[Tensor, "batch places width"]
    concepts: Float[Tensor, "batch concepts width"]
    queries: Float[Tensor, "batch places width"]
    keys: Float[Tensor, "batch concepts width"]
    heads: int

    def scores(self, space: Space = "output") -> Float[Tensor, "batch concepts places"]:
        """Return how well each place fits each concept, float32.

        `output` gives dot products over the whole width (2502.04320, equation 9), `attention` q k / sqrt(d) averaged
        over heads, without the keys of the prompt and of the image.
        """
        if space == "output":
            return self.concepts.float() @ self.image.float().transpose(1, 2)
        scale = (self.queries.shape[-1] / self.heads) ** -0.5 / self.heads
        return self.keys.float() @ self.queries.float().transpose(1, 2) * scale


Give = Callable[[str, ConceptOutputs], None]
"""Takes the path of an attention and what it has, inside the pass."""


def concept_attentions(network: nn.Module, layout: OutputLayout) -> tuple[str, ...]:
    """Return the attentions in which concepts can be followed, in the order of the network's modules.

    Joint attentions are those of blocks with a stream for the text. Where there are none, the cross-attentions, if the
    network gives them the tokens of the text encoder as they are.
    """
    modules = dict(network.named_modules())
    joint = [path for path, module in modules.items() if may_attend_jointly(path, module, layout)]
    if joint:
        return tuple(path for path in joint if hasattr(modules[path.removesuffix(".attn")], "norm1_context"))
    if any(getattr(network, name, None) is not None for name in ("caption_projection", "encoder_hid_proj")):
        return ()
    return tuple(path for path, module in modules.items() if path.endswith("attn2") and _crosses(module))


def _crosses(module: Any) -> bool:
    return may_cross_attend(module) and getattr(module, "norm_cross", None) is None


def watch_concepts(
    network: nn.Module,
    layout: OutputLayout,
    concepts: Float[Tensor, "concepts width"],
    give: Give,
    *,
    only: Collection[str] | None = None,
    without_pooled: bool = False,
) -> list[RemovableHandle]:
    """Follow concepts through the passes of a network until the handles are removed.

    Args:
        network: the whole denoiser.
        layout: of its outputs.
        concepts: one token of text each, as the network takes texts.
        give: called once per attention and pass.
        only: attentions to give; None gives all of `concept_attentions`. In joint attention the stream passes all.
        without_pooled: the concepts' modulation has zeros for the pooled text, as in the published code for FLUX;
            otherwise it is that of the pass.
    """
    paths = concept_attentions(network, layout)
    wanted = set(paths if only is None else only)
    if any(layout.is_joint_attention(path) for path in paths):
        return _Stream(network, concepts, layout, give, wanted, without_pooled).hook(paths)
    return [handle for path in paths if path in wanted for handle in _hook_cross(network, path, concepts, give)]


def _hook_cross(network: nn.Module, path: str, concepts: Tensor, give: Give) -> list[RemovableHandle]:
    module: Any = network.get_submodule(path)
    seen: dict[str, Tensor] = {}

    def query(_: nn.Module, args: Any, output: Tensor) -> None:
        seen["queries"] = output

    def projected(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        image, queries = args[0], seen.pop("queries")
        keys, values = (f(concepts.to(image)).expand(len(image), -1, -1) for f in (module.to_k, module.to_v))
        give(path, ConceptOutputs(image, values, queries, keys, module.heads))

    return [module.to_q.register_forward_hook(query), module.to_out[0].register_forward_pre_hook(projected)]


class _Stream:
    """The concepts' own stream through the blocks of a transformer with joint attention; see `watch_concepts`."""

    def __init__(
        self,
        network: nn.Module,
        concepts: Tensor,
        layout: OutputLayout,
        give: Give,
        wanted: Collection[str],
        without_pooled: bool,
    ) -> None:
        self._network: Any = network
        self._concepts, self._text_first, self._give, self._wanted = concepts, layout.text_keys_first, give, wanted
        self._without_pooled = without_pooled
        self._tokens: Tensor | None = None
        self._temb: Tensor | None = None

    def hook(self, paths: Collection[str]) -> list[RemovableHandle]:
        """Hook the network, its time embedding, and each block with its attention."""
        handles = [self._network.register_forward_pre_hook(self._start)]
        if self._without_pooled:
            handles.append(self._network.time_text_embed.register_forward_hook(self._embed_time))
        for path in paths:
            block = self._network.get_submodule(path.removesuffix(".attn"))
            handles.append(block.register_forward_pre_hook(self._enter_block, with_kwargs=True))
            handles += self._hook_attention(path, block)
        return handles

    def _start(self, module: nn.Module, args: Any) -> None:
        self._tokens = self._temb = None

    def _embed_time(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._temb = module.forward(*args[:-1], torch.zeros_like(args[-1]))  # past this hook

    def _enter_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(("hidden_states", "encoder_hidden_states", "temb"), args, strict=False)) | kwargs
        text = given["encoder_hidden_states"]
        if self._tokens is None:
            tokens = self._network.context_embedder(self._concepts.to(text))
            self._tokens = tokens.expand(len(text), -1, -1)
        if not self._without_pooled:
            self._temb = given["temb"]

    def _hook_attention(self, path: str, block: Any) -> list[RemovableHandle]:
        calls: list[_Call] = []

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            text = kwargs["encoder_hidden_states"]
            calls.append(_Call(text.shape[1], self._text_first, kwargs.get("image_rotary_emb")))
            calls[-1].__enter__()

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if not calls:
                return
            call = calls.pop()
            call.__exit__(None, None, None)
            if call.image:
                self._advance(path, block, call)

        return [
            block.attn.register_forward_pre_hook(enter, with_kwargs=True),
            block.attn.register_forward_hook(leave, always_call=True),
        ]

    def _advance(self, path: str, block: Any, call: "_Call") -> None:
        attn, tokens, temb = block.attn, self._tokens, self._temb
        assert tokens is not None
        ends = getattr(block, "context_pre_only", False)  # the text leaves the network here, and so do the concepts
        normed, *gates = (block.norm1_context(tokens, temb),) if ends else block.norm1_context(tokens, emb=temb)
        own = [f(normed).unflatten(-1, (attn.heads, -1)) for f in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
        for i, norm in enumerate((attn.norm_added_q, attn.norm_added_k)):
            own[i] = call.rotate(own[i] if norm is None else norm(own[i]))
        q, k, v = (x.transpose(1, 2) for x in own)
        keys, values = (torch.cat([x, call.image[name]], dim=2) for name, x in (("k", k), ("v", v)))
        found = scaled_dot_product_attention(q, keys, values).transpose(1, 2).flatten(2)
        if path in self._wanted:
            flat = {name: x.transpose(1, 2).flatten(2) for name, x in call.image.items()}
            own_keys = k.transpose(1, 2).flatten(2)
            self._give(path, ConceptOutputs(flat["output"], found, flat["q"], own_keys, attn.heads))
        if ends:
            return
        gate, shift, scale, gate_mlp = (x.unsqueeze(1) for x in gates)
        tokens = tokens + gate * attn.to_add_out(found)
        tokens = tokens + gate_mlp * block.ff_context(block.norm2_context(tokens) * (1 + scale) + shift)
        self._tokens = tokens


class _Call(TorchFunctionMode):
    """Keeps the image's part of the first attention computed inside it: `q`, `k`, `v` and `output`, by head.

    Args:
        n_text: number of text tokens.
        text_first: whether they come before the tokens of the image.
        rotary: cosines and sines of all tokens, or None.
    """

    def __init__(self, n_text: int, text_first: bool, rotary: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self._n_text, self._text_first, self._rotary = n_text, text_first, rotary
        self.image: dict[str, Tensor] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and keep its arguments and result if it is the attention."""
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if function is scaled_dot_product_attention and not self.image:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            n, total = self._n_text, output.shape[2]
            places = slice(n, total) if self._text_first else slice(0, total - n)
            named = {"q": given["query"], "k": given["key"], "v": given["value"], "output": output}
            self.image = {name: x[:, :, places] for name, x in named.items()}
        return output

    def rotate(self, x: Float[Tensor, "batch tokens heads width"]) -> Float[Tensor, "batch tokens heads width"]:
        """Turn concepts as the first token of the text is turned; all positions of a text are equal in FLUX."""
        if self._rotary is None:
            return x
        from diffusers.models.embeddings import apply_rotary_emb

        first = tuple(part[:1] for part in self._rotary)
        return apply_rotary_emb(x, first, sequence_dim=1)  # type: ignore[arg-type, return-value]  # takes (cos, sin)
