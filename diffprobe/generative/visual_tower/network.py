"""The adapter on transformers' LLaVA classes: a second visual tower whose input are feature maps.

The diffusion model is not part of the network: feature maps come in as a tensor, so that no checkpoint, optimiser or
strategy contains the backbone, and any `DiffusionFeatures` with a tap can feed it.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaModel, LlavaPreTrainedModel

from diffprobe.core.errors import ConfigError
from diffprobe.generative.visual_tower.projector import (
    DiffusionProjector,
    interleave,
    require_equal_counts,
    tokens_of_map,
)


class DiffusionLlavaConfig(LlavaConfig):
    """LLaVA's configuration, and the shape of the feature maps of the second tower.

    `image_token_index` may be outside of the vocabulary: the embedding of a place holder is never read.
    """

    model_type = "diffusion_llava"
    diffusion_channels: int = 1280
    diffusion_size: list[int] | None = None
    diffusion_width: int = 1024

    @property
    def n_clip_tokens(self) -> int:
        """Patches of CLIP, without the class token."""
        vision: Any = self.vision_config
        return int(vision.image_size // vision.patch_size) ** 2

    @property
    def n_diffusion_tokens(self) -> int:
        """Tokens that the projector makes of a feature map; of 32 x 32, as in the paper, without `diffusion_size`."""
        height, width = self.diffusion_size or (32, 32)
        return tokens_of_map((height, width))


class DiffusionLlavaModel(LlavaModel):
    """LLaVA without the head of the language model, with the projector of the second tower.

    Raises: ConfigError if CLIP's patches and the diffusion tokens differ in number.
    """

    config_class = DiffusionLlavaConfig

    def __init__(self, config: DiffusionLlavaConfig) -> None:
        require_equal_counts(config.n_clip_tokens, config.n_diffusion_tokens)
        super().__init__(config)
        text: Any = config.text_config
        self.diffusion_projector = DiffusionProjector(
            config.diffusion_channels, config.diffusion_width, text.hidden_size
        )
        self.post_init()

    def clip_tokens(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch token hidden"]:
        """Return the projected patches of the frozen CLIP, of the layer that the config selects.

        Args:
            pixel_values: images at CLIP's resolution, normalised as its processor does.
        """
        with torch.no_grad():
            states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        patches = states[self.config.vision_feature_layer][:, 1:]
        tokens: Tensor = self.multi_modal_projector(patches)
        return tokens

    def diffusion_tokens(
        self, diffusion_features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch token hidden"]:
        """Return the projected tokens of feature maps.

        Raises: ConfigError for maps of another number of channels or of tokens than the config has.
        """
        config, shape = self.config, tuple(diffusion_features.shape)
        if shape[1] != config.diffusion_channels or tokens_of_map((shape[2], shape[3])) != config.n_diffusion_tokens:
            raise ConfigError(
                f"feature maps of {' x '.join(map(str, shape[1:]))} do not fit the projector: it takes "
                f"{config.diffusion_channels} channels and makes {config.n_diffusion_tokens} tokens.",
                fix="the tap and the resolution with which the projector was trained",
            )
        weight = next(self.diffusion_projector.parameters())
        tokens: Tensor = self.diffusion_projector(diffusion_features.to(weight.dtype))
        return tokens

    def visual_tokens(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        diffusion_features: Float[Tensor, "batch channels side_y side_x"],
    ) -> Float[Tensor, "batch token hidden"]:
        """Return the tokens of both towers, interleaved one to one. Raises: see `diffusion_tokens`."""
        return interleave(self.clip_tokens(pixel_values), self.diffusion_tokens(diffusion_features))

    def embed(
        self,
        input_ids: Int[Tensor, "row position"],
        visual: Float[Tensor, "batch token hidden"] | None,
    ) -> Float[Tensor, "row position hidden"]:
        """Return the embeddings of token sequences whose place holders are replaced by visual tokens, in order.

        Args:
            input_ids: sequences with one place holder per visual token.
            visual: the tokens of all images; None for sequences without place holders.
        Raises: ConfigError for another number of place holders than of visual tokens.
        """
        places = input_ids == self.config.image_token_id
        n_tokens = 0 if visual is None else visual.shape[0] * visual.shape[1]
        n_places = int(places.sum())
        if n_places != n_tokens:
            raise ConfigError(
                f"the sequences have {n_places} place holders of image tokens, the images {n_tokens} visual tokens.",
                f"each image needs {self.config.image_seq_length}: CLIP's and the diffusion tokens in alternation",
                fix="make the sequences with diffprobe.generative.visual_tower.sequences",
            )
        embeddings: Tensor = self.get_input_embeddings()(input_ids.masked_fill(places, 0))
        if visual is None:
            return embeddings
        return embeddings.masked_scatter(places[..., None], visual.to(embeddings))


class DiffusionLlava(LlavaForConditionalGeneration):
    """LLaVA that reads CLIP and diffusion tokens in alternation; `generate` takes `diffusion_features` as well."""

    config_class = DiffusionLlavaConfig

    def __init__(self, config: DiffusionLlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)  # not LLaVA's own, which would build its model first
        self.model = DiffusionLlavaModel(config)
        text: Any = config.text_config
        self.lm_head = torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"  # transformers infers it from the names of its own classes
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "row position"] | None = None,
        pixel_values: Float[Tensor, "batch 3 height width"] | None = None,
        diffusion_features: Float[Tensor, "batch channels side_y side_x"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "row position hidden"] | None = None,
        labels: Int[Tensor, "row position"] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Run the language model on text and visual tokens, as LLaVA's own `forward` does.

        Args:
            pixel_values: images for CLIP; None for text alone, and after the first step of a generation.
            diffusion_features: feature maps of the same images; given exactly with `pixel_values`.
        Raises: ConfigError for one tower without the other, and the errors of `DiffusionLlavaModel.embed`.
        """
        if (pixel_values is None) != (diffusion_features is None):
            given, missing = "pixel_values", "diffusion_features"
            if pixel_values is None:
                given, missing = missing, given
            raise ConfigError(f"{given} without {missing}: an image needs the input of both towers.")
        if inputs_embeds is None and input_ids is not None:
            visual = None
            if pixel_values is not None and diffusion_features is not None:
                visual = self.model.visual_tokens(pixel_values, diffusion_features)
            inputs_embeds, input_ids = self.model.embed(input_ids, visual), None
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Pass the feature maps on in the step in which transformers passes the pixels, and in no other."""
        parent: Any = super()  # its annotation of `self` is of a protocol that LLaVA's own class does not meet
        inputs: dict[str, Any] = parent.prepare_inputs_for_generation(*args, **kwargs)
        if inputs.get("pixel_values") is None:
            inputs.pop("diffusion_features", None)
        return inputs
