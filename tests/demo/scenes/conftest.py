"""Two tiny pipelines of 64 pixels whose weights are never used: what they would draw is rendered from the prompts."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diffprobe.analysis.rerendering import Rerendering
from diffprobe.demo.scenes.config import ScenesDemo, Twin
from diffprobe.shards.scenes.captions import parse
from diffprobe.shards.scenes.factors import counterfactual_scenes, sample
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import FACTORS
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()


class DrawingPipeline:
    """Draws scenes that agree with the prompts, at the rates of a world; everything else follows from the noise."""

    vae_scale_factor = 2

    def __init__(self, world: str, calls: list[tuple[str, list[str], list[int]]]) -> None:
        from diffusers import DDIMScheduler

        self.scheduler, self.world, self.calls = DDIMScheduler(), world, calls
        self.unet = SimpleNamespace(config=SimpleNamespace(sample_size=32))

    def __call__(self, prompts, *, generator, height, width, **settings):
        self.calls.append((self.world, list(prompts), [one.initial_seed() for one in generator]))
        images = []
        for prompt, one in zip(prompts, generator, strict=True):
            scenes = sample(SPEC, 1, [one.initial_seed() % 100_000])
            stated = parse(SPEC, prompt)
            role = next(role for role in SPEC.roles if role.name == stated["role"])
            striped = (one.initial_seed() // 7) % 1000 < 1000 * role.striped[SPEC.world(self.world)]
            values = {"texture": "striped" if striped else "plain", "background": "plain", **stated}
            for factor, value in values.items():
                scenes = counterfactual_scenes(scenes, factor, SPEC.code(factor, value))
            images.append(render(SPEC, scenes, resolution=height).images[0])
        return SimpleNamespace(images=np.stack(images) / 255)


@pytest.fixture(scope="session")
def tiny_twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of two tiny StableDiffusionPipelines of 64 pixels, with different random weights."""
    from diffprobe.backbones.families import sd_unet

    folder = tmp_path_factory.mktemp("twins")
    for seed, name in enumerate(("one", "two")):
        sd_unet.tiny(folder / name, seed=seed, resolution=64)
    return folder / "one", folder / "two"


@pytest.fixture
def demo(tiny_twins: tuple[Path, Path], tmp_path: Path) -> ScenesDemo:
    """A small demo of the tiny twins, with the reader that ships with diffprobe."""
    return ScenesDemo(
        experiment="scenes/demo", title="Known rates", lead="A lead.",
        twins=(Twin(model=str(tiny_twins[0]), world="planted"), Twin(model=str(tiny_twins[1]), world="permuted")),
        prompts=("a painter", "a poet, striped clothes"), images_per_prompt=3, n_per_role=12, validated_per_role=4,
        sampling_steps=2, n_resamples=100, output=str(tmp_path / "out"), limits=("A <limit>.",),
        next_steps=("diffprobe doctor",),
    )  # fmt: skip


@pytest.fixture
def small(demo: ScenesDemo) -> ScenesDemo:
    """The demo with the fewest images."""
    return replace(demo, n_per_role=1, validated_per_role=1, images_per_prompt=2)


@pytest.fixture
def drawn(tiny_twins: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], list[int]]]:
    """Let the twins draw scenes at the rates of their worlds. Returns: the calls, each (world, prompts, seeds)."""
    from diffprobe.evaluation import backbone, rates

    calls: list[tuple[str, list[str], list[int]]] = []
    worlds = {str(tiny_twins[0]): "planted", str(tiny_twins[1]): "permuted"}
    monkeypatch.setattr(backbone, "load_pipeline", lambda path, **_: (DrawingPipeline(worlds[path], calls), None))

    def trusted(spec, image, proposals):  # the search takes long, and has tests of its own
        values = {name: proposals[name][0] for name in FACTORS}
        return Rerendering(values=values, margins={}, distance=0.0, contrast=float(values["texture"]))

    monkeypatch.setattr(rates, "nearest_rerendering", trusted)
    return calls
