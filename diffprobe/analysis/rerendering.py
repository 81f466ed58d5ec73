"""Labels of images of scenes by the nearest re-rendering: the factors whose drawing is closest to an image.

The search starts from proposals (of the attribute reader) and changes one group of factors and offsets at a time, all
alternatives of a group at once. Distances are root mean squared differences of pixels averaged over 2 x 2 blocks, so
that fine noise counts little. The texture is measured by itself: the contrast of stripes along the visible clothes,
relative to rendered stripes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.factors import Ints, Scenes, sample
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import FACTORS, PLAIN, RESOLUTIONS, STRIPED, WorldSpec

Floats = NDArray[np.float64]

HALF_COMMITTED = (0.2, 0.6)
"""Contrast relative to rendered stripes between which a texture counts as half-committed."""
STRIPED_FROM = 0.5
"""Contrast from which clothes are labelled striped: nearer to rendered stripes than to none."""
_PHASES = 16
"""Phases of the stripes that are tried, evenly spaced."""
_SHIFT = 2
"""Step of the search over the shift of the background's pattern, in pixels."""
_TINY = 1e-9
"""Below every distance that is not 0."""
_CHANNELS = ("red", "green", "blue")

_GROUPS: tuple[tuple[str, ...], ...] = (("role",), ("size", "pose"), ("build",), ("object", "side"), ("colour",))
"""Factors that are searched together, besides place, background and texture, which have offsets of their own."""


@dataclass(frozen=True, kw_only=True)
class Rerendering:
    """The nearest re-rendering of one image.

    Attributes:
        values: factor -> code of its value.
        margins: factor -> how much farther the nearest drawing with another value is, relative to `distance`; for the
            texture, how far the contrast is from `STRIPED_FROM`.
        distance: root mean squared difference of block means, in units of the range of a channel.
        contrast: of stripes along the clothes: 0 for plain clothes, 1 for stripes as they are rendered.
    """

    values: Mapping[str, int]
    margins: Mapping[str, float]
    distance: float
    contrast: float

    @property
    def is_half_committed(self) -> bool:
        """Whether the contrast is neither that of stripes nor that of plain clothes."""
        return HALF_COMMITTED[0] <= self.contrast <= HALF_COMMITTED[1]


def nearest_rerendering(
    spec: WorldSpec, image: NDArray[np.uint8], proposals: Mapping[str, Sequence[int]], *, n_sweeps: int = 2
) -> Rerendering:
    """Find the factors and offsets whose drawing is nearest to an image.

    Args:
        spec: of the world.
        image: uint8 (r, r, 3), for a resolution that is rendered.
        proposals: factor -> codes to start from, the most likely one first. The role is searched among its proposals,
            the other factors among all their values.
        n_sweeps: times that each group is searched.

    Raises: ConfigError for an image of another shape or type, or factors without a proposal.
    """
    if image.dtype != np.uint8 or image.shape not in [(side, side, 3) for side in RESOLUTIONS]:
        raise ConfigError(
            f"an image of shape {image.shape} and type {image.dtype} cannot be compared with drawings.",
            f"allowed: uint8, (r, r, 3) for r of {', '.join(map(str, RESOLUTIONS))}",
        )
    missing = [name for name in FACTORS if not len(proposals.get(name, ()))]
    if missing:
        raise ConfigError(f"no proposal for {', '.join(missing)}.", fix="name at least one value of each factor")
    if n_sweeps < 1:
        raise ConfigError(f"n_sweeps={n_sweeps} is out of range: at least 1.")
    return _Search(spec, image, proposals).run(n_sweeps)


class _Search:
    """The search for one image. A state is the codes of factors and the offsets, as plain integers by name."""

    def __init__(self, spec: WorldSpec, image: NDArray[np.uint8], proposals: Mapping[str, Sequence[int]]) -> None:
        self._spec, self._image, self._side = spec, image, len(image)
        self._target = _blocks(image[None].astype(np.float32))[0]
        self._proposals = proposals
        self._template = sample(spec, 0, [0])
        layout = spec.layout
        self.state: dict[str, int] = {name: int(proposals[name][0]) for name in FACTORS}
        self.state |= dict.fromkeys(self._template.offsets, 0)
        for name in ("figure_x", "figure_y", "object_x", "object_y"):
            low, high = getattr(layout, name)
            self.state[name] = (low + high) // 2
        self.state |= {f"tint_{channel}": sum(spec.tint) // 2 for channel in _CHANNELS}
        self.state["texture"] = PLAIN
        self._ranges = {
            name: range(getattr(layout, name)[0], getattr(layout, name)[1] + 1)
            for name in ("figure_x", "figure_y", "object_x", "object_y")
        }

    def run(self, n_sweeps: int) -> Rerendering:
        margins: dict[str, float] = {}
        contrast = 0.0
        searches: list[Callable[[], dict[str, float]]] = [self._place, self._tint, self._background]
        searches += [partial(self._factors, names) for names in _GROUPS]
        for _ in range(n_sweeps):
            margins = {}
            for search in (*searches, self._place):
                margins |= search()
            contrast = self._contrast()
            margins["texture"] = abs(contrast - STRIPED_FROM)
        distance = float(self._distances([self.state])[0])
        values = {name: self.state[name] for name in FACTORS}
        ordered = {name: margins[name] for name in FACTORS}
        return Rerendering(values=values, margins=ordered, distance=distance, contrast=contrast)

    def _place(self) -> dict[str, float]:
        """Search place and offsets of the figure together."""
        return self._choose(
            ("place",),
            [
                {"place": place, "figure_x": x, "figure_y": y}
                for place in range(len(self._spec.places))
                for x in self._ranges["figure_x"]
                for y in self._ranges["figure_y"]
            ],
        )

    def _tint(self) -> dict[str, float]:
        """Set the mean colour of the background and the jitter of the clothes from the pixels of both."""
        drawn = render(self._spec, self._scenes([self.state]), resolution=self._side)
        for part, low, high in (("background", *self._spec.tint), ("body", *self._jitter())):
            mask = drawn.mask(part)[0]
            if not mask.any():
                continue  # nothing to measure at this state; the next sweep measures it
            change = self._image[mask].astype(np.float64).mean(0) - drawn.images[0][mask].astype(np.float64).mean(0)
            prefix = "tint" if part == "background" else "cloth"
            for channel, levels in zip(_CHANNELS, change, strict=True):
                name = f"{prefix}_{channel}"
                self.state[name] = int(np.clip(self.state[name] + round(float(levels)), low, high))
        return {}

    def _jitter(self) -> tuple[int, int]:
        return -self._spec.colour_jitter, self._spec.colour_jitter

    def _background(self) -> dict[str, float]:
        """Search the background with the shift of its pattern.

        The shift is refined for each background before they are compared: with a shift that is wrong by a pixel, a
        pattern is farther from its image than a plain background.
        """
        best: list[tuple[float, dict[str, int]]] = []
        for code, background in enumerate(self._spec.backgrounds):
            period = max(1, background.period)
            shifts = range(0, period, _SHIFT)
            across = shifts if background.pattern != "slanted" else range(1)  # it depends on the sum of both shifts
            _, found = self._nearest(
                [{"background": code, "background_x": x, "background_y": y} for x in across for y in shifts]
            )
            near = [
                {
                    **found,
                    "background_x": (found["background_x"] + x) % period,
                    "background_y": (found["background_y"] + y) % period,
                }
                for x in (-1, 0, 1)
                for y in (-1, 0, 1)
            ]
            best.append(self._nearest(near))
        ordered = sorted(best, key=lambda entry: entry[0])
        self.state |= ordered[0][1]
        second = ordered[1][0] if len(ordered) > 1 else np.inf
        return {"background": float(second / max(ordered[0][0], _TINY) - 1)}

    def _nearest(self, options: list[dict[str, int]]) -> tuple[float, dict[str, int]]:
        """Return the smallest distance of some changes of the state, and its change."""
        distances = self._distances([{**self.state, **option} for option in options])
        best = int(distances.argmin())
        return float(distances[best]), options[best]

    def _factors(self, names: tuple[str, ...]) -> dict[str, float]:
        options: list[dict[str, int]] = [{}]
        for name in names:
            codes = range(len(self._spec.names(name)))
            wanted = list(self._proposals[name]) if name == "role" else list(codes)
            options = [{**option, name: int(code)} for option in options for code in wanted]
        if "object" in names:
            options = [{**option, "object_y": y} for option in options for y in self._ranges["object_y"]]
        if "colour" in names:  # each colour with the jitter that fits best would hide the difference: compared without
            options = [{**option, **{f"cloth_{channel}": 0 for channel in _CHANNELS}} for option in options]
            found = self._choose(names, options)
            self._tint()
            return found
        return self._choose(names, options)

    def _choose(self, factors: tuple[str, ...], options: list[dict[str, int]]) -> dict[str, float]:
        """Take the nearest of some changes of the state, and return the margin of each factor."""
        distances = self._distances([{**self.state, **option} for option in options])
        best = int(distances.argmin())
        self.state |= options[best]
        margins = {}
        for name in factors:
            others = np.array([option[name] != options[best][name] for option in options])
            nearest = distances[others].min() if others.any() else np.inf
            margins[name] = float(nearest / max(distances[best], _TINY) - 1)
        return margins

    def _contrast(self) -> float:
        """Set texture and phase, and return the contrast of the stripes relative to rendered ones.

        The image minus the plain drawing is projected on what stripes of each phase add to it; the largest share
        counts. What they add has a mean of 0 over the visible clothes, so a wrong mean colour adds nothing.
        """
        period = self._spec.stripe_period
        phases = [number * period // _PHASES for number in range(_PHASES)]
        plain = {**self.state, "texture": PLAIN}
        states = [plain, *({**plain, "texture": STRIPED, "stripe_phase": phase} for phase in phases)]
        images = render(self._spec, self._scenes(states), resolution=self._side).images.astype(np.float64)
        added = (images[1:] - images[0]).reshape(len(phases), -1)
        rest = (self._image.astype(np.float64) - images[0]).ravel()
        shares = added @ rest / np.maximum((added**2).sum(1), _TINY)
        best = int(shares.argmax())
        contrast = max(0.0, float(shares[best]))
        self.state["texture"] = STRIPED if contrast >= STRIPED_FROM else PLAIN
        self.state["stripe_phase"] = phases[best]
        return contrast

    def _distances(self, states: list[dict[str, int]]) -> Floats:
        images = render(self._spec, self._scenes(states), resolution=self._side).images
        return np.asarray(np.sqrt(((_blocks(images.astype(np.float32)) - self._target) ** 2).mean((1, 2, 3))) / 255)

    def _scenes(self, states: list[dict[str, int]]) -> Scenes:
        n = len(states)

        def column(name: str) -> Ints:
            return np.array([state[name] for state in states], dtype=np.int64)

        return replace(
            self._template,
            indices=np.zeros(n, dtype=np.int64),
            factors={name: column(name) for name in self._template.factors},
            offsets={name: column(name) for name in self._template.offsets},
        )


def _blocks(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of each block of 2 x 2 pixels, float32 (n, r / 2, r / 2, 3)."""
    n, height, width, channels = images.shape
    return np.asarray(images.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4)))
