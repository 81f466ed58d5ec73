"""Training of one denoiser for generation and for alignment with captions (DiffDis); losses are in `alignment.py`.

Everything but the second task is that of `denoiser.py`. The result is a StableDiffusionPipeline folder with the
alignment head beside its parts.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.backbones.caption_encoder import load_caption_encoder
from diffprobe.core.rng import derive_seed
from diffprobe.generative.alignment import FOLDER, TAP, encoder_half, require_negatives
from diffprobe.generative.augmentation import AugmentationConfig
from diffprobe.generative.denoiser import DenoiserModule
from diffprobe.generative.image_table import ImageTable
from diffprobe.generative.lr_schedule import require_finite_loss
from diffprobe.probes.caption import CaptionRegressor, diffdis


class JointDenoiserModule(DenoiserModule):
    """Trains a U-Net and an alignment head: generation under captions, and captions denoised given the image.

    Captions of the alignment are whole, one of each image's own. Their vectors are those of the frozen text encoder,
    the mean over tokens, standardised over the different training captions. Randomness is a function of (seed, step),
    so a resumed run equals an uninterrupted one.
    """

    def _build(self) -> None:
        """Build the networks of the denoiser, and the head on its mid block."""
        super()._build()
        config, alignment = self.config, self.config.alignment
        assert alignment is not None
        self._caption_encoder = load_caption_encoder(config.text_encoder or config.init_from or "")
        side = self.latent_side // 2 ** (len(config.model.channels) - 1)
        self.aligner = CaptionRegressor(
            "diffdis", alignment.head(side), config.model.channels[-1] * side**2, self._caption_encoder.width,
            cell=f"{TAP}@t0.empty.grid{side}", text_encoder=self._caption_encoder.name,
            text_digest=self._caption_encoder.digest, seed=derive_seed("alignment", config.seed),
        )  # fmt: skip
        self._vectors: dict[str, Tensor] = {}

    @property
    def head(self) -> diffdis.AlignmentHead:
        """The alignment head."""
        head = self.aligner.net
        assert isinstance(head, diffdis.AlignmentHead)
        return head

    def set_classes(self, table: ImageTable) -> None:
        """Encode the training captions, besides what a denoiser notes of the training images.

        Raises: EmptyClass for training images with one caption.
        """
        super().set_classes(table)
        captions = sorted({caption for own in table.captions for caption in own})
        require_negatives(captions, f"split '{self.config.data.train_split}'")
        vectors = self._encode(captions).double()
        features = torch.zeros_like(self.aligner.feature_mean), torch.ones_like(self.aligner.feature_std)
        self.aligner.standardise(features, (vectors.mean(0).float(), vectors.var(0, unbiased=False).float()))
        self.facts = {**self.facts, "passes": self.passes, "flops_per_sample": self.flops_per_sample()}

    @property
    def passes(self) -> dict[str, int]:
        """Passes of a training step per sample: of the whole denoiser, and of its encoder half with the head."""
        alignment = self.config.alignment
        assert alignment is not None
        return {"forward": int(alignment.generation), "alignment": 1}

    def flops_per_sample(self) -> dict[str, int]:
        """Return the operations of one sample in a pass of the denoiser, and in one of the encoder half and the head.

        Texts are left out: the text encoder is frozen, and reads a caption once.
        """
        from torch.utils.flop_counter import FlopCounterMode

        shape = (1, self.vae.config.latent_channels, self.latent_side, self.latent_side)
        clean, one = torch.zeros(shape), torch.zeros(1, dtype=torch.long)
        caption = torch.zeros(1, self._caption_encoder.width)
        text = self._empty_context(1)
        found = {}
        with torch.no_grad():
            for name, run in (
                ("forward", lambda: self.unet(clean, one, text)),
                ("alignment", lambda: diffdis.embed(self.head, encoder_half(self.unet, clean, text), caption, [0])),
            ):
                with FlopCounterMode(display=False) as counter:
                    run()
                found[name] = int(counter.get_total_flops())
        return found

    def image_features(self, clean: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch features"]:
        """Return the image tokens of clean latents under the empty caption, whatever the captions of the images."""
        return encoder_half(self.unet, clean, self._empty_context(len(clean)))

    def _empty_context(self, n: int) -> Tensor:
        states: Tensor = self.text_encoder(self.token_ids([""])).last_hidden_state
        return states.expand(n, -1, -1)

    def alignment_loss(
        self, clean: Float[Tensor, "batch c h w"], captions: list[str], seeds: list[int]
    ) -> Float[Tensor, ""]:
        """Return the symmetric InfoNCE of the predicted vectors of a batch.

        Args:
            clean: scaled vae_latents.
            captions: one per sample; equal ones are not negatives of each other.
            seeds: of each sample: fixes its timestep and noise, and whether it has its image.
        Raises: EmptyClass for a batch with one caption.
        """
        require_negatives(captions, "a batch")
        different = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        rows = torch.tensor([different[caption] for caption in captions], device=clean.device)
        queries = self.aligner.standard_captions(self._encode(list(different)).to(clean.device))[rows]
        found = diffdis.embed(self.head, self.image_features(clean), queries, seeds)
        return diffdis.contrast(self.head, found, queries, rows[:, None] == rows)

    def _encode(self, captions: list[str]) -> Float[Tensor, "caption width"]:
        """Return the vectors of captions on the CPU; each is encoded once."""
        new = [caption for caption in captions if caption not in self._vectors]
        if new:
            self._vectors |= dict(zip(new, self._caption_encoder(new), strict=True))
        return torch.stack([self._vectors[caption] for caption in captions])

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of generation, unless it is off, plus lambda times that of alignment."""
        config, alignment, chosen = self.config, self.config.alignment, rows.tolist()
        assert alignment is not None
        table, step = self._table("train"), self.global_step
        generator = torch.Generator().manual_seed(derive_seed("alignment", config.seed, step))
        draws = torch.rand(len(chosen), generator=generator).tolist()
        captions = [
            table.captions[row][int(draw * len(table.captions[row]))] for row, draw in zip(chosen, draws, strict=True)
        ]
        views = config.augmentation.choose(len(chosen), generator)
        clean = self._encoded("train", config.augmentation)[rows.cpu(), views].to(self.device)
        seeds = [derive_seed("query", config.seed, step, table.keys[row]) for row in chosen]
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed("alignment dropout", config.seed, step))
            aligned = self.alignment_loss(clean, captions, seeds)
        require_finite_loss(aligned.detach(), step)
        self.log("train/alignment", aligned.detach(), prog_bar=True)
        loss = alignment.weight * aligned
        return super().training_step(rows, batch_idx) + loss if alignment.generation else loss

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        """Log the error of the denoiser, and the alignment loss under the main captions at fixed noise of each query.

        A batch with one caption is left out of the latter.
        """
        super().validation_step(rows, batch_idx)
        table, chosen = self._table("val"), rows.tolist()
        captions = [table.captions[row][0] for row in chosen]
        if len(set(captions)) < 2:
            return
        clean = self._encoded("val", AugmentationConfig(n_views=1))[rows.cpu(), 0].to(self.device)
        loss = self.alignment_loss(clean, captions, [derive_seed("held-out query", table.keys[row]) for row in chosen])
        self.log("val/alignment", loss, batch_size=len(chosen), prog_bar=True, sync_dist=True)

    def trained_parts(self) -> tuple[Any, list[Any]]:
        """Return the denoiser with the head, and the text encoders."""
        denoiser, texts = super().trained_parts()
        return nn.ModuleList([denoiser, self.aligner]), texts

    def save(self, folder: Path) -> None:
        """Write the pipeline in diffusers' format, and the head beside its parts (`CaptionRegressor`)."""
        super().save(folder)
        self.aligner.save_pretrained(folder / FOLDER)
