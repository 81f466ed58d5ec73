"""What the contract of a family is compared with: a pass of a network, and passes of research checkpoints.

Checkpoints of SiT, EDM and EDM2 have no pipeline in diffusers. Their references are passes of their networks with the
time, the class and the sign of their own papers; `test_sit_network.py`, `test_edm_network.py` and
`test_edm2_network.py` compare the networks themselves with plain computations.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffprobe.backbones.loading import make_network

TIMESTEPS = (740, 261)


@dataclass
class Step:
    """One step of a pipeline: what its denoiser and its scheduler were given."""

    t: int
    given: dict[str, Any]
    sample: Tensor
    predicted: Tensor


@dataclass
class Reference:
    """A pipeline that was run: its denoiser, its two last steps, and the condition of each row."""

    denoiser: nn.Module
    prediction: str
    values: list[str | int]
    guidance: float | None
    steps: list[Step]
    latents: Tensor | None = None
    """What the pipeline's last step returned."""
    grid: tuple[float, ...] = ()
    """Timesteps that the pipeline visited."""


def sit(path: str) -> Reference:
    """SiT: time runs from noise (0) to image (1), the output is image - noise; the id after the last class is null."""
    labels = torch.tensor([3, 10, 0])
    return _run(
        path, "transformer", "SiT", "flow", [3, "", 0], (4, 16),
        given=lambda t: {"times": torch.full((3,), 1 - t / 1000), "labels": labels},
    )  # fmt: skip


def edm2(path: str) -> Reference:
    """EDM2 over latents: the network takes a quarter of log sigma, and its output is minus v."""
    labels = torch.tensor([3, 0])
    return _run(
        path, "unet", "Edm2UNet", "v", [3, 0], (4, 16), given=lambda t: {"noise": _level(t, 2), "labels": labels}
    )


def edm(path: str) -> Reference:
    """EDM over pixels, without classes; the preconditioning is that of EDM2."""
    return _run(path, "unet", "EdmUNet", "v", ["", ""], (3, 32), given=lambda t: {"noise": _level(t, 2)})


OWN: dict[str, Callable[[str], Reference]] = {"sit": sit, "edm": edm, "edm2": edm2}
"""Family without a pipeline -> its reference."""


def _level(t: int, rows: int) -> Tensor:
    """A quarter of the logarithm of sigma at timestep t of 1000 (2206.00364, equation 5, and table 1)."""
    a, b = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return torch.tensor((a + t / 999 * (b - a)) ** 7, dtype=torch.float64).log().div(4).float().expand(rows)


@torch.no_grad()
def _run(
    path: str,
    part: str,
    kind: str,
    prediction: str,
    values: list[str | int],
    shape: tuple[int, int],
    *,
    given: Callable[[int], dict[str, Tensor]],
) -> Reference:
    folder = Path(path) / part
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    network = make_network(kind, config, torch.device("cpu"), where=folder).eval()
    network.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    channels, side = shape
    steps = []
    for t in TIMESTEPS:
        x = torch.randn(len(values), channels, side, side, generator=torch.Generator().manual_seed(t))
        arguments = {"x": x, **given(t)}
        steps.append(Step(t, arguments, x, -network(**arguments)[:, :channels]))
    return Reference(denoiser=network, prediction=prediction, values=values, guidance=None, steps=steps)
