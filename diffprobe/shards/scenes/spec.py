"""The specification of the world of `scenes`, as typed values. The YAML file is read and checked by spec_file.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from diffprobe.core.errors import unknown

CANVAS = 64
"""Width and height in pixels of the image that is drawn."""
RESOLUTIONS = (64, 32)
"""Widths of images; 32 is the mean of 2 x 2 pixels of 64."""
PARTS = ("background", "object", "feet", "body", "arms", "head", "hat", "tool")
"""Names of the parts by id. A part is drawn over those before it."""
MASKS = {"background": (0,), "object": (1,), "figure": (2, 3, 4, 5), "hat": (6,), "tool": (7,)}
"""Mask -> ids of its parts; each pixel is in exactly one mask."""
FACTORS = ("role", "texture", "colour", "build", "size", "pose", "place", "background", "object", "side")
"""What differs between scenes and has a name."""
TEXTURES = ("plain", "striped")
"""Values of the factor `texture`."""
SIDES = ("left", "right")
"""Values of the factor `side`: where the object is, seen from the figure."""
PLAIN, STRIPED = 0, 1

Colour = tuple[int, int, int]
"""Red, green and blue, from 0 to 255."""
Range = tuple[int, int]
"""Least and largest integer."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One filled shape, in pixels of a figure of size 1, y down.

    Attributes:
        kind: "polygon" (x, y of each corner), "ellipse" (x, y, radius x, radius y) or "line" (x, y, x, y, width).
        numbers: as `kind` says.
        fill: its colour; None is the cloth, whose colour and texture are factors.
    """

    kind: str
    numbers: tuple[float, ...]
    fill: Colour | None


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The shapes of a part, in drawing order, and its named points (x, y)."""

    shapes: tuple[Shape, ...]
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Role:
    """One role: how it is shown, and what is planted."""

    name: str
    hat: str
    tool: str
    striped: tuple[float, ...]
    """P(striped | role) in each world."""
    background: str | None
    """The background that it prefers; None for none."""


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """Two colours whose frequency depends on role and texture together, and on neither of them alone."""

    colours: tuple[int, int]
    shift: float
    sign: tuple[int, ...]
    """Of each role: 1, -1, or 0 for roles without it."""


@dataclass(frozen=True, kw_only=True)
class Background:
    """One background: its pattern ("plain", "checks", "slanted", "dots") and its period in pixels (0 for plain)."""

    pattern: str
    period: int


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the hand is that holds the tool, and the turn of the tool: cosine and sine as fractions of integers."""

    hand: tuple[float, float]
    turn: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Places in pixels, and the ranges of random offsets."""

    ground: int
    figure_x: Range
    figure_y: Range
    object_distance: int
    object_x: Range
    object_y: Range
    outline: float
    outline_colour: Colour


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The parts of the figure that all roles share."""

    skin: Colour
    shoulder: tuple[float, float]
    arm_width: float
    resting_hand: tuple[float, float]
    hat_at: tuple[float, float]
    head: Drawing
    feet: Drawing


@dataclass(frozen=True, kw_only=True)
class CaptionRule:
    """A text with names of factors in braces, and the probability that a caption has it."""

    text: str
    factors: tuple[str, ...]
    probability: float


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Shares of val and test, and what train never has."""

    val: float
    test: float
    values: Mapping[str, tuple[int, ...]]
    """Factor -> held-out values."""
    combinations: tuple[tuple[int, int, int], ...]
    """Held-out (role, texture, colour)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WorldSpec:
    """All that is fixed about the scenes. Values of factors are indices into `values[factor]`.

    Attributes:
        version: of the file; part of the random numbers.
        digest: sha256 of the content of the file.
        worlds: names of the worlds, which differ in P(striped | role) alone.
        values: factor -> names of its values.
        stripe_period: of the clothes, in eighths of a pixel.
        stripe_levels: amplitude of the stripes, in levels (0 to 255) around the mean.
        colour_jitter: largest change of each channel of the cloth, in levels.
        preference: probability of the background that a role prefers.
        background_levels: amplitude of the backgrounds' patterns, in levels.
        object_probabilities: of each value of the factor `object`.
        least_visible: part -> least visible area in pixels.
        captions_per_image: number of captions that are drawn for an image.
    """

    version: int
    digest: str
    worlds: tuple[str, ...]
    roles: tuple[Role, ...]
    values: Mapping[str, tuple[str, ...]]
    stripe_period: int
    stripe_levels: int
    colours: tuple[Colour, ...]
    colour_jitter: int
    interaction: Interaction
    preference: float
    tint: Range
    background_levels: int
    backgrounds: tuple[Background, ...]
    sizes: tuple[float, ...]
    places: tuple[int, ...]
    poses: tuple[Pose, ...]
    layout: Layout
    least_visible: Mapping[str, int]
    figure: Figure
    builds: tuple[Drawing, ...]
    hats: Mapping[str, Drawing]
    tools: Mapping[str, Drawing]
    objects: tuple[Drawing, ...]
    object_probabilities: tuple[float, ...]
    captions_per_image: int
    rules: tuple[CaptionRule, ...]
    splits: Splits

    def world(self, name: str) -> int:
        """Return the number of a world. Raises: UnknownName."""
        if name not in self.worlds:
            raise unknown("world", name, self.worlds)
        return self.worlds.index(name)

    def names(self, factor: str) -> tuple[str, ...]:
        """Return the names of a factor's values. Raises: UnknownName for an unknown factor."""
        if factor not in self.values:
            raise unknown("factor", factor, self.values)
        return self.values[factor]

    def code(self, factor: str, value: str) -> int:
        """Return the index of a factor's value. Raises: UnknownName for a factor or value that the world lacks."""
        names = self.names(factor)
        if value not in names:
            raise unknown(f"value of '{factor}'", value, names)
        return names.index(value)
