"""The attribute reader: a small convolutional classifier of the factors of scenes, from an image alone."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, SchemaError, WeightsMismatch, WeightsMissing
from diffprobe.core.safetensors_file import load_safetensors
from diffprobe.core.shapes import Images
from diffprobe.shards.scenes.spec import FACTORS, RESOLUTIONS, WorldSpec

WEIGHTS_FILE, CONFIG_FILE = "reader.safetensors", "reader.json"
"""Files of a saved reader."""
SHIPPED = "scenes-reader"
"""Name of the reader that is part of the package, under `assets/`: of the shipped world, for 64 pixels."""
_ROWS = 256
"""Images per pass of `SceneReader.read`."""
_LAST_SIDE = 4
"""Side length of the last feature map, which keeps where things are."""


@dataclass(frozen=True, kw_only=True)
class SceneReaderShape:
    """Shape of the network."""

    channels: tuple[int, ...] = (24, 48, 96, 128)
    """Channels per level. Each level halves the side length until it is 4."""
    hidden: int = 256
    """Width of the layer before the heads."""
    norm_groups: int = 8
    """Groups of each GroupNorm."""

    def __post_init__(self) -> None:
        if not self.channels or any(width < 1 or width % self.norm_groups for width in self.channels):
            raise ConfigError(
                f"channels={list(self.channels)} do not divide into norm_groups={self.norm_groups} groups."
            )


class SceneReader(nn.Module):
    """Classifies all factors of a world at once: one head per factor, and for the role one for its hat and its tool.

    The log-probability of a role is the sum of those of its hat and its tool, normalised over the roles of the world.

    Args:
        spec: of the world.
        resolution: side length of the images, 64 or 32.
        shape: widths of the network.
    Raises: ConfigError for another resolution, or for roles that share both hat and tool.
    """

    def __init__(self, spec: WorldSpec, *, resolution: int, shape: SceneReaderShape | None = None) -> None:
        super().__init__()
        if resolution not in RESOLUTIONS:
            raise ConfigError(f"resolution {resolution} is not offered; allowed: {', '.join(map(str, RESOLUTIONS))}.")
        shape = shape or SceneReaderShape()
        self.spec, self.resolution, self.shape = spec, resolution, shape
        hats, tools = list(spec.hats), list(spec.tools)
        pairs = [(hats.index(role.hat), tools.index(role.tool)) for role in spec.roles]
        if len(set(pairs)) < len(pairs):
            raise ConfigError("two roles of the world have the same hat and tool, so no image separates them.")
        self.register_buffer("_hats", torch.tensor([hat for hat, _ in pairs]), persistent=False)
        self.register_buffer("_tools", torch.tensor([tool for _, tool in pairs]), persistent=False)
        self.sizes = {
            "hat": len(hats),
            "tool": len(tools),
            **{name: len(spec.names(name)) for name in FACTORS if name != "role"},
        }
        layers: list[nn.Module] = []
        side, width = resolution, 3
        for channels in shape.channels:
            stride = 2 if side > _LAST_SIDE else 1
            layers += [nn.Conv2d(width, channels, 3, stride=stride, padding=1)]
            layers += [nn.GroupNorm(shape.norm_groups, channels), nn.ReLU()]
            if side <= resolution // 2:  # a second convolution where maps are small
                layers += [nn.Conv2d(channels, channels, 3, padding=1)]
                layers += [nn.GroupNorm(shape.norm_groups, channels), nn.ReLU()]
            side, width = side // stride, channels
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side * side, shape.hidden), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(shape.hidden, n) for name, n in self.sizes.items()})

    def forward(self, images: Images) -> dict[str, Float[Tensor, "batch value"]]:
        """Return the log-probabilities of each factor's values; of hat and tool, too.

        Args:
            images: RGB in [0, 1], of the reader's resolution.
        """
        hidden = self.body(images * 2 - 1)
        found = {name: head(hidden).float().log_softmax(1) for name, head in self.heads.items()}
        joint = found["hat"][:, self._hats] + found["tool"][:, self._tools]  # type: ignore[index]
        return {"role": joint.log_softmax(1), **found}

    @torch.no_grad()
    def read(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
        """Return the probabilities of the values of each factor.

        Args:
            images: uint8 (n, r, r, 3), of the reader's resolution.
        Returns: factor -> float64 (n, values).
        Raises: ConfigError for images of another shape or type.
        """
        side = self.resolution
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise ConfigError(
                f"the reader got {images.dtype} images of shape {images.shape[1:]}.",
                f"expected: uint8 of shape ({side}, {side}, 3)",
            )
        device = next(self.parameters()).device
        found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in FACTORS}
        for start in range(0, len(images), _ROWS):
            batch = to_tensor(images[start : start + _ROWS]).to(device)
            logs = self(batch)
            for name in FACTORS:
                found[name].append(logs[name].double().exp().cpu().numpy())
        return {
            name: np.concatenate(parts) if parts else np.zeros((0, len(self.spec.names(name))))
            for name, parts in found.items()
        }

    @torch.no_grad()
    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the features that all heads read.

        Args:
            images: uint8 (n, r, r, 3), of the reader's resolution.
        Returns: float64 (n, hidden).
        """
        device = next(self.parameters()).device
        parts = [
            self.body(to_tensor(images[start : start + _ROWS]).to(device) * 2 - 1).double().cpu().numpy()
            for start in range(0, len(images), _ROWS)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.shape.hidden))

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Write weights (safetensors) and shape (JSON) to a folder.

        Args:
            half: store the weights as float16, which halves the file; they are read into float32 again.
        """
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / WEIGHTS_FILE) as temporary:
            state = {name: tensor.half() if half else tensor for name, tensor in self.state_dict().items()}
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
        tree = {
            "resolution": self.resolution,
            "world": self.spec.digest,
            "sizes": self.sizes,
            "shape": asdict(self.shape),
            "weights": digest_file(folder / WEIGHTS_FILE),
        }
        with atomic_file(folder / CONFIG_FILE) as temporary:
            temporary.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", "utf-8")


def find_reader(folder: Path | str) -> Path:
    """Return the folder of a reader's files.

    Args:
        folder: `scenes-reader`, which ships with diffprobe; or a folder of `SceneReader.save`, of a finished run of
            kind `train_reader`, or of such runs.
    Raises: WeightsMissing for a folder without a reader; ConfigError for one with several finished runs.
    """
    if str(folder) == SHIPPED:
        folder = str(files("diffprobe") / "assets" / SHIPPED)
        if not Path(folder).is_dir():
            raise WeightsMissing(
                f"the shipped reader '{SHIPPED}' is not in this installation.", fix="install diffprobe again"
            )
    folder = Path(folder)
    for place in (folder, folder / "weights"):
        if (place / CONFIG_FILE).is_file() and (place / WEIGHTS_FILE).is_file():
            return place
    runs = sorted(path.parent.parent for path in folder.glob(f"*/weights/{CONFIG_FILE}"))
    if len(runs) == 1:
        return runs[0] / "weights"
    if runs:
        raise ConfigError(
            f"'{folder}' has {len(runs)} finished runs of an attribute reader.",
            f"found: {', '.join(run.name for run in runs)}",
            fix=f"name one of them: reader={runs[0]}",
        )
    raise WeightsMissing(
        f"there is no attribute reader in '{folder}'.",
        f"looked for: {CONFIG_FILE} and {WEIGHTS_FILE}",
        fix=f"reader={SHIPPED}, or diffprobe train experiment=scenes/train_reader",
    )


def load_reader(folder: Path | str, spec: WorldSpec) -> SceneReader:
    """Open a saved reader, in evaluation mode on the CPU.

    Args:
        folder: see `find_reader`.
        spec: of the world whose images are read.
    Raises: the errors of `find_reader`; SchemaError for a damaged file; WeightsMismatch for another world.
    """
    folder = find_reader(folder)
    path = folder / CONFIG_FILE
    try:
        tree = json.loads(path.read_text("utf-8"))
        shape = SceneReaderShape(**{**tree["shape"], "channels": tuple(tree["shape"]["channels"])})
        resolution, world, weights = int(tree["resolution"]), tree["world"], tree["weights"]
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"'{path}' does not describe an attribute reader: {error}.") from error
    if world != spec.digest:
        raise WeightsMismatch(
            f"the reader in '{folder}' was trained on another world.",
            f"world of the reader: {str(world)[:12]}, given: {spec.digest[:12]}",
            fix="train it again: diffprobe train experiment=scenes/train_reader",
        )
    if digest_file(folder / WEIGHTS_FILE) != weights:
        raise SchemaError(f"'{folder / WEIGHTS_FILE}' is not the file that '{CONFIG_FILE}' describes.")
    reader = SceneReader(spec, resolution=resolution, shape=shape)
    state: Mapping[str, Tensor] = load_safetensors(folder / WEIGHTS_FILE)
    try:
        reader.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsMismatch(f"the weights in '{folder}' do not fit its shape: {error}.") from error
    return reader.eval()


def to_tensor(images: NDArray[np.uint8]) -> Images:
    """Return uint8 images (n, r, r, 3) as floats in [0, 1], channels first."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
