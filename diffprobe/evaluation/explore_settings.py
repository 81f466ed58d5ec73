"""Settings of `diffprobe explore`."""

from dataclasses import dataclass

from diffprobe.config.validators import a_device, at_least
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExploreConfig:
    """What the explorer shows, and where its data are."""

    split: str | None = None
    """Split that is shown; None for the test split of the run."""
    sae: str | None = None
    """Name of the autoencoder, of a run with several: its folder below that of the run."""
    seeds: tuple[str, ...] = ()
    """Runs of the same cell with other seeds, for recurrence. Members of the run's own grid that differ from it only in
    the seed are always compared."""
    n_top: int = 16
    """Top images per latent."""
    n_latents_per_image: int = 16
    """Most active latents that the page of an image shows."""
    n_neighbours: int = 8
    """Nearest latents of the same dictionary that the page of a latent shows."""
    n_bars: int = 20
    """Largest number of classes or values of an attribute that the page of a latent shows, the most active first."""
    max_values: int = 256
    """Classes and attributes with more values are left out: memory grows with latents x values."""
    thumbnail_side: int = 96
    """Largest side of a thumbnail in pixels."""
    numbers: bool = True
    """Whether numbers and names are chosen on the training split and measured on the shown one. False: a fast look."""
    encoder: str = "auto"
    """Encoder of images of the MonoSemanticity score: vae_latents, pixels, a folder of a CLIP model, or none; auto for
    vae_latents where images and backbone are at hand, else none."""
    n_embedded: int = 1000
    """Images of which the encoder makes embeddings, drawn by a hash of their keys."""
    columns: tuple[str, ...] = ()
    """CSV or JSON files with further numbers or texts of the latents of the first run."""
    processes: int = 1
    """Processes that read the shown split for pages, which do not depend on their number. One measures the numbers."""
    n_match_images: int = 4000
    """Images over which activations of two runs are correlated, drawn by a hash of their keys."""
    data_path: str | None = None
    """Folder of the shards, where they were moved; None for the path of the run."""
    device: str = "auto"
    """Torch device; "auto" for the accelerator if there is one."""

    def __post_init__(self) -> None:
        a_device(self.device)
        at_least(
            1, n_top=self.n_top, n_latents_per_image=self.n_latents_per_image, n_neighbours=self.n_neighbours,
            n_bars=self.n_bars, max_values=self.max_values, thumbnail_side=self.thumbnail_side,
        )  # fmt: skip
        at_least(1, processes=self.processes)
        at_least(2, n_match_images=self.n_match_images, n_embedded=self.n_embedded)
        for name, paths in (("seeds", self.seeds), ("columns", self.columns)):
            if len(set(paths)) < len(paths):
                raise ConfigError(f"{name} has duplicates: {', '.join(paths)}.")
        if not self.numbers and self.encoder not in ("auto", "none"):
            raise ConfigError(f"encoder={self.encoder} has no effect with numbers=false.", fix="leave one of them out")
        if self.encoder == "none" and self.n_embedded != ExploreConfig.n_embedded:
            raise ConfigError("n_embedded has no effect with encoder=none.", fix="leave it out")
