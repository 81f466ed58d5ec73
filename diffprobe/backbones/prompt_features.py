"""`PromptFeatures`: prompts in, features out, read while a frozen text-to-image model denoises from noise.

One sampling run reads all taps and timesteps, and the generated latent may be noised again and read under the empty
prompt. All noise depends on (seed, number of the sample) alone, so it is shared by all prompts and does not depend on
batching. Samplers are in `samplers.py` and `flow_sampler.py`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.backbones.base import DTYPES, Backbone, Condition, LoadOptions, take_rows
from diffprobe.backbones.cell import Cell
from diffprobe.backbones.denoiser_runner import DenoiserRunner, explain_oom, rows_per_pass
from diffprobe.backbones.device import choose_device, exact, set_memory_format, warn_slow_bfloat16
from diffprobe.backbones.families.pixels import reduced_pixels
from diffprobe.backbones.hooks import Capture
from diffprobe.backbones.latent_backbone import TextBackbone
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.network_size import module_limit
from diffprobe.backbones.parts import LATENTS, reduced_latents
from diffprobe.backbones.pool import make_pool
from diffprobe.backbones.prompt_plan import CONDITIONAL, PIXELS, REREAD, UNCONDITIONAL, PromptPlan, plan_prompts
from diffprobe.backbones.samplers import reread_key, start_key, step_generators
from diffprobe.backbones.vae import VaeDecoder
from diffprobe.config.prompt_schema import PromptExtraction
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.rng import noise_for
from diffprobe.core.shapes import FeatureMap, Images

_SHOWN = 5


class PromptFeatures:
    """A frozen text-to-image model that turns prompts into features. Made with `from_config`.

    Attributes:
        plan: what is read while what is sampled.
        device: device of the backbone.
        rows: samples per batch; a guided step has twice as many rows.
    """

    def __init__(self, plan: PromptPlan) -> None:
        config = plan.read.backbone
        self.plan, self.device = plan, choose_device(config.device)
        if self.device.type == "cpu" and config.dtype == "bfloat16":
            warn_slow_bfloat16("backbone.dtype=bfloat16", "backbone.dtype=float32")
        self._dtype = DTYPES[config.dtype]
        checkpoint, short = plan.read.checkpoint, explain_oom("while the weights were loaded", fix="a smaller dtype")
        options = LoadOptions(
            dtype=self._dtype, random_seed=plan.read.random_seed, images=False,
            offload_blocks=config.offload == "blocks", quantize=config.quantize,
        )  # fmt: skip
        with module_limit(config.max_modules), short:
            backbone = load_whole(checkpoint, plan.read.family, plan.spec, options)
            self._vae: VaeDecoder | None = None
            if {"images", "controls"} & set(plan.keep):
                self._vae = VaeDecoder.from_folder(checkpoint.part("vae"))
                self._vae.vae.to(self.device)
        if plan.is_distilled:
            backbone.embed_guidance(1 + plan.guidance)
        self._format = torch.channels_last if config.channels_last else torch.contiguous_format
        set_memory_format(backbone.denoiser, self._format)
        backbone.to(self.device)
        self._backbone: Backbone = backbone
        limit = config.max_rows_per_pass or rows_per_pass(plan.spec.latent_shape)
        self.rows = max(1, limit // (2 if plan.is_guided else 1))
        self._pool = make_pool(plan.read.pool, seed=plan.sampling.seed)
        paths = [tap.path for tap in plan.read.taps]
        self._capture = Capture(backbone.denoiser, paths, layout=plan.spec.layout, read=self._read, stop=False)
        self._capture_last = Capture(backbone.denoiser, paths, layout=plan.spec.layout, read=self._read)
        self._reread = None if plan.reread is None else DenoiserRunner(plan.reread, backbone)

    @classmethod
    def from_config(cls, config: PromptExtraction) -> "PromptFeatures":
        """Load what an extraction needs. Raises: what `plan_prompts` raises, and RunFailed without enough memory."""
        return cls(plan_prompts(config))

    def check_lengths(self, prompts: Sequence[str], ids: Sequence[str], *, allow_truncated: bool) -> list[str]:
        """Return the ids of the prompts that a tokenizer cuts.

        Args:
            allow_truncated: whether such prompts are accepted.
        Raises: ConfigError, naming them, for prompts that are cut and not allowed, or that have no token.
        """
        if not isinstance(self._backbone, TextBackbone):
            return []
        cut: dict[str, str] = {}
        for name, text in self._backbone.texts.items():
            n_empty = len(text.tokenizer("", verbose=False).input_ids)
            lengths = [len(ids_) for ids_ in text.tokenizer(list(prompts), truncation=False, verbose=False).input_ids]
            rows = list(zip(ids, prompts, lengths, strict=True))
            blank = [f"{identity}: {prompt[:80]!r}" for identity, prompt, n in rows if n <= n_empty]
            if blank:
                raise ConfigError(f"{len(blank)} prompts have no token of '{name}'.", *blank[:_SHOWN])
            cut |= {
                identity: f"{identity}: {n} tokens of '{name}', of which {text.length} are read: {prompt[:80]!r}"
                for identity, prompt, n in rows
                if n > text.length
            }
        if cut and not allow_truncated:
            raise ConfigError(
                f"{len(cut)} of {len(prompts)} prompts are cut by the tokenizer.",
                *list(cut.values())[:_SHOWN],
                fix="shorten them; or truncated=allow, to sample from what is left",
            )
        return list(cut)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], numbers: Sequence[int]) -> dict[str, Tensor]:
        """Sample and return the features of each sample.

        Args:
            prompts: the prompt of each sample, at most `rows` of them, so that they fit into memory.
            numbers: the number of each sample among those of its prompt; with the seed it fixes all noise.
        Returns: cell name -> float32 on the backbone's device: [sample, d_in]; for pool=none [sample, channels, height,
            width], for tokensN [sample, N, channels].
        Raises: NonFinite for latents that are not finite.
        """
        plan, found = self.plan, dict[Cell, Tensor]()
        with exact(self.device, plan.read.dtype):
            latents = self._sample(prompts, numbers, found)
            if plan.needs_image:
                finite = torch.isfinite(latents).flatten(1).all(1)
                if not finite.all():
                    row = int((~finite).nonzero()[0])
                    raise NonFinite(
                        f"the latents generated for '{prompts[row]}', sample {numbers[row]}, are not finite."
                    )
                self._read_again(latents, numbers, found)
                self._keep(latents, found)
        return {cell.name: found[cell] for cell in plan.cells}

    def _sample(self, prompts: Sequence[str], numbers: Sequence[int], found: dict[Cell, Tensor]) -> FeatureMap:
        """Denoise from noise, add the features of the passes to `found`, and return the last latents."""
        plan, n = self.plan, len(prompts)
        sampler = plan.make_sampler(self.device)
        noise = [noise_for(plan.sampling.seed, start_key(k), 0, plan.spec.latent_shape) for k in numbers]
        latents = sampler.start(torch.stack(noise).to(self.device))
        condition, rows = self._conditions(prompts)
        generators = step_generators(plan.sampling.seed, numbers)
        asked = {cell.timestep for cell in plan.cells if cell.condition != REREAD and cell.timestep in plan.grid}
        last = None if plan.needs_image else min(asked)
        for step, t in enumerate(plan.grid):
            x_t = sampler.model_input(step, latents)[rows % n]
            run = _Pass(self._backbone, x_t.to(self._dtype).contiguous(memory_format=self._format), t, condition)
            if t in asked:
                capture = self._capture_last if t == last else self._capture
                keys = [start_key(k) for k in numbers]  # places of tokensN are shared by all prompts
                for tap, values in capture(run, keys).items():
                    found |= self._cells(tap, t, values, n)
            else:
                run()
            if t == last:
                break
            latents = sampler.step(step, self._guided(run.predicted, n), latents, generators)
        return latents

    def _conditions(self, prompts: Sequence[str]) -> tuple[Condition, Int[Tensor, " rows"]]:
        """Encode the condition of each row of a pass; the unconditional rows of guidance come first."""
        n = len(prompts)
        texts = [*prompts]
        if self.plan.is_guided:
            texts = [self.plan.sampling.negative_prompt or ""] * n + texts
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        encoded = self._backbone.encode_conditions(list(number))
        encoded = {name: values.to(self.device) for name, values in encoded.items()}
        return take_rows(encoded, torch.tensor([number[text] for text in texts])), torch.arange(
            len(texts), device=self.device
        )

    def _guided(self, predicted: Float[Tensor, "rows c h w"], n: int) -> Float[Tensor, "sample c h w"]:
        """Combine the predictions of both branches (Ho and Salimans, 2207.12598, equation 6)."""
        if not self.plan.is_guided:
            return predicted
        unconditional, conditional = predicted[:n], predicted[n:]
        return unconditional + (1 + self.plan.guidance) * (conditional - unconditional)

    def _read(self, x: FeatureMap, keys: Sequence[str]) -> Tensor:
        """Pool the rows that are kept: of a guided pass the conditional ones, or all."""
        if len(x) == len(keys):
            return self._pool(x, keys)
        if not self.plan.unconditional:
            return self._pool(x[-len(keys) :], keys)
        return self._pool(x, [*keys, *keys])

    def _cells(self, tap: str, t: int, values: Tensor, n: int) -> dict[Cell, Tensor]:
        pool = self.plan.read.pool
        found = {Cell(tap, t, CONDITIONAL, pool): values[-n:]}
        if self.plan.unconditional:
            found[Cell(tap, t, UNCONDITIONAL, pool)] = values[:n]
        return found

    def _read_again(self, latents: FeatureMap, numbers: Sequence[int], found: dict[Cell, Tensor]) -> None:
        """Noise the generated latents at other timesteps and read them under the empty prompt."""
        plan, reread = self.plan.reread, self._reread
        if plan is None or reread is None:
            return
        empty = self._backbone.encode_conditions([""])
        rows = torch.zeros(1, len(latents), dtype=torch.long, device=self.device)
        keys = [reread_key(k) for k in numbers]
        condition = {name: values.to(self.device) for name, values in empty.items()}
        for tap, values in reread(latents, condition, rows, keys).items():
            for i, t in enumerate(plan.timesteps):
                found[Cell(tap, t, REREAD, plan.pool)] = values[0, i, 0]

    def _keep(self, latents: FeatureMap, found: dict[Cell, Tensor]) -> None:
        """Add what is stored of the generated images."""
        keep = self.plan.keep
        if "latents" in keep:
            found[Cell(LATENTS, 0, CONDITIONAL, "none")] = latents
        images = None if self._vae is None else self.decode(latents)
        if "controls" in keep and images is not None:
            found[Cell(LATENTS, 0, REREAD, "mean")] = reduced_latents(latents).flatten(1)
            found[Cell(PIXELS, 0, REREAD, "mean")] = reduced_pixels(images).flatten(1)
        if "images" in keep and images is not None:
            found[Cell(PIXELS, 0, CONDITIONAL, "none")] = images

    @torch.no_grad()
    def decode(self, latents: FeatureMap) -> Images:
        """Decode scaled latents to images in [0, 1], float32.

        Raises: ConfigError if no images were asked for, so that no decoder is loaded.
        """
        if self._vae is None:
            raise ConfigError("the decoder was not loaded.", fix="features.keep=[images]")
        return torch.cat([self._vae(row[None]) for row in latents])


class _Pass:
    """One pass of the denoiser; keeps the prediction, which a pass that a hook ends does not have."""

    def __init__(self, backbone: Backbone, x_t: Tensor, t: int, condition: Condition) -> None:
        self._backbone, self._x_t, self._condition = backbone, x_t, condition
        self._t = torch.full((len(x_t),), t, device=x_t.device)

    def __call__(self) -> None:
        """Run the pass."""
        self.predicted = self._backbone.denoise(self._x_t, self._t, self._condition).value.float()
