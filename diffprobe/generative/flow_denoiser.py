"""Training of a small flow model with the layout of Stable Diffusion 3: a transformer and two text encoders together.

Everything but the networks is that of `denoiser.py`. The result is an ordinary StableDiffusion3Pipeline folder, without
a T5.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.hooks import StopForward
from diffprobe.core.errors import RunFailed
from diffprobe.core.rng import derive_seed
from diffprobe.generative.denoiser import DenoiserModule
from diffprobe.generative.ema import EMACallback
from diffprobe.generative.export import save_flow_pipeline
from diffprobe.generative.flow_transformer import (
    EMPTY_T5_TOKENS,
    RepeatedLastToken,
    append_zero_token,
    make_projected_text_encoder,
    make_transformer,
)
from diffprobe.generative.self_alignment import alignment_loss, make_head


@contextmanager
def _output_of(block: nn.Module, *, last: bool = False) -> Iterator[list[Float[Tensor, "batch token width"]]]:
    """Collect the image tokens that a joint block outputs; with `last`, the pass ends there without an error."""
    outputs: list[Tensor] = []

    def read(module: nn.Module, args: Any, output: tuple[Tensor | None, Tensor]) -> None:
        outputs.append(output[1])
        if last:
            raise StopForward

    handle = block.register_forward_hook(read)
    try:
        yield outputs
    except StopForward:
        pass
    finally:
        handle.remove()


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
        self.alignment_head: nn.Module | None = None
        if config.self_alignment is not None:
            self.alignment_head = make_head(shape.width, derive_seed("self_alignment", seed))

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of the objective, and with `self_alignment` the weighted distance to the averaged network."""
        loss, alignment = super().training_step(rows, batch_idx), self.config.self_alignment
        if alignment is None:
            return loss
        self.log("train/self_alignment", self._alignment_loss.detach())
        return loss + alignment.weight * self._alignment_loss

    def errors(
        self,
        clean: Float[Tensor, "batch c h w"],
        captions: list[str],
        timesteps: Int[Tensor, " batch"],
        noise: Float[Tensor, "batch c h w"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """Return what the parent does; in training with `self_alignment`, keep the distance of blocks for the step."""
        alignment = self.config.self_alignment
        if alignment is None or not self.training:
            return super().errors(clean, captions, timesteps, noise, generator)
        assert generator is not None and self.alignment_head is not None
        with _output_of(self.transformer.transformer_blocks[alignment.student_block]) as students:
            errors = super().errors(clean, captions, timesteps, noise, generator)
        earlier = alignment.teacher_timesteps(timesteps, self.process.n_timesteps, generator).to(timesteps)
        teacher = self._averaged()
        block = teacher.transformer.transformer_blocks[alignment.teacher_block]
        with torch.no_grad(), _output_of(block, last=True) as targets:
            teacher.predict(self.process.add_noise(clean, noise, earlier), earlier, captions)
        self._alignment_loss = alignment_loss(self.alignment_head(students[-1]), targets[-1])
        return errors

    def _averaged(self) -> "FlowDenoiserModule":
        """Return the network with averaged weights. Raises: RunFailed without the callback that averages."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMACallback):
                return callback.average
        raise RunFailed("self_alignment needs averaged weights, and no EMACallback runs.", fix="ema_decay=0.998")

    def trained_heads(self) -> list[nn.Module]:
        """Return networks that are trained with the denoiser and not saved with it."""
        return [*super().trained_heads(), *([] if self.alignment_head is None else [self.alignment_head])]

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
