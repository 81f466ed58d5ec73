"""Plans of sampling: cells, costs, identity, and what is refused before weights are read."""

from pathlib import Path
from typing import Any

import pytest

from diffprobe.backbones.families import dit, sd3, unet2d
from diffprobe.backbones.prompt_plan import PromptPlan, plan_prompts
from diffprobe.config.prompt_schema import PromptExtraction, PromptFeaturesConfig, SamplingConfig
from diffprobe.config.schema import BackboneConfig
from diffprobe.core.errors import BadTimestep, ConfigError, UnknownTap


def plan(path: Path | str, sampling: dict[str, Any] | None = None, **features: Any) -> PromptPlan:
    config = PromptExtraction(
        backbone=BackboneConfig(path=str(path), device="cpu"),
        prompts="unused.txt",
        features=PromptFeaturesConfig(**{"taps": ("mid_block",), "timesteps": (749,), **features}),
        sampling=SamplingConfig(**{"steps": 4, **(sampling or {})}),
    )
    return plan_prompts(config)


def test_cells_name_branch_and_reading(tiny_sd: Path) -> None:
    found = plan(tiny_sd, {"guidance": 1.0}, timesteps=(999, 249), reread=(20,), unconditional=True)
    assert set(found.widths) == {
        "mid_block@t999:caption:mean", "mid_block@t999:negative:mean", "mid_block@t249:caption:mean",
        "mid_block@t249:negative:mean", "mid_block@t20:empty:mean",
    }  # fmt: skip
    assert found.read.timesteps == (249, 999) and found.grid == (999, 749, 499, 249)


@pytest.mark.parametrize(
    ("sampling", "features", "passes"),
    [
        ({}, {"timesteps": (749,)}, 2),
        ({"guidance": 2.0}, {"timesteps": (749, 999)}, 4),
        ({}, {"timesteps": (749,), "keep": ("latents",)}, 4),
        ({"guidance": 2.0}, {"timesteps": (), "reread": (1, 20)}, 10),
    ],
)
def test_sampling_ends_at_the_last_pass_that_is_needed(
    tiny_sd: Path, sampling: dict[str, Any], features: dict[str, Any], passes: int
) -> None:
    assert plan(tiny_sd, sampling, **features).passes == passes


def test_the_fingerprint_is_that_of_what_changes_numbers(tiny_sd: Path) -> None:
    base = plan(tiny_sd).fingerprint
    assert plan(tiny_sd, {"guidance": 0.0}).fingerprint == base
    others = [
        plan(tiny_sd, {"guidance": 1.0}), plan(tiny_sd, {"guidance": 1.0, "negative_prompt": "a dog"}),
        plan(tiny_sd, {"seed": 1}), plan(tiny_sd, {"seeds": 2}), plan(tiny_sd, {"sampler": "dpm"}),
        plan(tiny_sd, {"steps": 8}, timesteps=(749,)), plan(tiny_sd, reread=(20,)), plan(tiny_sd, pool="max"),
    ]  # fmt: skip
    found = [base, *(other.fingerprint for other in others)]
    assert all(found[i] != found[j] for i in range(len(found)) for j in range(i))
    assert base["timesteps"] == [749] and base["sampling"]["grid"] == [999, 749, 499, 249]


def test_settings_of_another_grid_tap_or_branch_are_refused(tiny_sd: Path) -> None:
    with pytest.raises(BadTimestep, match="t=200"):
        plan(tiny_sd, timesteps=(200, 749))
    with pytest.raises(BadTimestep, match="t=1000"):
        plan(tiny_sd, reread=(1000,))
    with pytest.raises(UnknownTap, match="mid_blok"):
        plan(tiny_sd, taps=("mid_blok",))
    with pytest.raises(ConfigError, match="unconditional"):
        plan(tiny_sd, unconditional=True)
    with pytest.raises(ConfigError, match="negative_prompt"):
        plan(tiny_sd, {"negative_prompt": "a dog"})
    with pytest.raises(ConfigError, match="sampling.steps"):
        plan(tiny_sd, {"sampler": "lcm", "steps": 60})


@pytest.mark.parametrize("family", [dit, unet2d])
def test_models_without_prompts_are_refused(family: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes no prompts"):
        plan(family.tiny(tmp_path / "model"), taps=("*",))


def test_pixels_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes no prompts"):
        plan("pixels", taps=("pixels",))


def test_samplers_and_shifts_are_those_of_the_kind_of_model(tiny_sd: Path, tmp_path: Path) -> None:
    flow = sd3.tiny(tmp_path / "sd3")
    taps = ("transformer_blocks.0",)
    assert plan(flow, taps=taps, timesteps=(1000,)).sampler == "euler" and plan(tiny_sd).sampler == "ddim"
    with pytest.raises(ConfigError, match=r"sampler=ddim(?s:.*)flow model(?s:.*)sampler=euler"):
        plan(flow, {"sampler": "ddim"}, taps=taps)
    with pytest.raises(ConfigError, match=r"sampling.shift=3 has no effect(?s:.*)not a flow model"):
        plan(tiny_sd, {"shift": 3.0})
    with pytest.raises(BadTimestep, match="sampling.sampler=euler"):
        plan(flow, taps=taps, timesteps=(999,))
    for shift in (0.0, float("inf")):
        with pytest.raises(ConfigError, match="shift"):
            SamplingConfig(shift=shift)
