"""Read the YAML file of a world and refuse what is wrong in it, by file and key, before anything is drawn."""

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import yaml

from diffprobe.config.search_path import display
from diffprobe.config.source_lines import unreadable
from diffprobe.config.yaml_guard import read_node
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.shards.scenes.spec import (
    FACTORS,
    PARTS,
    SIDES,
    STRIPED,
    TEXTURES,
    Background,
    CaptionRule,
    Colour,
    Drawing,
    Figure,
    Interaction,
    Layout,
    Pose,
    Range,
    Role,
    Shape,
    Splits,
    WorldSpec,
)

_KEYS = (
    "version worlds roles texture colour background size place pose layout least_visible figure build hats tools object"
    " captions splits"
).split()
_LENGTHS = {"polygon": "at least 6, an even number", "ellipse": "4", "line": "5"}
_PATTERNS = ("plain", "checks", "slanted", "dots")
_FARTHEST = 1000.0
"""Largest coordinate, in pixels; integers of the rasteriser stay far below 2^63."""
_EVEN = 0.5
_EXACT = 1e-9
"""Largest difference of probabilities that are equal by arithmetic."""


class Node:
    """A value of the file with its place, read with a check of its type. Raises: ConfigError, with file and key."""

    def __init__(self, value: object, where: str) -> None:
        self.value, self.where = value, where

    def fault(self, what: str, *details: str) -> ConfigError:
        """Return the error about this value."""
        return ConfigError(f"{self.where}: {what}.", *details)

    def mapping(self, required: Collection[str] = (), optional: Collection[str] = ()) -> dict[str, "Node"]:
        """Return the entries of a mapping with these keys; with any keys if none are named."""
        if not isinstance(self.value, dict) or not self.value:
            raise self.fault("expected a mapping with at least one key")
        allowed = (*required, *optional)
        for key in self.value:
            if not isinstance(key, str):
                raise self.fault(f"key {key!r} is not a text", "write it in quotes")
            if allowed and key not in allowed:
                raise unknown(f"key in {self.where}", key, allowed, ConfigError)
        missing = [key for key in required if key not in self.value]
        if missing:
            raise self.fault(f"key '{missing[0]}' is missing")
        return {key: Node(value, f"{self.where}: {key}") for key, value in self.value.items()}

    def items(self, n: int | None = None) -> list["Node"]:
        """Return the entries of a list, of `n` if given."""
        if not isinstance(self.value, list) or (n is not None and len(self.value) != n):
            raise self.fault(f"expected a list{'' if n is None else f' of {n}'}")
        return [Node(value, f"{self.where}[{place}]") for place, value in enumerate(self.value)]

    def number(self, low: float = -_FARTHEST, high: float = _FARTHEST) -> float:
        """Return a finite number from `low` to `high`."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not math.isfinite(self.value):
            raise self.fault(f"expected a number, found {self.value!r}")
        if not low <= self.value <= high:
            raise self.fault(f"{self.value} is out of range", f"allowed: {low:g} to {high:g}")
        return float(self.value)

    def integer(self, low: int = -1000, high: int = 1000) -> int:
        """Return an integer from `low` to `high`."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.fault(f"expected an integer, found {self.value!r}")
        return int(self.number(low, high))

    def text(self) -> str:
        """Return a text that is not empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.fault(f"expected a text, found {self.value!r}")
        return self.value

    def choice(self, allowed: Collection[str], kind: str) -> str:
        """Return one of the allowed names."""
        name = self.text()
        if name not in allowed:
            raise unknown(f"{kind} in {self.where}", name, allowed, ConfigError)
        return name

    def numbers(self, n: int | None = None) -> tuple[float, ...]:
        """Return a list of numbers."""
        return tuple(item.number() for item in self.items(n))

    def pair(self) -> tuple[float, float]:
        """Return x and y."""
        x, y = self.numbers(2)
        return x, y

    def span(self, low: int = -1000, high: int = 1000) -> Range:
        """Return a range [least, largest]."""
        least, largest = (item.integer(low, high) for item in self.items(2))
        if least > largest:
            raise self.fault(f"the least value {least} is larger than the largest {largest}")
        return least, largest

    def colour(self) -> Colour:
        """Return red, green and blue."""
        red, green, blue = (item.integer(0, 255) for item in self.items(3))
        return red, green, blue


def read_spec(path: Path) -> WorldSpec:
    """Read the file of a world.

    Raises: ConfigError, with file and key, for a file that is not YAML, an unknown or missing key, a value of another
        type or out of its range, too few roles for the rates, a caption rule without a factor or with an unknown one,
        and held-out combinations that would change a planted rate.
    """
    shown = display(path)
    try:
        node = read_node(path, shown)
        tree = None if node is None else yaml.SafeLoader("").construct_document(node)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise unreadable(error, [path]) from error
    return parse_spec(tree, where=shown)


def parse_spec(tree: object, *, where: str = "the world") -> WorldSpec:
    """Build the specification from the content of its file, called `where` in messages. Raises: see `read_spec`."""
    top = Node(tree, where).mapping(_KEYS)
    worlds = tuple(item.text() for item in top["worlds"].items())
    if not worlds or len(set(worlds)) != len(worlds):
        raise top["worlds"].fault("expected at least one name, each once")
    figure, hats, tools = _figure(top["figure"]), _drawings(top["hats"]), _drawings(top["tools"])
    backgrounds = top["background"].mapping(("preference", "tint", "amplitude", "values"))
    background_names = tuple(backgrounds["values"].mapping())
    roles = _roles(top["roles"], worlds, hats, tools, background_names)
    texture = top["texture"].mapping(("rates", "least_even", "period", "amplitude"))
    colour = top["colour"].mapping(("values", "jitter", "interaction"))
    colours = {name: item.colour() for name, item in colour["values"].mapping().items()}
    objects = {
        name: item.mapping(("probability", "points", "shapes")) for name, item in top["object"].mapping().items()
    }
    captions = top["captions"].mapping(("per_image", "never", "rules"))
    values = {
        "role": tuple(role.name for role in roles),
        "texture": TEXTURES,
        "colour": tuple(colours),
        "build": tuple(top["build"].mapping()),
        "size": tuple(top["size"].mapping()),
        "pose": tuple(top["pose"].mapping()),
        "place": tuple(top["place"].mapping()),
        "background": background_names,
        "object": tuple(objects),
        "side": SIDES,
    }
    spec = WorldSpec(
        version=top["version"].integer(1),
        digest=digest_json(tree),
        worlds=worlds,
        roles=roles,
        values=values,
        stripe_period=round(8 * texture["period"].number(2, 32)),
        stripe_levels=round(255 * texture["amplitude"].number(0.01, 0.5)),
        colours=tuple(colours.values()),
        colour_jitter=colour["jitter"].integer(0, 64),
        interaction=_interaction(colour["interaction"], roles, tuple(colours)),
        preference=backgrounds["preference"].number(0, 1),
        tint=backgrounds["tint"].span(0, 255),
        background_levels=round(255 * backgrounds["amplitude"].number(0, 0.5)),
        backgrounds=tuple(_background(item) for item in backgrounds["values"].mapping().values()),
        sizes=tuple(item.number(0.25, 2) for item in top["size"].mapping().values()),
        places=tuple(item.integer() for item in top["place"].mapping().values()),
        poses=tuple(_pose(item) for item in top["pose"].mapping().values()),
        layout=_layout(top["layout"]),
        least_visible={part: item.integer(1, 4096) for part, item in top["least_visible"].mapping(PARTS[1:]).items()},
        figure=figure,
        builds=tuple(Drawing(shapes=_shapes(item, cloth=True)) for item in top["build"].mapping().values()),
        hats=hats,
        tools=tools,
        objects=tuple(_drawing_of(entry) for entry in objects.values()),
        object_probabilities=tuple(entry["probability"].number(0, 1) for entry in objects.values()),
        captions_per_image=captions["per_image"].integer(1, 100),
        rules=_rules(captions, values),
        splits=_splits(top["splits"], values),
    )
    _check_rates(spec, texture)
    _check_levels(spec, colour, backgrounds)
    _check_probabilities(spec, top["object"], colour["interaction"])
    _check_held_out(spec, top["splits"])
    return spec


def _roles(
    node: Node, worlds: Sequence[str], hats: Collection[str], tools: Collection[str], backgrounds: Collection[str]
) -> tuple[Role, ...]:
    found: list[Role] = []
    for name, item in node.mapping().items():
        entry = item.mapping(("hat", "tool", "striped"), ("background",))
        preferred = entry.get("background")
        role = Role(
            name=name,
            hat=entry["hat"].choice(hats, "hat"),
            tool=entry["tool"].choice(tools, "tool"),
            striped=tuple(rate.number(0, 1) for rate in entry["striped"].items(len(worlds))),
            background=None if preferred is None else preferred.choice(backgrounds, "background"),
        )
        alike = [other.name for other in found if (other.hat, other.tool) == (role.hat, role.tool)]
        if alike:
            raise item.fault(f"it has the hat and the tool of '{alike[0]}', so that they look alike")
        found.append(role)
    return tuple(found)


def _drawings(node: Node) -> dict[str, Drawing]:
    return {name: _drawing(item) for name, item in node.mapping().items()}


def _drawing(node: Node) -> Drawing:
    return _drawing_of(node.mapping(("points", "shapes")))


def _drawing_of(entry: dict[str, Node]) -> Drawing:
    points = {name: item.pair() for name, item in entry["points"].mapping().items()}
    return Drawing(shapes=_shapes(entry["shapes"]), points=points)


def _shapes(node: Node, *, cloth: bool = False) -> tuple[Shape, ...]:
    found = []
    for item in node.items():
        entry = item.mapping(() if cloth else ("fill",), (*_LENGTHS, *(["fill"] if cloth else [])))
        kinds = [name for name in entry if name in _LENGTHS]
        if len(kinds) != 1:
            raise item.fault(f"expected one of {', '.join(_LENGTHS)}")
        kind, numbers = kinds[0], entry[kinds[0]].numbers()
        n = len(numbers)
        if not (n >= 6 and n % 2 == 0 if kind == "polygon" else n == int(_LENGTHS[kind])):
            raise entry[kind].fault(f"{n} numbers", f"expected: {_LENGTHS[kind]}")
        sizes = numbers[2:] if kind == "ellipse" else numbers[4:] if kind == "line" else ()
        if any(size <= 0 for size in sizes):
            raise entry[kind].fault("radii and widths must be above 0")
        found.append(Shape(kind=kind, numbers=numbers, fill=entry["fill"].colour() if "fill" in entry else None))
    if not found:
        raise node.fault("expected at least one shape")
    return tuple(found)


def _figure(node: Node) -> Figure:
    names = ("skin", "shoulder", "arm_width", "resting_hand", "hat_at", "head", "feet")
    entry = node.mapping(names)
    return Figure(
        skin=entry["skin"].colour(),
        shoulder=entry["shoulder"].pair(),
        arm_width=entry["arm_width"].number(0.5, 20),
        resting_hand=entry["resting_hand"].pair(),
        hat_at=entry["hat_at"].pair(),
        head=_drawing(entry["head"]),
        feet=_drawing(entry["feet"]),
    )


def _pose(node: Node) -> Pose:
    entry = node.mapping(("hand", "turn"))
    cosine, sine, whole = (
        item.integer(low) for item, low in zip(entry["turn"].items(3), (-1000, -1000, 1), strict=True)
    )
    if cosine**2 + sine**2 != whole**2:
        raise entry["turn"].fault(f"{cosine}^2 + {sine}^2 is not {whole}^2", "example: [24, 7, 25]")
    return Pose(hand=entry["hand"].pair(), turn=(cosine, sine, whole))


def _background(node: Node) -> Background:
    entry = node.mapping(("pattern",), ("period",))
    pattern = entry["pattern"].choice(_PATTERNS, "pattern")
    if (pattern == "plain") != ("period" not in entry):
        raise node.fault("a pattern needs a period, 'plain' has none")
    period = entry["period"].integer(2, 32) if "period" in entry else 0
    if pattern == "checks" and period % 2:
        raise entry["period"].fault("checks need an even period")
    return Background(pattern=pattern, period=period)


def _layout(node: Node) -> Layout:
    ranges = ("figure_x", "figure_y", "object_x", "object_y")
    entry = node.mapping(("ground", "object_distance", "outline", "outline_colour", *ranges))
    return Layout(
        ground=entry["ground"].integer(1, 64),
        figure_x=entry["figure_x"].span(),
        figure_y=entry["figure_y"].span(),
        object_distance=entry["object_distance"].integer(0, 64),
        object_x=entry["object_x"].span(),
        object_y=entry["object_y"].span(),
        outline=entry["outline"].number(0, 2),
        outline_colour=entry["outline_colour"].colour(),
    )


def _interaction(node: Node, roles: Sequence[Role], colours: Sequence[str]) -> Interaction:
    entry = node.mapping(("colours", "shift", "toward", "away"))
    first, second = (colours.index(item.choice(colours, "colour")) for item in entry["colours"].items(2))
    if first == second:
        raise entry["colours"].fault("expected two colours")
    signs = dict.fromkeys((role.name for role in roles), 0)
    for key, sign in (("toward", 1), ("away", -1)):
        for item in entry[key].items():
            name = item.choice(signs, "role")
            if signs[name]:
                raise item.fault(f"'{name}' is named twice")
            signs[name] = sign
    return Interaction(colours=(first, second), shift=entry["shift"].number(0, 1), sign=tuple(signs.values()))


def _rules(entry: dict[str, Node], values: dict[str, tuple[str, ...]]) -> tuple[CaptionRule, ...]:
    never = [item.choice(FACTORS, "factor") for item in entry["never"].items()]
    rules: list[CaptionRule] = []
    texts: dict[str, str] = {}
    for item in entry["rules"].items():
        parts = item.mapping(("text", "probability"))
        text = parts["text"].text()
        factors = tuple(re.findall(r"\{([^{}]*)\}", text))
        if not factors:
            raise parts["text"].fault(f"the rule '{text}' names no factor", f"factors: {', '.join(FACTORS)}")
        for name in factors:
            if name not in FACTORS:
                raise unknown(f"factor in {parts['text'].where}", name, FACTORS, ConfigError)
            if name in never:
                raise parts["text"].fault(f"the factor '{name}' is one that captions never state")
        if "," in text or len(set(factors)) != len(factors):
            raise parts["text"].fault(f"the rule '{text}' has a comma, or a factor twice")
        written = [""]
        for piece in re.split(r"(\{[^{}]*\})", text):
            choices = values[piece[1:-1]] if piece.startswith("{") else (piece,)
            written = [begin + choice for begin in written for choice in choices]
        for one in written:
            if one in texts:
                raise parts["text"].fault(f"'{one}' is written by two rules or values, so that it cannot be read back")
            texts[one] = text
        rules.append(CaptionRule(text=text, factors=factors, probability=parts["probability"].number(0, 1)))
    if not any(rule.probability == 1 and "role" in rule.factors for rule in rules):
        raise entry["rules"].fault("no rule of probability 1 states the role")
    return tuple(rules)


def _splits(node: Node, values: dict[str, tuple[str, ...]]) -> Splits:
    entry = node.mapping(("val", "test", "held_out_values", "held_out_combinations"))
    held: dict[str, tuple[int, ...]] = {}
    for name, item in entry["held_out_values"].mapping().items():
        if name not in FACTORS or name in ("role", "texture", "colour", "background"):
            raise item.fault("a value of this factor cannot be held out: the planted rates would change",
                             "allowed: build, size, pose, place, object, side")  # fmt: skip
        held[name] = tuple(
            values[name].index(value.choice(values[name], f"value of '{name}'")) for value in item.items()
        )
    combinations = []
    for item in entry["held_out_combinations"].items():
        role, texture, colour = (
            values[name].index(part.choice(values[name], f"value of '{name}'"))
            for name, part in zip(("role", "texture", "colour"), item.items(3), strict=True)
        )
        combinations.append((role, texture, colour))
    val, test = entry["val"].number(0, 1), entry["test"].number(0, 1)
    if val + test >= 1:
        raise node.fault(f"val {val:g} and test {test:g} leave nothing for train")
    return Splits(val=val, test=test, values=held, combinations=tuple(combinations))


def _check_rates(spec: WorldSpec, texture: dict[str, Node]) -> None:
    """Check that the roles have the rates of the list, each at least once, and the same ones in each world."""
    rates = [item.number(0, 1) for item in texture["rates"].items()]
    least = texture["least_even"].integer(0)
    if len(spec.roles) < len(set(rates) - {_EVEN}) + max(least, int(_EVEN in rates)):
        raise texture["rates"].fault(
            f"{len(spec.roles)} roles are too few for {len(set(rates))} rates with {least} roles at {_EVEN}"
        )
    counts = [Counter(role.striped[number] for role in spec.roles) for number in range(len(spec.worlds))]
    for world, count in zip(spec.worlds, counts, strict=True):
        if set(count) != set(rates):
            odd = sorted(set(count) ^ set(rates))
            raise texture["rates"].fault(
                f"the rates of the roles in world '{world}' are not those listed, see {odd[0]:g}"
            )
        if count[_EVEN] < least:
            raise texture["least_even"].fault(f"world '{world}' has {count[_EVEN]} roles at {_EVEN}, not {least}")
        if count != counts[0]:
            raise texture["rates"].fault(f"worlds '{spec.worlds[0]}' and '{world}' have different numbers of a rate")


def _check_levels(spec: WorldSpec, colour: dict[str, Node], background: dict[str, Node]) -> None:
    """Check that no channel is clipped, since that would change the mean colour of a texture."""
    room = spec.stripe_levels + spec.colour_jitter
    for name, levels in zip(spec.values["colour"], spec.colours, strict=True):
        if min(levels) < room or max(levels) > 255 - room:
            raise colour["values"].fault(
                f"'{name}' with stripes and jitter leaves 0 to 255", f"allowed channels: {room} to {255 - room}"
            )
    low, high = spec.tint
    if low < spec.background_levels or high > 255 - spec.background_levels:
        raise background["tint"].fault(
            "the patterns leave 0 to 255", f"allowed: {spec.background_levels} to {255 - spec.background_levels}"
        )


def _check_probabilities(spec: WorldSpec, objects: Node, interaction: Node) -> None:
    total = sum(spec.object_probabilities)
    if abs(total - 1) > _EXACT:
        raise objects.fault(f"the probabilities sum to {total:g}, not to 1")
    n_colours, shift, signs = len(spec.colours), spec.interaction.shift, spec.interaction.sign
    for number, world in enumerate(spec.worlds):
        rates = [role.striped[number] for role in spec.roles]
        largest = max(shift * abs(sign) * max(rate, 1 - rate) for rate, sign in zip(rates, signs, strict=True))
        if largest > 1 / n_colours + _EXACT:
            raise interaction.fault(f"a shift of {shift:g} gives a probability below 0 in world '{world}'")
        if abs(sum(sign * rate * (1 - rate) for rate, sign in zip(rates, signs, strict=True))) > _EXACT:
            raise interaction.fault(
                f"in world '{world}' the colours would depend on the texture alone",
                "the sum of rate (1 - rate) has to be the same for 'toward' and 'away'",
            )


def _check_held_out(spec: WorldSpec, node: Node) -> None:
    """Check that of each role as large a share of plain as of striped clothes is held out."""
    for role in spec.roles:
        code = spec.values["role"].index(role.name)
        held: tuple[list[int], list[int]] = ([], [])
        for found, texture, colour in spec.splits.combinations:
            if found == code:
                held[texture].append(colour)
        if len(set(held[0])) != len(set(held[STRIPED])):
            raise node.fault(f"held_out_combinations change the planted rate of '{role.name}'",
                             "hold out as many colours of its striped as of its plain clothes")  # fmt: skip
        if held[0] and spec.interaction.sign[code]:
            raise node.fault(f"held_out_combinations name '{role.name}', which has the interaction of colours")
