"""Training of a small flow model with the layout of Stable Diffusion 3: a transformer and two text encoders together.

Everything but the networks is that of `denoiser.py`. The result is an ordinary StableDiffusion3Pipeline folder, without
a T5.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.rng import derive_seed
from diffprobe.generative.denoiser import DenoiserModule
from diffprobe.generative.export import save_flow_pipeline
from diffprobe.generative.flow_transformer import (
    EMPTY_T5_TOKENS,
    RepeatedLastToken,
    append_zero_token,
    make_projected_text_encoder,
    make_transformer,
)


class FlowDenoiserModule(DenoiserModule):
    """Trains a transformer and two text encoders on a flow from noise to vae_latents under their captions.

    Both text encoders have one vocabulary and one shape, and weights of their own. As in Stable Diffusion 3, tokens are
    the states before the last layer of both, side by side, and pooled embeddings are added to that of the timestep.
    """

    def _build(self) -> None:
        """Build vocabulary, text encoders and transformer from the seed."""
        config, seed = self.config, derive_seed("weights", self.config.seed)
        model, shape = config.model, config.transformer
        assert shape is not None
        self.tokenizer = self.learn_vocabulary()
        self.text_encoder, self.text_encoder_2 = (
            make_projected_text_encoder(
                width=model.text_width,
                layers=model.text_layers,
                heads=model.text_heads,
                max_tokens=model.max_tokens,
                tokenizer=self.tokenizer,
                seed=derive_seed(name, seed),
            ).requires_grad_(config.text_learning_rate > 0)
            for name in ("text", "text_2")
        )
        self.transformer = make_transformer(
            shape,
            latent_channels=self.vae.config.latent_channels,
            latent_side=self.latent_side,
            text_width=model.text_width,
            seed=seed,
        )

    def predict(
        self,
        noised: Float[Tensor, "batch c h w"],
        timesteps: Int[Tensor, " batch"],
        captions: list[str],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch c h w"]:
        """Return the velocity that the transformer predicts for noised latents under captions.

        Args:
            noised: scaled vae_latents on the path.
            timesteps: 0 (clean) to 1000 (noise).
            captions: one per sample.
            generator: unused, as `text_noise` is not offered.
        """
        ids = self.token_ids(captions)
        outputs = [encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
        with RepeatedLastToken(EMPTY_T5_TOKENS):
            velocity: Tensor = self.transformer(
                noised,
                encoder_hidden_states=append_zero_token(states),
                pooled_projections=pooled,
                timestep=timesteps,
                return_dict=False,
            )[0]
        return velocity

    def trained_parts(self) -> tuple[Any, list[Any]]:
        """Return the transformer and both text encoders."""
        return self.transformer, [self.text_encoder, self.text_encoder_2]

    def save(self, folder: Path) -> None:
        """Write the pipeline in diffusers' format, with the weights as fp16 safetensors."""
        save_flow_pipeline(
            folder,
            vae=self.vae,
            transformer=self.transformer,
            text_encoders=(self.text_encoder, self.text_encoder_2),
            tokenizer=self.tokenizer,
            scheduler=self.scheduler,
        )
