"""`features.views`: random views of the training images, in which probes see another crop or mirror image per epoch."""

from dataclasses import dataclass, fields
from typing import Literal

from diffprobe.core.errors import ConfigError

_READING = ("n", "use")
"""Keys that choose between views; the others fix what a view is."""


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Random views of the training images. Validation and test read the images themselves.

    A view is a function of (features.seed, key, number of the view). Images are cropped first, then mirrored.
    """

    n: int | None = None
    """Views per image. None: a new one in each epoch, which needs source=live."""
    use: Literal["cycle", "all"] = "cycle"
    """cycle: epoch e reads view e mod n; all (with a store): each epoch reads all n views of each image."""
    flip: float = 0.0
    """Probability of mirroring an image left to right, 0 to 1."""
    padding: int = 0
    """Crop at a random place after adding this many pixels on each side, at the resolution of the backbone."""
    padding_mode: Literal["black", "edge", "reflect"] = "black"
    """What `padding` adds: black, the border's pixels repeated, or the image reflected at its border."""
    crop_area: tuple[float, float] | None = None
    """Crop a random part of the image, of this smallest and largest share of its area, and resize it (bicubic)."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width to height ratio of the part."""
    redraw_noise: bool = False
    """Draw the noise anew for each view (with pool=tokensN also the places), instead of once per image."""

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip={self.flip} is out of range: 0 to 1.")
        if self.padding < 0:
            raise ConfigError(f"padding={self.padding} is out of range: at least 0.")
        if self.n is not None and self.n < 1:
            raise ConfigError(f"n={self.n} is out of range: at least 1.")
        if self.crop_area is not None:
            self._check_crop(self.crop_area)
        elif self.crop_aspect != ViewsConfig.crop_aspect:
            raise ConfigError("crop_aspect has no effect without crop_area.", fix="remove it, or give crop_area")
        if self.padding_mode != "black" and not self.padding:
            raise ConfigError(f"padding_mode={self.padding_mode} has no effect without padding.", fix="remove it")
        idle = [name for name in _READING if getattr(self, name) != getattr(ViewsConfig, name)]
        if idle and not self.active:
            raise ConfigError(
                f"{', '.join(idle)} without a change of the images: all views would be the image itself.",
                "changes: flip, padding, crop_area, redraw_noise",
                fix="features.views.flip=0.5",
            )
        if self.use == "all" and self.n is None:
            raise ConfigError("use=all reads a number of views of each image: n is missing.", fix="features.views.n=4")

    def _check_crop(self, area: tuple[float, float]) -> None:
        if self.padding:
            raise ConfigError(f"crop_area and padding={self.padding}: both crop.", fix="give one of the two")
        if not 0 < area[0] <= area[1] <= 1:
            raise ConfigError(
                f"crop_area={list(area)} is out of range: two shares of the area, 0 < smallest <= largest <= 1."
            )
        low, high = self.crop_aspect
        if not 0 < low <= high:
            raise ConfigError(f"crop_aspect={[low, high]} is out of range: 0 < smallest <= largest.")
        if low > 1 / area[1] or high < area[1]:
            raise ConfigError(
                f"crop_aspect={[low, high]}: no such part of {area[1]:g} of a square fits into it.",
                f"allowed for this crop_area: ratios of which some lie between {area[1]:g} and {1 / area[1]:g}",
            )

    @property
    def changes_images(self) -> bool:
        """Whether views differ from the image, apart from noise."""
        return self.flip > 0 or self.padding > 0 or self.crop_area is not None

    @property
    def active(self) -> bool:
        """Whether training reads views at all."""
        return self.changes_images or self.redraw_noise

    @property
    def per_epoch(self) -> int:
        """Views of each image that an epoch reads, 1 without views."""
        return self.n if self.use == "all" and self.n is not None else 1

    def of_epoch(self, epoch: int) -> int:
        """Return the view that an epoch reads with use=cycle.

        >>> [ViewsConfig(flip=0.5, n=2).of_epoch(epoch) for epoch in range(3)]
        [0, 1, 0]
        """
        return epoch if self.n is None else epoch % self.n

    def content(self) -> dict[str, object]:
        """Return the settings that fix what a view is, those that differ from the defaults.

        >>> ViewsConfig(flip=0.5, n=2).content()
        {'flip': 0.5}
        """
        values = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name not in _READING}
        return {name: value for name, value in values.items() if value != getattr(ViewsConfig, name)}
