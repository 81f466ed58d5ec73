"""DiffDis on frozen features: denoise the embedding of a caption, given the image (Huang et al., 2308.09306).

A noised query e_t = gamma sqrt(a_t) e_0 + sqrt(1 - a_t) n and the tokens of the clean image pass through a few blocks
of joint attention; a linear layer predicts e_0. The loss is symmetric InfoNCE between predictions and captions. The
text context of the denoiser is masked: features are read without a caption, and no caption enters but through its own
noised query in training. For inference the query is noise alone, the same for all images.

In the paper the blocks are those of the U-Net's encoder, which is trained; here they are new and small, and the model
is frozen. e_0 has root mean square 1, not norm 1, so that signal and noise of the query have one unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed
from diffprobe.probes.caption.base import CaptionConfig
from diffprobe.probes.caption.contrastive import ContrastiveMap, info_nce

READS = "features"
INFERENCES = ("one_step", "ddim")
"""Ways to an embedding, each of which is scored; the names of scores of the second one end in `_ddim`."""
N_TIMESTEPS = 1000
"""Length of the query's schedule: that of DDPM, with variances from 1e-4 to 0.02 in equal steps."""


@dataclass(frozen=True, kw_only=True)
class Config(CaptionConfig):
    """Keys of `probe=caption_diffdis`, below `probe.params`; those of its steps belong to `trainer`."""

    grid: int = 4
    """Image tokens per side: K of `features.pool=gridK`, 1 for `mean`."""
    width: int = 128
    """Width of the blocks."""
    heads: int = 4
    """Attention heads; they divide the width."""
    blocks: int = 2
    """Number of blocks."""
    gamma: float = 1.0
    """Factor of the signal in the noised query, above 0, at most 1."""
    p_dropout: float = 0.1
    """Share of training samples whose image is replaced by a learned token, for guidance."""
    guidance: float = 0.0
    """w of inference: (1 + w) times the prediction minus w times that without an image."""
    ddim_steps: int = 10
    """Steps of the iterative inference."""
    temperature: float = 0.07
    """Initial temperature; it is learned, down to 0.01."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {name: getattr(self, name) for name in ("grid", "width", "heads", "blocks", "ddim_steps")}
        if min(counts.values()) < 1 or self.width % self.heads or self.ddim_steps > N_TIMESTEPS:
            raise ConfigError(
                f"{', '.join(f'{name}={value}' for name, value in counts.items())} are out of range.",
                f"allowed: at least 1, heads that divide the width, at most {N_TIMESTEPS} steps",
            )
        if not (0 < self.gamma <= 1 and 0 <= self.p_dropout < 1 and 0 <= self.guidance < float("inf")):
            raise ConfigError(
                f"gamma={self.gamma:g}, p_dropout={self.p_dropout:g}, guidance={self.guidance:g} are out of range.",
                "allowed: gamma above 0 and at most 1, p_dropout from 0 to below 1, guidance at least 0",
            )
        if self.guidance and not self.p_dropout:
            raise ConfigError("guidance needs predictions without an image.", fix="p_dropout=0.1")
        if not 0.01 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} is out of range: at least 0.01, and finite.")


class JointBlock(nn.Module):
    """A transformer block: joint attention of query and image tokens, then a feed-forward layer for each of both.

    Args:
        width: of the tokens.
        heads: number of attention heads.
        is_last: leave the image tokens as the attention gives them: nothing reads them.
    """

    def __init__(self, width: int, heads: int, *, is_last: bool = False) -> None:
        super().__init__()
        self.heads, self.before = heads, nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)  # a bias of keys has no gradient but rounding
        self.joined = nn.Linear(width, width)
        self.of_query = _feed_forward(width)
        self.of_image = None if is_last else _feed_forward(width)

    def forward(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """Return the changed tokens; the query is the first one."""
        split = self.qkv(self.before(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*split)
        tokens = tokens + self.joined(attended.transpose(1, 2).flatten(2))
        query, image = tokens[:, :1], tokens[:, 1:]
        if self.of_image is not None:
            image = image + self.of_image(image)
        return torch.cat([query + self.of_query(query), image], 1)


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class AlignmentHead(nn.Module):
    """Predicts the embedding of a caption from its noised version and the image.

    Args:
        config: sizes and schedule.
        d_image: width of an image token.
        d_text: width of a caption's embedding.
        seed: seed of the query of inference.
    """

    start: Tensor
    signal: Tensor
    noise: Tensor

    def __init__(self, config: Config, d_image: int, d_text: int, *, seed: int) -> None:
        super().__init__()
        self.config, self.d_image = config, d_image
        self.inference: Literal["one_step", "ddim"] = "one_step"
        width = config.width
        self.image_in, self.query_in = nn.Linear(d_image, width), nn.Linear(d_text, width)
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.places = nn.Parameter(0.02 * torch.randn(config.grid**2, width))
        self.no_image = nn.Parameter(0.02 * torch.randn(config.grid**2, width))
        self.blocks = nn.ModuleList(
            JointBlock(width, config.heads, is_last=number == config.blocks - 1) for number in range(config.blocks)
        )
        self.out = ContrastiveMap(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, d_text)), config.temperature)
        kept = (1 - torch.linspace(1e-4, 0.02, N_TIMESTEPS, dtype=torch.float64)).cumprod(0)
        generator = torch.Generator().manual_seed(derive_seed("diffdis", seed))
        self.register_buffer("start", torch.randn(d_text, generator=generator))
        self.register_buffer("signal", config.gamma * kept.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - kept).sqrt().float(), persistent=False)

    def image_tokens(self, features: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch token width"]:
        """Return the tokens of images; features have the places of one channel after each other."""
        tokens = features.unflatten(1, (self.d_image, -1)).transpose(1, 2)
        return self.image_in(tokens) + self.places  # type: ignore[no-any-return]

    def denoise(
        self,
        noised: Float[Tensor, "batch d_text"],
        timesteps: Int[Tensor, " batch"],
        image: Float[Tensor, "batch token width"],
    ) -> Float[Tensor, "batch d_text"]:
        """Return the predicted embedding. Each block is given the noised query and its timestep again.

        Args:
            noised: noised embeddings.
            timesteps: positions on the schedule of the query, 0 to 999; larger is noisier.
            image: as `image_tokens` returns them.
        """
        entry = (self.query_in(noised) + self.time_in(_angles(timesteps, self.config.width)))[:, None]
        query = torch.zeros_like(entry)
        for block in self.blocks:
            tokens = block(torch.cat([query + entry, image], 1))
            query, image = tokens[:, :1], tokens[:, 1:]
        return self.out(query[:, 0])  # type: ignore[no-any-return]

    def forward(self, features: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_text"]:
        """Return the embedding of the caption of each image by `inference`, of any norm; nothing is drawn."""
        steps = 1 if self.inference == "one_step" else self.config.ddim_steps
        timesteps = [N_TIMESTEPS - 1 - (N_TIMESTEPS * step) // steps for step in range(steps)]
        image = self.image_tokens(features)
        noised = self.start.expand(len(features), -1)
        found = noised
        for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            found = self._guided(noised, t, image)
            if following is None:
                break
            found = unit_rms(found)
            left = (noised - self.signal[t] * found) / self.noise[t]
            noised = self.signal[following] * found + self.noise[following] * left
        return found

    def _guided(self, noised: Tensor, t: int, image: Tensor) -> Tensor:
        steps, w = torch.full((len(noised),), t, device=noised.device), self.config.guidance
        found = self.denoise(noised, steps, image)
        if not w:
            return found
        return (1 + w) * found - w * self.denoise(noised, steps, self.no_image.expand_as(image))


def unit_rms(x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
    """Return vectors of mean square 1."""
    return F.normalize(x, dim=1) * x.shape[1] ** 0.5


def _angles(timesteps: Int[Tensor, " batch"], width: int) -> Float[Tensor, "batch width"]:
    """Return sines and cosines of timesteps (Vaswani et al. 2017, section 3.5)."""
    half = (width + 1) // 2
    rates = torch.exp(-torch.arange(half, device=timesteps.device) / half * torch.tensor(10_000.0).log())
    angles = timesteps[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :width]


def make(config: Config, d_in: int, d_out: int, *, seed: int) -> AlignmentHead:
    """Return the untrained head. Raises: ConfigError for features that are not a grid of tokens."""
    places = config.grid**2
    if d_in % places:
        raise ConfigError(
            f"grid={config.grid}: {d_in} numbers of a feature are not {places} tokens.",
            fix=f"features.pool=grid{config.grid}, or probe.params.grid=1 for features.pool=mean",
        )
    return AlignmentHead(config, d_in // places, d_out, seed=seed)


def check_pool(config: Config, kind: str, size: int) -> None:
    """Refuse a pooling whose features are not `grid` x `grid` tokens.

    Args:
        kind, size: as `backbones.cell.parse_pool` returns them.
    Raises: ConfigError.
    """
    side = {"mean": 1, "max": 1, "grid": size}.get(kind)
    if side != config.grid:
        given = f"{kind}{size if kind in ('grid', 'tokens') else ''}"
        raise ConfigError(
            f"features.pool={given} does not give the {config.grid} x {config.grid} tokens of grid={config.grid}.",
            fix=f"features.pool=grid{config.grid}, or probe.params.grid={side or 4}",
        )


def embed(
    module: AlignmentHead,
    features: Float[Tensor, "batch d_in"],
    captions: Float[Tensor, "batch d_out"],
    seeds: Sequence[int],
) -> Float[Tensor, "batch d_out"]:
    """Return predictions of the captions from noised captions and the images, for training.

    Args:
        features: standardised features.
        captions: standardised embeddings, of any norm.
        seeds: of each sample: fixes its timestep, its noise and whether it has its image, whatever the batch.
    """
    draws = [torch.rand(2, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    noise = [
        torch.randn(captions.shape[1], generator=torch.Generator().manual_seed(derive_seed("query", seed)))
        for seed in seeds
    ]
    drawn, n = torch.stack(draws).to(captions.device), torch.stack(noise).to(captions)
    t = (drawn[:, 0] * N_TIMESTEPS).long().clamp(max=N_TIMESTEPS - 1)
    noised = module.signal[t][:, None] * unit_rms(captions) + module.noise[t][:, None] * n
    image = module.image_tokens(features)
    dropped = (drawn[:, 1] < module.config.p_dropout)[:, None, None]
    return module.denoise(noised, t, torch.where(dropped, module.no_image.expand_as(image), image))


def contrast(
    module: AlignmentHead,
    found: Float[Tensor, "batch d_out"],
    captions: Float[Tensor, "batch d_out"],
    same: Bool[Tensor, "batch batch"],
) -> Float[Tensor, ""]:
    """Return the symmetric InfoNCE of a batch; arguments as in `contrastive.contrast`."""
    return info_nce(F.normalize(found.float(), dim=1), F.normalize(captions.float(), dim=1), same, module.out.scale)
